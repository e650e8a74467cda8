"""FacetFinder follows scikit-learn's rules for estimators."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from captum_mfv import FacetFinder


@parametrize_with_checks(
    [
        FacetFinder(2, n_bootstraps=2, random_state=0),
        FacetFinder(2, embedding=None, n_bootstraps=2, random_state=0),
        FacetFinder("auto", embedding=None, max_facets=2, n_bootstraps=2, random_state=0),
    ]
)
def test_facet_finder_passes_scikit_learns_estimator_checks(estimator, check):
    check(estimator)
