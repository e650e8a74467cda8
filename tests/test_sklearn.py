"""FacetFinder keeps scikit-learn's rules for estimators."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from captum_mfv import FacetFinder


@parametrize_with_checks(
    [
        FacetFinder(2, random_state=0),
        FacetFinder(2, embedding=None, random_state=0),
        FacetFinder("auto", embedding=None, random_state=0),
    ]
)
def test_the_rules_for_estimators_are_kept(estimator, check):
    check(estimator)
