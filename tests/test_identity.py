"""Fingerprints, which identify stored results."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import small_cnn
from torch import nn
from torch.utils.data import Subset, TensorDataset

from captum_mfv.errors import RunError
from captum_mfv.storage.identity import (
    check_same,
    content_fingerprint,
    dataset_fingerprint,
    fingerprint,
    weights_fingerprint,
)

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OTHERS = IMAGES.flip(0)


@dataclass
class Settings:
    size: int
    names: tuple[str, ...] = ("a", "b")


def test_equal_parts_have_equal_fingerprints_in_any_order_and_container():
    found = fingerprint(settings=Settings(3), seed=np.int64(1), mean=np.float32(0.5))
    assert found == fingerprint(mean=0.5, seed=1, settings={"names": ["a", "b"], "size": 3})
    assert found == "8dcb3e55ae95bf66882ed53bc4f0366c", "the format changed: raise FORMAT"


@pytest.mark.parametrize("other", [{"a": 2}, {"a": None}, {"a": "1"}, {"b": 1}, {"a": 1, "b": None}, {"a": [1]}])
def test_different_parts_have_different_fingerprints(other):
    assert fingerprint(a=1) != fingerprint(**other)


@pytest.mark.parametrize("value", [np.zeros(3), lambda x: x, {(1, 2): 2}, Settings, b"x"])
def test_values_without_a_canonical_form_raise_an_error(value):
    with pytest.raises(TypeError, match=r"can't be part of a fingerprint|keys must be str"):
        fingerprint(options={"code": [1, value]})


def test_the_parts_that_differ_are_named():
    with pytest.raises(
        RunError,
        match=r"rows holds another pass \(unit 2 there, 1 here, extra 3 there, None here\); choose another folder",
    ):
        check_same(
            {"unit": 2, "seed": 0, "extra": 3},
            {"unit": 1, "seed": 0},
            "rows holds another pass",
            "choose another folder",
        )
    check_same({"seed": 0}, {"seed": 0}, "", "")


def test_a_models_fingerprint_depends_on_weights_buffers_precision_and_module_classes():
    wanted = weights_fingerprint(small_cnn())
    assert weights_fingerprint(small_cnn().train()) == wanted
    others = [small_cnn(seed=1), small_cnn().double(), small_cnn(), small_cnn()]
    others[2].bn1.running_mean[0] += 1
    others[3].relu1 = nn.GELU()
    assert len({wanted, *map(weights_fingerprint, others)}) == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda images: images,
        lambda images: images.numpy(),
        list,
        lambda images: [(image, 0) for image in images],
        TensorDataset,
        lambda images: Subset(TensorDataset(images), [2, 0]),
        lambda images: images.transpose(2, 3).contiguous().transpose(2, 3),
    ],
)
def test_datasets_in_memory_are_recognized_by_content(make):
    assert dataset_fingerprint(make(IMAGES)) == dataset_fingerprint(make(IMAGES.clone()))
    assert dataset_fingerprint(make(IMAGES)) != dataset_fingerprint(make(OTHERS))


def test_a_datasets_fingerprint_depends_on_shape_and_type():
    assert content_fingerprint(IMAGES) == content_fingerprint(IMAGES.numpy())
    others = [IMAGES.flatten(), IMAGES.view(torch.int32), IMAGES.bfloat16()]
    assert len({content_fingerprint(array) for array in [IMAGES, *others]}) == 4
    with pytest.raises(TypeError, match="not an array of object"):
        content_fingerprint(np.array([IMAGES, None], dtype=object))


class Photos:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return IMAGES[index]


def test_a_dataset_without_a_fingerprint_needs_a_key():
    for images in (Photos(), Subset(Photos(), [0]), iter(())):
        with pytest.raises(RunError, match=r"has no fingerprint.*give key="):
            dataset_fingerprint(images)
    found = dataset_fingerprint(Photos(), "photos 1")
    assert found == dataset_fingerprint(Photos(), "photos 1") != dataset_fingerprint(Photos(), "photos 2")
    with pytest.raises(TypeError, match="key must be a string, not int"):
        dataset_fingerprint(Photos(), 1)


def test_a_dataset_may_declare_its_fingerprint():
    text, method = Photos(), Photos()
    text.fingerprint, method.fingerprint = "photos of June", lambda: "photos of June"
    assert dataset_fingerprint(text) == dataset_fingerprint(method) == "photos of June"
    assert dataset_fingerprint(text, "again") not in ("photos of June", dataset_fingerprint(Photos(), "again"))
    text.fingerprint = 7
    with pytest.raises(TypeError, match="must be a string, not of type int"):
        dataset_fingerprint(text)


def test_a_function_that_describes_images_needs_a_key():
    with pytest.raises(RunError, match=r"the code function describe has no fingerprint.*give key="):
        dataset_fingerprint(describe)
    assert dataset_fingerprint(describe, "1") != dataset_fingerprint(describe, "2")


def describe(images):
    return images.flatten(1)
