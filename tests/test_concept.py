import copy

import numpy as np
import pytest
import torch
from captum.concept import TCAV
from conftest import fingerprint, same
from torch.utils.data import DataLoader, TensorDataset

from captum_mfv import FacetFinder, ImageFolder, Unit, find_facets, top_images
from captum_mfv.concept import CentroidClassifier, concept_units, facet_concepts, random_concepts, tcav_table
from captum_mfv.datasets import PLANTED_SPEC, planted_images, planted_network
from captum_mfv.errors import FacetError, ImageError, UnitError
from captum_mfv.images import to_pil
from captum_mfv.optvis.render import render_facets


@pytest.fixture(scope="module")
def network():
    return planted_network()[0]


@pytest.fixture(scope="module")
def scene():
    return planted_images(distractor=8)[0]


@pytest.fixture(scope="module")
def found(network, scene):
    finder = FacetFinder(4, embedding=None, random_state=0)
    return find_facets(network, Unit("unit", 0), scene, finder=finder, input_spec=PLANTED_SPEC)


@pytest.fixture(scope="module")
def random_images():
    return torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_concepts_are_the_facets_images_nearest_first_with_unique_ids(found, scene):
    concepts = facet_concepts(found, scene, n_images=5, input_spec=PLANTED_SPEC)
    assert [concept.name for concept in concepts] == [f"facet{k}_of_unit_0" for k in range(4)]
    for concept, facet in zip(concepts, found, strict=True):
        (batch,) = concept.data_iter
        assert torch.equal(batch, PLANTED_SPEC(scene[facet.members[:5]]))
    again = facet_concepts(found, scene, n_images=5, input_spec=PLANTED_SPEC)
    fewer = facet_concepts(found, scene, n_images=4, input_spec=PLANTED_SPEC)
    others = facet_concepts(found, scene.flip(3), n_images=5, input_spec=PLANTED_SPEC)
    ids = [[concept.id for concept in made] for made in (concepts, fewer, others)]
    assert [concept.id for concept in again] == ids[0]
    assert len({number for made in ids for number in made}) == 12
    drawn = random_concepts(scene, 6, 20, seed=3)
    assert len({concept.id for concept in drawn}) == 6
    assert [c.id for c in drawn] == [c.id for c in random_concepts(scene, 6, 20, seed=3)]
    with pytest.raises(FacetError, match="can't be drawn from 120"):
        random_concepts(scene, 2, 121)


def loader(groups):
    x = torch.cat(groups)
    y = torch.cat([torch.full((len(group),), label) for group, label in zip(groups, (7, 3, 5), strict=False)])
    return DataLoader(TensorDataset(x, y), batch_size=4)


def test_the_centroid_classifier_points_from_the_mean_of_means_to_each_mean():
    generator = torch.Generator().manual_seed(0)
    far = [torch.randn(n, 6, generator=generator) + 9 * torch.eye(6)[k] for k, n in enumerate((30, 10, 20))]
    classifier = CentroidClassifier()
    assert classifier.train_and_eval(loader(far))["accs"] == 1
    assert classifier.classes() == [3, 5, 7]
    means = torch.stack([far[1].mean(0), far[2].mean(0), far[0].mean(0)])
    assert torch.allclose(classifier.weights(), means - means.mean(0), atol=1e-5)
    same_place = [torch.randn(300, 6, generator=generator) for _ in range(2)]
    assert abs(classifier.train_and_eval(loader(same_place))["accs"] - 0.5) < 0.1
    assert torch.allclose(classifier.weights()[0], -classifier.weights()[1])
    assert classifier.train_and_eval(loader([far[0][:1], far[1][:1]]))["accs"].isnan()


def table(network, concepts, randoms, scene, **options):
    return tcav_table(network, PLANTED_SPEC(scene[:12]), 0, concepts, randoms, layers=["detectors"], **options)


class Mean(torch.nn.Module):
    """A class score, (N, 1): the planted unit's mean."""

    def __init__(self, network):
        super().__init__()
        self.detectors, self.rectified, self.unit = network

    def forward(self, x):
        return self.unit(self.rectified(self.detectors(x))).mean((2, 3))


def test_a_units_own_facets_drive_it_and_an_ignored_one_does_not(network, scene, found, random_images):
    model = Mean(network).train()
    before = fingerprint(model)
    randoms = random_concepts(random_images, 6, 20, input_spec=PLANTED_SPEC)
    concepts = facet_concepts(found, scene, n_images=20, input_spec=PLANTED_SPEC)
    rows = table(model, concepts, randoms, scene)
    assert [row.concept for row in rows] == [concept.name for concept in concepts]
    assert all(row.score > 0.9 and row.p_value < 0.05 and row.accuracy > 0.9 for row in rows)
    after = fingerprint(model)
    assert [key for key in before if not same(before[key], after[key])] == []


def captums(model, concepts, randoms, scene, folder):
    """Return the first concept's score against each random concept, from Captum's TCAV."""
    tcav = TCAV(model, "detectors", classifier=CentroidClassifier(), save_path=str(folder))
    pairs = [[concepts[0], other] for other in randoms]
    scores = tcav.interpret(PLANTED_SPEC(scene[:12]).requires_grad_(), pairs, target=0)
    return [float(scores[f"{concepts[0].id}-{other.id}"]["detectors"]["sign_count"][0]) for other in randoms]


@pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")  # raised when Captum loads a CAV
def test_scores_equal_captums_and_facet_sets_can_share_a_cache_folder(network, scene, found, random_images, tmp_path):
    model = Mean(network)
    randoms = random_concepts(random_images, 4, 20, input_spec=PLANTED_SPEC)
    own = facet_concepts(found, scene, n_images=8, input_spec=PLANTED_SPEC)
    other = facet_concepts(found, 1 - scene, n_images=8, input_spec=PLANTED_SPEC)
    ours = [table(model, made, randoms, scene) for made in (own, other, own)]
    assert ours[0] == ours[2] != ours[1]
    theirs = [captums(model, made, randoms, scene, tmp_path) for made in (own, other, own)]
    assert theirs[0] == theirs[2] != theirs[1]
    assert [np.mean(shares) for shares in theirs] == pytest.approx([rows[0].score for rows in ours])


def test_captums_tcav_accepts_the_concepts_and_the_classifier(network, scene, found, tmp_path):
    concepts = facet_concepts(found, scene, n_images=8, input_spec=PLANTED_SPEC)
    tcav = TCAV(
        Mean(network), "detectors", classifier=CentroidClassifier(), save_path=str(tmp_path), model_id=found.fingerprint
    )
    x = PLANTED_SPEC(scene[:4]).requires_grad_()
    scores = tcav.interpret(x, [concepts[:2], concepts], target=0)
    key = "-".join(str(concept.id) for concept in concepts)
    assert scores[key]["detectors"]["sign_count"].shape == (4,)


def test_a_concepts_unit_is_its_direction_and_can_be_searched_and_rendered(network, scene, found, random_images):
    before = fingerprint(network)
    concepts = facet_concepts(found, scene, n_images=10, input_spec=PLANTED_SPEC)
    random = random_concepts(random_images, 3, 20, input_spec=PLANTED_SPEC)
    units = concept_units(network, "rectified", concepts, random)
    assert same(before["weights"], fingerprint(network)["weights"])
    for facet, unit in zip(found, units, strict=True):
        assert np.linalg.norm(unit.index) == pytest.approx(1)
        top = top_images(network, unit, scene, 10, input_spec=PLANTED_SPEC)
        assert set(top.indices) <= set(facet.members)
    own = find_facets(network, units[0], scene, n_facets=2, code="rectified", input_spec=PLANTED_SPEC)
    (rendering,) = render_facets(network, own[0], scene, steps=2, input_spec=PLANTED_SPEC)
    assert rendering.complete
    with pytest.raises(FacetError, match="at least one concept"):
        concept_units(network, "rectified", concepts, [])
    with pytest.raises(FacetError, match="random0 has the mean activation of the random concepts"):
        concept_units(network, "rectified", random[:1], random[:1])


def test_wrong_arguments_of_tcav_raise_an_error(network, scene, found):
    concepts = facet_concepts(found, scene, n_images=4, input_spec=PLANTED_SPEC)
    with pytest.raises(FacetError, match="at least 3"):
        table(Mean(network), concepts[:1], concepts[1:3], scene)
    with pytest.raises(FacetError, match="same id"):
        table(Mean(network), concepts, concepts[:3], scene)
    with pytest.raises(UnitError, match="nearest are"):
        tcav_table(Mean(network), scene[:2], 0, concepts[:1], concepts[1:], layers=["detector"])


def test_the_p_value_is_of_ranks_and_is_defined_for_constant_scores():
    from captum_mfv.concept import _p_value

    assert _p_value([1.0, 1, 1], [1, 1]) == 1
    assert _p_value([1.0] * 10, [0.0] * 45) < 1e-6
    draws = np.random.default_rng(0).normal(size=(2, 50))
    assert _p_value(draws[0], draws[1]) > 0.05
    assert _p_value(draws[0] + 2, draws[1]) < 1e-6


@pytest.mark.parametrize("n_inputs", [3, 16])
def test_tcav_of_a_token_first_layer_compares_images_not_tokens(n_inputs, random_images):
    from test_maps import TokenFirst

    class TokenLast(TokenFirst):
        def forward(self, x):
            return self.fc(self.mix(self.patches(x).flatten(2).transpose(1, 2)).relu().mean(1))

    concepts = random_concepts(random_images, 5, 8, input_spec=PLANTED_SPEC)
    inputs = random_images[:n_inputs]
    first, last = (
        tcav_table(model.eval(), inputs, 1, concepts[:2], concepts[2:], layers=["mix"])
        for model in (TokenFirst(), TokenLast())
    )
    assert first == last


def test_tcav_of_a_half_precision_model_equals_the_float32_models(network, found, scene, random_images):
    concepts = facet_concepts(found, scene, n_images=8, input_spec=PLANTED_SPEC)
    randoms = random_concepts(random_images, 4, 8, seed=np.int64(0), input_spec=PLANTED_SPEC)
    wanted = table(Mean(network), concepts, randoms, scene)
    halved = copy.deepcopy(Mean(network)).bfloat16()
    for one, other in zip(table(halved, concepts, randoms, scene), wanted, strict=True):
        assert abs(one.score - other.score) < 0.1
        assert abs(one.accuracy - other.accuracy) < 0.1


def test_an_id_depends_on_every_example(scene, found):
    changed = scene.clone()
    changed[found[0].members[4]] = 0.5
    ids = [facet_concepts(found, images, n_images=5, input_spec=PLANTED_SPEC)[0].id for images in (scene, changed)]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, x: random_concepts(x, 0), FacetError, "n_concepts must be at least 1, not 0"),
        (lambda f, x: random_concepts(x, 3, 0), FacetError, "n_images must be at least 1, not 0"),
        (lambda f, x: random_concepts(x, 3, 5, seed=-1), FacetError, "seed must be at least 0, not -1"),
        (lambda f, x: random_concepts(x * 255, 3, 5), ImageError, r"\[0, 1\]"),
        (lambda f, x: facet_concepts(f, x * 255), ImageError, r"\[0, 1\]"),
        (lambda f, x: facet_concepts(f, x[:5]), FacetError, "dataset of 120 images, not 5"),
        (lambda f, x: facet_concepts(f, x, n_images=0), FacetError, "n_images must be at least 1"),
    ],
)
def test_wrong_arguments_of_concepts_are_named(call, error, message, found, scene):
    with pytest.raises(error, match=message):
        call(found, scene)


def test_concepts_of_an_image_folder_read_files_only_when_used(found, scene, tmp_path):
    for number, image in enumerate(scene):
        to_pil(image).save(tmp_path / f"{number:03d}.png")
    folder = ImageFolder(tmp_path, PLANTED_SPEC)
    first = facet_concepts(found, folder, n_images=5)[0]
    (tmp_path / f"{found[0].members[0]:03d}.png").write_bytes(b"")
    changed = facet_concepts(found, ImageFolder(tmp_path, PLANTED_SPEC), n_images=5)[0]
    assert first.id != changed.id
    with pytest.raises(ImageError):
        next(iter(changed.data_iter))
