import captum.attr as ca
import numpy as np
import pytest
import torch

from captum_mfv import FacetFinder, Unit, find_facets
from captum_mfv.attr import FacetAttribution, FacetModel
from captum_mfv.datasets import PLANTED_SPEC, planted_images, planted_network
from captum_mfv.errors import FacetError
from captum_mfv.metrics import deletion_curve, faithfulness, insertion_curve


def total(x):
    return x.flatten(1).sum(1, keepdim=True)


def test_a_score_of_one_pixel_falls_with_the_first_step_and_rises_with_it():
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 1, 2], x[1, 0, 3, 3] = 5, 2
    gone = deletion_curve(total, x, x, 0, n_steps=16)
    assert gone.scores[0].tolist() == [5] + 16 * [0]
    assert np.allclose(gone.area, 1 / 32)
    assert np.allclose(insertion_curve(total, x, x, 0, n_steps=16).area, 1 - 1 / 32)
    assert np.allclose(deletion_curve(total, x, -x, 0, n_steps=16).area, 1 - 1 / 32)


def test_a_score_that_is_a_sum_over_pixels_has_area_one_half_in_random_order():
    x = torch.ones(1, 3, 8, 8)
    order = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for curve in (deletion_curve, insertion_curve):
        assert np.allclose(curve(total, x, order, 0, n_steps=8).area, 0.5)


def test_pixels_become_the_baseline_and_an_image_that_scores_no_higher_has_no_area():
    x = torch.ones(2, 1, 2, 2)
    curve = deletion_curve(total, x, x, torch.tensor([0, 0]), baselines=3.0, n_steps=2)
    assert curve.scores.tolist() == [[4, 8, 12]] * 2
    assert (curve.image.tolist(), curve.baseline.tolist()) == ([4, 4], [12, 12])
    assert np.isnan(curve.area).all()


@pytest.mark.parametrize("wrong", [torch.ones(1, 1, 2, 2), torch.ones(2, 1, 3, 2)])
def test_attributions_of_other_images_are_an_error(wrong):
    with pytest.raises(FacetError, match="same rows and pixels"):
        deletion_curve(total, torch.ones(2, 1, 2, 2), wrong, 0)
    with pytest.raises(FacetError, match="n_steps"):
        deletion_curve(total, torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2), 0, n_steps=0)


def test_exact_attributions_of_a_linear_score_have_no_infidelity_and_no_sensitivity():
    weights = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))

    def score(x):
        return total(x * weights)

    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    exact = faithfulness(ca.Saliency(score), x, 0, abs=False)
    assert np.allclose(exact.infidelity, 0, atol=1e-5)
    assert np.allclose(exact.sensitivity, 0, atol=1e-5)
    blurred = faithfulness(ca.Saliency(lambda x: score(x) + 30 * total(x**2)), x, 0, abs=False)
    assert (blurred.sensitivity > exact.sensitivity).all()


def test_a_facets_attributions_rank_its_pixels_higher_than_another_facets():
    network, (scene, _) = planted_network()[0], planted_images(distractor=8)
    finder = FacetFinder(4, embedding=None, random_state=0)
    facets = find_facets(network, Unit("unit", 0), scene, finder=finder, input_spec=PLANTED_SPEC)
    explain = FacetAttribution(ca.IntegratedGradients, FacetModel(network, facets, "gated"))
    members = torch.stack([scene[facet.members[0]] for facet in facets])
    options = {"curve_steps": 10, "n_samples": 3}
    own = faithfulness(explain, members, [0, 1, 2, 3], n_steps=20, **options)
    state = torch.get_rng_state()
    again = faithfulness(explain, members, [0, 1, 2, 3], n_steps=20, **options)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(own.infidelity, again.infidelity)
    assert np.array_equal(own.sensitivity, again.sensitivity)
    reverse = -explain.attribute(members, target=[0, 1, 2, 3])
    wrong = deletion_curve(explain.forward_func, members, reverse, [0, 1, 2, 3], n_steps=10).area
    assert (own.deletion < 0.1).all()
    assert (own.insertion > 0.85).all()
    assert (wrong > 0.8).all()
