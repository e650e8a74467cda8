import numpy as np
import pytest
import torch
from conftest import SPEC, small_cnn
from sklearn.base import clone
from sklearn.cluster import DBSCAN, AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from captum_mfv import Code, FacetFinder, FacetSet, Unit, find_facets
from captum_mfv.errors import FacetError, ImageError, UnitError
from captum_mfv.facets import nearest


def blobs(k=4, n=40, dimensions=64, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(k), n - 5 * np.arange(k))
    return rng.normal(0, 6, (k, dimensions))[labels] + rng.normal(0, 1, (len(labels), dimensions)), labels


@pytest.mark.parametrize("embedding", ["tsne", None])
@pytest.mark.parametrize("clusterer", [None, AgglomerativeClustering()])
def test_separable_facets_are_found_exactly_with_any_clusterer(embedding, clusterer):
    codes, labels = blobs()
    finder = FacetFinder(4, embedding=embedding, clusterer=clusterer, random_state=0).fit(codes)
    assert adjusted_rand_score(labels, finder.labels_) == 1
    assert np.bincount(finder.labels_).tolist() == [40, 35, 30, 25]
    assert np.allclose(finder.centers_, [codes[labels == k].mean(0) for k in range(4)])
    assert (finder.predict(codes) == finder.labels_).all()


@pytest.mark.parametrize("k", [10, "auto"])
@pytest.mark.parametrize("n_clusters", [None, 2])
def test_a_clusterer_with_a_distance_threshold_finds_their_number_itself(k, n_clusters):
    codes, labels = blobs()
    clusterer = AgglomerativeClustering(n_clusters, distance_threshold=100)
    finder = FacetFinder(k, embedding=None, clusterer=clusterer, random_state=0).fit(codes)
    assert finder.n_facets_ == 4
    assert adjusted_rand_score(labels, finder.labels_) == 1


def test_the_same_seed_finds_the_same_facets_and_no_global_generator_is_touched():
    codes = np.random.default_rng(0).normal(size=(60, 20))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (FacetFinder(5, random_state=3).fit_predict(codes) for _ in range(2))
    assert (one == two).all()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_finder_is_a_scikit_learn_estimator():
    finder = FacetFinder(3, embedding=None, random_state=1)
    assert clone(finder).get_params() == finder.get_params()
    assert finder.set_params(n_facets=2).fit_predict(blobs()[0]).max() == 1


def test_noise_has_no_facet():
    codes, labels = blobs(k=2)
    codes = np.vstack([codes, 100 + np.eye(2, 64) * 100])
    finder = FacetFinder(2, embedding=None, clusterer=DBSCAN(eps=15, min_samples=3)).fit(codes)
    assert finder.labels_[-2:].tolist() == [-1, -1]
    assert adjusted_rand_score(labels, finder.labels_[:-2]) == 1


@pytest.mark.parametrize(
    ("codes", "k", "message"),
    [
        (np.eye(3), 5, "5 facets can't be found in 3 images"),
        (np.repeat(np.eye(2), 10, axis=0), 5, "2 distinct codes"),
        (np.eye(5), 0, "at least 1"),
        (np.full((9, 3), np.nan), 2, "NaN"),
    ],
)
def test_more_facets_than_distinct_codes_are_an_error(codes, k, message):
    with pytest.raises(ValueError, match=message):
        FacetFinder(k).fit(codes)
    with pytest.raises(TypeError, match="n_facets"):
        FacetFinder(2.5).fit(np.eye(5))


@pytest.mark.parametrize("n_images", [1, 2, 3, 4, 5])
def test_few_images_can_have_facets(n_images):
    finder = FacetFinder(n_images, random_state=0).fit(np.random.default_rng(0).normal(size=(n_images, 8)))
    assert sorted(finder.labels_) == list(range(n_images))


def test_planted_facets_are_found_through_the_network(planted, facets):
    _, labels = planted
    assert adjusted_rand_score(labels, facets.labels) == 1
    assert facets.code == Code("relu2")
    assert [len(facet) for facet in facets] == [20, 20, 20]
    for facet in facets:
        assert (np.diff(facet.distances) >= 0).all()
        assert np.allclose(facet.center, facets.codes[facet.members].mean(0), atol=1e-6)
        assert np.array_equal(facet.activations, facets.activations[facet.members])


@pytest.mark.usefixtures("unchanged")
def test_finding_facets_does_not_change_the_model(model, planted):
    find_facets(model, Unit("fc", 1), planted[0], n_facets=3, input_spec=SPEC)
    with pytest.raises(UnitError):
        find_facets(model, Unit("fc", 99), planted[0], n_facets=3, input_spec=SPEC)


def test_facets_do_not_depend_on_the_batch_size(planted, facets):
    other = find_facets(small_cnn(), Unit("fc", 1), planted[0], n_facets=3, input_spec=SPEC, batch_size=7)
    assert np.array_equal(other.labels, facets.labels)
    assert np.allclose(other.codes, facets.codes, atol=1e-6)


class Holes:
    """Images of which every third raises an error."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index % 3 == 0:
            raise ImageError(f"number {index}: broken")
        return self.images[index]


def test_members_are_indices_of_the_dataset_if_some_images_are_unreadable(planted):
    images, labels = planted
    with pytest.warns(UserWarning, match="broken"):
        found = find_facets(small_cnn(), Unit("fc", 1), Holes(images), n_facets=3, input_spec=SPEC)
    assert (found.labels[::3] == -1).all()
    assert adjusted_rand_score(labels[found.labels >= 0], found.labels[found.labels >= 0]) == 1
    assert np.isnan(found.activations[::3]).all()
    assert all(member % 3 for facet in found for member in facet.members)


def test_the_largest_logit_of_the_head_is_the_nearest_centers(facets):
    head = facets.head()
    logits = head(torch.from_numpy(facets.codes)).numpy()
    squared = ((facets.codes[:, None] - facets.centers) ** 2).sum(2)
    assert (logits.argmax(1) == squared.argmin(1)).all()
    assert not any(parameter.requires_grad for parameter in head.parameters())
    difference = (logits[:, :1] - logits) / (squared - squared[:, :1] + 1e-9)
    assert np.allclose(difference[:, 1:], difference[0, 1], rtol=1e-2)


def of_codes(codes, labels, embedding=None):
    codes, ones = np.asarray(codes, np.float32), np.ones(len(codes), np.float32)
    return FacetSet(Unit("layer", 0), Code("layer"), labels, codes if embedding is None else embedding, codes, ones)


def test_the_nearest_center_is_exact_far_from_zero():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=400)
    codes = (300 + rng.normal(size=(5, 64))[labels] + 3 * rng.normal(size=(400, 64))).astype(np.float32)
    found = of_codes(codes, labels)
    exact = ((codes.astype(np.float64)[:, None] - found.centers) ** 2).sum(2).argmin(1)
    assert np.array_equal(nearest(codes, found.centers), exact)
    assert np.array_equal(found.head()(torch.from_numpy(codes)).argmax(1), exact)
    closer = FacetFinder(5, embedding=None, random_state=0).fit(codes)
    exact = ((codes.astype(np.float64)[:, None] - closer.centers_) ** 2).sum(2).argmin(1)
    assert np.array_equal(closer.predict(codes), exact)


def test_the_variance_of_the_head_does_not_depend_on_an_offset_of_the_codes():
    codes, labels = blobs()
    near, far = (of_codes(codes + offset, labels).head().linear.weight for offset in (0, 300))
    assert torch.allclose(far, near, rtol=1e-3)


def test_agreement_is_the_share_of_images_nearest_to_the_center_of_their_own_facet(facets):
    assert facets.agreement == 1
    found = of_codes([[0.0], [2], [9], [10], [11], [50]], np.array([0, 0, 0, 1, 1, -1]))
    assert found.agreement == 0.8  # 9 is nearer to 10.5 than to 11 / 3; the last image has no facet
    assert "80.0% nearest to their own center" in repr(found)
    assert "80.0% nearest to their own center" in found._repr_html_()


@pytest.mark.parametrize("seed", ["0", 0.5, -1, True])
def test_seeds_are_integers_of_any_type_and_nothing_else(seed, facets, planted):
    with pytest.raises((TypeError, ValueError), match="seed must be an integer"):
        find_facets(small_cnn(), Unit("fc", 1), planted[0], n_facets=3, input_spec=SPEC, seed=seed)
    again = find_facets(small_cnn(), Unit("fc", 1), planted[0], n_facets=3, input_spec=SPEC, seed=np.int64(0))
    assert np.array_equal(again.labels, facets.labels)


def test_a_saved_facet_set_is_loaded_unchanged(facets, tmp_path):
    facets.save(tmp_path / "facets.safetensors")
    loaded = FacetSet.load(tmp_path / "facets.safetensors")
    assert (loaded.fingerprint, loaded.unit, loaded.code) == (facets.fingerprint, facets.unit, facets.code)
    assert np.array_equal(loaded[2].members, facets[2].members)
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    with pytest.raises(FacetError, match="isn't a facet set"):
        FacetSet.load(tmp_path / "bad.safetensors")


def test_fingerprints_of_different_contents_differ(facets, planted):
    other = find_facets(small_cnn(seed=1), Unit("fc", 1), planted[0], n_facets=3, input_spec=SPEC)
    assert other.fingerprint != facets.fingerprint


def test_conv_units_directions_and_modules_can_be_units(planted):
    model = small_cnn()
    for unit in (Unit("conv2", 3, "max"), Unit(model.conv2, 3), Unit("conv2", np.ones(24))):
        found = find_facets(model, unit, planted[0], n_facets=3, input_spec=SPEC)
        assert found.unit.layer == "conv2"
        assert found.code.layer == "relu1"


@pytest.mark.parametrize(("draws", "n_facets"), [([3, 2, 4], 3), ([2, 1], 1), ([1], 1), ([4, 4, 1], 1)])
def test_auto_counts_gaps_that_each_draw_finds(draws, n_facets, monkeypatch):
    left = list(draws)
    monkeypatch.setattr(
        "captum_mfv.facets.finder.separate", lambda codes, seed: (np.arange(len(codes)) % left.pop(0), 0.001)
    )
    codes = np.random.default_rng(0).normal(size=(60, 5))
    found = FacetFinder("auto", embedding=None, n_bootstraps=0, random_state=0).fit(codes)
    assert (found.n_facets_, left) == (n_facets, [])
