"""Labels of facets: known answers, the error rate without facets, and what is rejected."""

import math

import numpy as np
import pytest
import torch
from conftest import Keyed
from scipy.stats import norm

import captum_mfv as mfv
from captum_mfv.errors import FacetError, ImageError, LabelError, MFVWarning
from captum_mfv.labels import (
    APPEARANCE,
    REFERENCE_COLORS,
    AppearanceNamer,
    ClassifierNamer,
    common_words,
    concept_scores,
    label_facets,
    labels_from_scores,
    read_words,
    word_scores,
)
from captum_mfv.metrics import estimate_auroc

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def facet_set(labels):
    """Return facets with given members, whose codes are arbitrary."""
    labels = np.asarray(labels, np.int64)
    codes = np.arange(len(labels), dtype=np.float32)[:, None]
    return mfv.FacetSet(mfv.Unit("fc", 0), mfv.Code("fc"), labels, codes, codes, codes[:, 0])


@pytest.fixture(scope="module")
def digits_namer():
    model, spec = mfv.datasets.ten_digits(epochs=4)
    return ClassifierNamer(model, DIGITS, spec)


@pytest.fixture(scope="module")
def digits():
    images, labels = (values[::6] for values in mfv.datasets.digits())
    return images, labels.numpy()


# The interval


def test_auroc_is_the_share_of_pairs_with_the_larger_value_and_half_of_the_ties():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 5, 9), rng.integers(0, 4, 31)
    pairs = np.sign(positive[:, None] - negative) / 2 + 0.5
    found = estimate_auroc(positive, negative)
    assert found.value == pytest.approx(pairs.mean())
    assert found.n == 9
    assert found.low < found.value < found.high


def test_the_interval_excludes_chance_exactly_if_the_rank_test_rejects_it():
    rng = np.random.default_rng(1)
    for _ in range(100):
        m, n = rng.integers(1, 20, 2)
        positive, negative = rng.normal(0.8, 1, m), rng.normal(0, 1, n)
        found = estimate_auroc(positive, negative)
        z = (found.value - 0.5) / math.sqrt((m + n + 1) / (12 * m * n))
        assert (found.low > 0.5 or found.high < 0.5) == (abs(z) > norm.ppf(0.975))


def test_an_auroc_of_1_has_an_interval_that_narrows_with_the_number_of_images():
    lows = [estimate_auroc(np.ones(m), np.zeros(10 * m)).low for m in (1, 3, 10, 100)]
    assert lows == sorted(lows)
    assert lows[0] < 0.5 < lows[1] < 0.9 < lows[3] < 1
    assert estimate_auroc(np.ones(3), np.zeros(9)).high == 1
    mirrored = estimate_auroc(np.zeros(3), np.ones(9))
    assert (mirrored.value, mirrored.low) == (0, 0)
    assert mirrored.high == pytest.approx(1 - estimate_auroc(np.ones(3), np.zeros(9)).low)


@pytest.mark.parametrize(("m", "auroc"), [(4, 0.7), (7, 0.9), (20, 0.8)])
def test_the_interval_covers_the_true_auroc_in_95_of_100_draws(m, auroc):
    rng = np.random.default_rng(2)
    shift = norm.ppf(auroc) * math.sqrt(2)
    found = [estimate_auroc(rng.normal(shift, 1, m), rng.normal(0, 1, 9 * m)) for _ in range(400)]
    assert np.mean([one.low <= auroc <= one.high for one in found]) == pytest.approx(0.95, abs=0.035)


def test_an_auroc_without_values_or_with_nan_is_an_error():
    with pytest.raises(FacetError, match="at least one value on each side"):
        estimate_auroc(np.ones(0), np.ones(3))
    with pytest.raises(FacetError, match="no NaN"):
        estimate_auroc(np.array([np.nan]), np.ones(3))


# Known answers


def test_facets_of_digits_are_named_by_a_classifier(digits, digits_namer):
    images, kinds = digits
    found = label_facets(facet_set(kinds), images, digits_namer)
    assert [label.text for label in found] == list(DIGITS)
    assert all(label.score.value > 0.9 and label.score.low > 0.5 for label in found)
    assert {label.n_words for label in found} == {10}


def test_facets_that_were_found_in_a_unit_are_named_after_their_digits(digits_namer):
    model, spec = mfv.datasets.even_or_odd(epochs=4)
    images, kinds = mfv.datasets.digits()
    even = np.flatnonzero(kinds % 2 == 0)[::3]
    code = mfv.Code("relu4", "flatten")
    facets = mfv.find_facets(model, "logits:0", images[even], n_facets=5, code=code, input_spec=spec)
    most = [DIGITS[np.bincount(kinds[even][facet.members]).argmax()] for facet in facets]
    assert [label.text for label in label_facets(facets, images[even], digits_namer)] == most
    assert sorted(most) == sorted(DIGITS[::2])


def discs(colors, n_each, generator):
    """Return images of a disc of a color on a noisy gray background, at random places and sizes."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = []
    for color in colors:
        for _ in range(n_each):
            draw = torch.rand(3, generator=generator)
            disc = (x - 8 - 16 * draw[0]) ** 2 + (y - 8 - 16 * draw[1]) ** 2 < (5 + 4 * draw[2]) ** 2
            shade = torch.tensor(color)[:, None, None] / 255 + 0.05 * torch.randn(3, 1, 1, generator=generator)
            noise = 0.5 + 0.1 * torch.randn(3, 32, 32, generator=generator)
            images.append(torch.where(disc, shade, noise).clamp(0, 1))
    return torch.stack(images)


def test_facets_of_colors_are_named_without_a_network():
    colors = {
        "red": (230, 20, 30),
        "orange": (255, 140, 0),
        "yellow": (255, 225, 30),
        "green": (30, 140, 50),
        "cyan": (20, 210, 220),
        "blue": (30, 60, 210),
        "purple": (120, 40, 160),
        "pink": (250, 130, 180),
        "brown": (120, 70, 30),
        "white": (250, 250, 250),
    }
    images = discs(colors.values(), 14, torch.Generator().manual_seed(0))
    found = label_facets(facet_set(np.repeat(np.arange(10), 14)), images, AppearanceNamer())
    named = [label.text for label in found]
    assert sum(name == color for name, color in zip(named, colors, strict=True)) >= 9, named


def test_the_planted_detectors_facets_are_named_after_their_colors():
    images, kinds = mfv.datasets.planted_images()
    found = label_facets(facet_set(kinds.numpy()), images, AppearanceNamer())
    assert [label.text for label in found] == ["red", "green", "blue", "yellow"]
    red = AppearanceNamer()(images[:30])
    assert red[:, AppearanceNamer.words.index("brown")].count_nonzero() <= 3  # at the discs' edges


# Clusters without a difference


@pytest.mark.parametrize("kind", ["normal", "correlated", "tied"])
def test_shuffled_clusters_have_no_label_in_95_of_100_facets(kind):
    rng = np.random.default_rng(3)
    n_labels = n_facets = 0
    for draw in range(40):
        sizes = rng.integers(3, 26, 10)
        facets = facet_set(rng.permutation(np.repeat(np.arange(10), sizes)))
        scores = rng.normal(size=(sizes.sum(), 300))
        if kind == "correlated":
            scores = rng.normal(size=(sizes.sum(), 8)) @ rng.normal(size=(8, 300)) + 0.3 * scores
        if kind == "tied":
            scores = np.round(np.maximum(scores - 1, 0), 1)
        found = labels_from_scores(facets, scores, [str(i) for i in range(300)], seed=draw)
        n_labels += sum(label.text is not None for label in found)
        n_facets += len(found)
    assert n_labels / n_facets < 0.05


def test_shuffled_digits_have_no_label(digits, digits_namer):
    images, kinds = digits
    scores = word_scores(digits_namer, images)
    texts = []
    for seed in range(20):
        mixed = np.random.default_rng(seed).permutation(kinds)
        texts += [label.text for label in labels_from_scores(facet_set(mixed), scores, DIGITS, seed=seed)]
    assert np.mean([text is None for text in texts]) >= 0.95


# What a label holds


@pytest.fixture
def clear():
    """Return two facets, and scores in which the first word tells them apart and the second does not."""
    rng = np.random.default_rng(4)
    kinds = np.repeat([0, 1], 20)
    return facet_set(kinds), np.stack([3 - 4 * kinds + rng.normal(size=40), rng.normal(size=40)], 1)


def test_a_label_has_its_score_its_runners_up_and_held_out_evidence(clear):
    facets, scores = clear
    first, second = labels_from_scores(facets, scores, ["a", "b"])
    assert (first.index, first.text, first.best, first.score.n, first.agrees) == (0, "a", "a", 10, None)
    assert first.score.low > 0.5
    assert (second.text, second.best) == (None, "b")
    assert second.score.low < 0.5
    assert len(first.evidence) == 4
    assert set(first.evidence) <= set(range(20))
    assert list(scores[list(first.evidence), 0]) == sorted(scores[list(first.evidence), 0], reverse=True)


def test_of_comparable_words_only_those_are_chosen_that_are_among_the_highest():
    rng = np.random.default_rng(6)
    kinds = np.repeat([0, 1], 20)
    scores = rng.normal(size=(40, 30)) + np.linspace(0, 20, 30)
    scores[:, 0] += np.where(kinds == 0, 9, 0)  # differs most, but is far below the highest words
    scores[:, 29] += np.where(kinds == 0, 3, 0)
    words = [str(i) for i in range(30)]
    assert labels_from_scores(facet_set(kinds), scores, words)[0].text == "0"
    assert labels_from_scores(facet_set(kinds), scores, words, comparable=True)[0].text == "29"


def test_the_same_seed_gives_the_same_labels(clear):
    facets, scores = clear
    assert labels_from_scores(facets, scores, ["a", "b"], seed=7) == labels_from_scores(
        facets, scores, ["a", "b"], seed=7
    )


def test_words_are_not_chosen_on_the_images_on_which_they_are_tested(clear):
    facets, scores = clear
    label = labels_from_scores(facets, scores, ["a", "b"])[0]
    changed = scores.copy()
    changed[:, 0] = np.where(np.isin(np.arange(40), label.evidence), -9, scores[:, 0])  # only held-out images
    again = labels_from_scores(facets, changed, ["a", "b"])[0]
    assert again.best == "a"
    assert again.score.value < label.score.value


def test_a_synthesized_image_agrees_if_it_is_nearer_to_the_facets_images(clear):
    facets, scores = clear
    drawn = np.array([[2.0, 0], [-2, 0]])
    assert labels_from_scores(facets, scores, ["a", "b"], renderings=drawn)[0].agrees is True
    assert labels_from_scores(facets, scores, ["a", "b"], renderings=-drawn)[0].agrees is False
    missing = np.full((2, 2), np.nan)
    assert labels_from_scores(facets, scores, ["a", "b"], renderings=missing)[0].agrees is None


def test_one_facet_is_compared_with_images_of_other_units(digits, digits_namer):
    images, kinds = digits
    threes = images[kinds == 3]
    one = facet_set(np.zeros(len(threes)))
    (label,) = label_facets(one, threes, digits_namer, others=images[kinds != 3], renderings=[threes[0]])
    assert (label.text, label.agrees) == ("three", True)
    (alone,) = label_facets(one, threes, digits_namer)
    assert (alone.text, alone.best, alone.score, alone.evidence) == (None, None, None, ())


def test_facets_of_one_image_have_no_label():
    found = labels_from_scores(facet_set([0, 1, 1, 1, 1, 1, 1, 1]), np.eye(8, 2), ["a", "b"])
    assert (found[0].text, found[0].best, found[0].score) == (None, None, None)


def test_images_that_cannot_be_read_are_left_out(digits, digits_namer):
    class Broken(Keyed):
        def __getitem__(self, index):
            if index % 10 == 3:
                raise ImageError(f"image {index} is broken")
            return self.images[index]

    images, kinds = digits
    with pytest.warns(MFVWarning, match=r"left out image \d+ is broken"):
        found = label_facets(facet_set(kinds), Broken(images), digits_namer)
    assert [label.text for label in found] == list(DIGITS)


def test_images_without_a_facet_are_not_scored(digits, digits_namer):
    images, kinds = digits
    kinds = np.where(kinds < 2, kinds, -1)
    seen = []

    def namer(batch):
        seen.append(len(batch))
        return digits_namer(batch)

    namer.words = DIGITS
    found = label_facets(facet_set(kinds), images, namer, batch_size=16)
    assert [label.text for label in found] == ["zero", "one"]
    assert sum(seen) == (kinds >= 0).sum()
    assert max(seen) == 16


# Misuse


@pytest.mark.filterwarnings("ignore:left out item")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"namer": "resnet50"}, TypeError, "namer must be a function of images with a list of words.*'resnet50'"),
        ({"namer": lambda images: images}, TypeError, "namer must be a function of images with a list of words"),
        ({"images": torch.zeros(5, 1, 8, 8)}, LabelError, "dataset of 12 images, not 5"),
        ({"images": torch.full((12, 1, 8, 8), 255.0)}, ImageError, r"must lie in \[0, 1\], not \[255, 255\]"),
        ({"renderings": [torch.zeros(1, 8, 8)]}, LabelError, "one image for each of 2 facets, not 1"),
        ({"renderings": [torch.ones(1, 8, 8) * 2] * 2}, ImageError, r"must lie in \[0, 1\]"),
        ({"others": torch.zeros(5, 1, 8, 8)}, LabelError, "others are for one facet; 2 facets"),
        ({"alpha": 5}, LabelError, "alpha must be above 0 and below 1, not 5"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_arguments_are_checked(change, error, message):
    arguments = {"facets": facet_set([0] * 6 + [1] * 6), "images": torch.rand(12, 1, 8, 8), "namer": AppearanceNamer()}
    with pytest.raises(error, match=message):
        label_facets(**{**arguments, **change})


def test_scores_of_another_shape_or_with_nan_are_named():
    facets = facet_set([0, 0, 1, 1])
    with pytest.raises(LabelError, match=r"4 images and a column for each of 2 words, not float64 of shape \(4, 3\)"):
        labels_from_scores(facets, np.zeros((4, 3)), ["a", "b"])
    with pytest.raises(LabelError, match="renderings must be numbers, a row for each of 2"):
        labels_from_scores(facets, np.zeros((4, 2)), ["a", "b"], renderings=np.zeros((4, 2)))
    scores = np.zeros((4, 2))
    scores[1, 1] = np.nan
    with pytest.raises(LabelError, match="scores: the score of 'b' is NaN; only whole rows"):
        labels_from_scores(facets, scores, ["a", "b"])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda images: torch.zeros(len(images), 3), r"must return scores of shape \(4, 2\) here, not \(4, 3\)"),
        (lambda images: None, r"must return scores of shape \(4, 2\) here, not NoneType"),
        (lambda images: torch.tensor([[0.0, torch.nan]]).expand(len(images), 2), "score of 'b' is NaN"),
    ],
)
def test_the_output_of_a_namer_is_checked(output, message):
    def namer(images):
        return output(images)

    namer.words = ["a", "b"]
    with pytest.raises(LabelError, match=message):
        word_scores(namer, torch.zeros(4, 1, 8, 8))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("abc", TypeError, "words must be a list of strings, not 'abc'"),
        (["a", 1], TypeError, "words must be strings, not 1"),
        (["a", "b", "a"], LabelError, "words: 'a' is there twice"),
        ([], LabelError, "words must be 1 to 100000 words, not 0"),
        (["a", " "], LabelError, "1 to 200 printable characters, not ' '"),
        (["a\x1b[31m"], LabelError, "printable characters, not 'a␛"),
        (["a" * 300], LabelError, "1 to 200 printable characters"),
    ],
)
def test_words_are_checked(words, error, message):
    with pytest.raises(error, match=message):
        labels_from_scores(facet_set([0, 1]), np.zeros((2, len(words))), words)


def test_a_file_has_one_word_a_line(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# my words\nmarket stall\n\n  sliced pepper \r\nÄpfel\n", encoding="utf-8")
    assert read_words(path) == ("market stall", "sliced pepper", "Äpfel")
    path.write_text("a\nb\na\n")
    with pytest.raises(LabelError, match=r"words.txt: 'a' is there twice"):
        read_words(path)
    path.write_text("# nothing\n")
    with pytest.raises(LabelError, match=r"words.txt must be 1 to 100000 words, not 0"):
        read_words(path)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(LabelError, match="printable characters"):
        read_words(path)
    with pytest.raises(LabelError, match="can't be read as a list of words"):
        read_words(tmp_path / "none.txt")


def test_the_built_in_vocabulary_has_hundreds_of_distinct_words():
    words = common_words()
    assert 300 <= len(words) <= 600
    assert {"market stall", "stripes", "red", "wheel", "beach"} <= set(words)
    assert all(word == word.strip() and "  " not in word for word in words)


# Namers


def test_a_classifiers_words_are_checked_against_its_classes(digits_namer):
    model, spec = mfv.datasets.ten_digits(epochs=0)
    with pytest.raises(LabelError, match="words must name each of the 10 classes of the model, not 2"):
        ClassifierNamer(model, ["a", "b"], spec)
    with pytest.raises(LabelError, match="words are needed for a model of 10 classes"):
        ClassifierNamer(model, None, spec)
    with pytest.raises(LabelError, match=r"must return logits, \(N, n_classes\), not \(1, 96, 4, 4\)"):
        ClassifierNamer(model[:8], DIGITS, spec)


def test_a_classifier_of_1000_classes_has_the_names_of_imagenet():
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000))
    namer = ClassifierNamer(model)
    assert (namer.words[945], namer.words[7], len(set(namer.words))) == ("bell pepper", "cock", 1000)
    scores = namer(torch.rand(2, 3, 40, 40))
    assert scores.exp().sum(1).tolist() == pytest.approx([1, 1], rel=1e-4)
    assert not scores.requires_grad


def test_a_model_and_the_random_state_are_unchanged_by_a_namer(model, unchanged):
    from conftest import SPEC

    words = [str(i) for i in range(model.fc.out_features)]
    ClassifierNamer(model, words, SPEC)(torch.rand(2, 3, 32, 32, generator=torch.Generator()))


def scene(**shapes):
    """Return one image, (1, 3, 64, 64), white with black rectangles (top, bottom, left, right)."""
    image = torch.ones(1, 3, 64, 64)
    for top, bottom, left, right in shapes.values():
        image[..., top:bottom, left:right] = 0
    return image


MIDDLE, LEFT, LOW = (24, 40, 24, 40), (24, 40, 8, 24), (40, 56, 24, 40)
STRIPES = {f"s{i}": (i, i + 4, 0, 64) for i in range(0, 64, 8)}
PAIRS = [
    ("centered object", scene(a=MIDDLE), scene(a=LEFT)),
    ("object on the left", scene(a=LEFT), scene(a=MIDDLE)),
    ("object on the right", scene(a=LEFT).flip(3), scene(a=LEFT)),
    ("object at the bottom", scene(a=LOW), scene(a=MIDDLE)),
    ("object at the top", scene(a=LOW).flip(2), scene(a=LOW)),
    ("many objects", scene(a=LEFT, b=(24, 40, 44, 56), c=(50, 58, 30, 40)), scene(a=MIDDLE)),
    ("one object", scene(a=MIDDLE), scene(a=LEFT, b=(24, 40, 44, 56))),
    ("horizontal lines", scene(**STRIPES), scene(**STRIPES).transpose(2, 3)),
    ("vertical lines", scene(**STRIPES).transpose(2, 3), scene(**STRIPES)),
    ("diagonal lines", torch.eye(64).expand(1, 3, 64, 64), scene(**STRIPES)),
    ("left-right symmetry", scene(a=MIDDLE), scene(a=LEFT)),
    ("plain background", scene(a=MIDDLE), scene(**STRIPES)),
    ("white background", scene(a=MIDDLE), 1 - scene(a=MIDDLE)),
    ("black background", 1 - scene(a=MIDDLE), scene(a=MIDDLE)),
    ("fine detail", scene(**STRIPES), scene(a=(0, 32, 0, 64))),
    ("smooth", scene(a=(0, 32, 0, 64)), scene(**STRIPES)),
    ("bright", scene(a=MIDDLE), 1 - scene(a=MIDDLE)),
    ("dark", 1 - scene(a=MIDDLE), scene(a=MIDDLE)),
    ("high contrast", scene(a=MIDDLE), scene(a=MIDDLE) * 0.1 + 0.5),
    ("low contrast", scene(a=MIDDLE) * 0.1 + 0.5, scene(a=MIDDLE)),
    ("colorful", torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 8, 8), scene()),
    ("pale", scene(), torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 8, 8)),
]


@pytest.mark.parametrize(("word", "more", "less"), PAIRS, ids=[word for word, *_ in PAIRS])
def test_the_appearance_of_an_image_has_the_stated_words(word, more, less):
    namer = AppearanceNamer()
    column = namer.words.index(word)
    assert namer(more)[0, column] > namer(less)[0, column] + 0.01


def test_every_appearance_is_finite_and_defined():
    namer = AppearanceNamer()
    assert namer.words == tuple(APPEARANCE)
    for images in (torch.zeros(2, 3, 50, 70), torch.ones(1, 1, 8, 8), torch.rand(3, 3, 64, 64)):
        scores = namer(images)
        assert scores.shape == (len(images), len(APPEARANCE))
        assert scores.isfinite().all()
    with pytest.raises(ImageError, match=r"\(N, 1 or 3, H, W\), not \(1, 4, 8, 8\)"):
        namer(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("rgb", "color"),
    [
        ((255, 0, 0), "red"), ((178, 34, 34), "red"), ((255, 165, 0), "orange"), ((255, 255, 0), "yellow"),
        ((34, 139, 34), "green"), ((154, 205, 50), "green"), ((85, 107, 47), "green"), ((0, 206, 209), "cyan"),
        ((0, 0, 128), "blue"), ((65, 105, 225), "blue"), ((135, 206, 250), "blue"), ((128, 0, 128), "purple"),
        ((255, 192, 203), "pink"), ((255, 105, 180), "pink"), ((139, 69, 19), "brown"), ((101, 67, 33), "brown"),
        ((0, 0, 0), "black"), ((105, 105, 105), "gray"), ((192, 192, 192), "gray"), ((255, 255, 255), "white"),
    ],
)  # fmt: skip
def test_colors_of_css_have_their_common_name(rgb, color):
    image = (torch.tensor(rgb) / 255)[None, :, None, None].expand(1, 3, 8, 8)
    shares = AppearanceNamer()(image)[0, : len(REFERENCE_COLORS)]
    assert AppearanceNamer.words[int(shares.argmax())] == color


def test_concept_scores_are_those_of_cosy():
    rng = np.random.default_rng(5)
    control = rng.normal(size=200)
    found = concept_scores(control.mean() + 2 * control.std() + np.zeros(5), control)
    assert found.difference == pytest.approx(2)
    assert found.auc.value == pytest.approx((control < control.mean() + 2 * control.std()).mean())
    assert concept_scores(np.ones(2), np.ones(3)).difference is None
    with pytest.raises(LabelError, match="finite activations"):
        concept_scores(np.array([np.inf]), control)
