import json
import pickle
import sys
import textwrap
from contextlib import nullcontext

import pytest
import torch
from conftest import needs_pickles
from safetensors.torch import save_file
from torch import nn
from torch.torch_version import TorchVersion

from captum_mfv import InputSpec, models
from captum_mfv.errors import ModelError

SOURCE = """
    import torch
    from beside import WIDTH
    from captum_mfv import InputSpec

    def make():
        return torch.nn.Linear(WIDTH, 2)

    def make_with_spec():
        return make(), InputSpec(8, (0.5,), (0.5,))

    def broken():
        raise RuntimeError("on\\npurpose")

    def wrong():
        return 3

    number = 3
"""

POSTPONED = """
    from __future__ import annotations
    from dataclasses import dataclass
    import torch

    @dataclass
    class Config:
        width: int = 4

    def make():
        return torch.nn.Linear(Config().width, 2)
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(SOURCE))
    return path


def test_a_function_in_a_file_returns_a_model_and_its_input_spec(source):
    model, spec = models.load(f"{source}:make")
    assert isinstance(model, nn.Linear)
    assert not model.training
    assert spec == InputSpec()
    assert models.load(f"{source}:make_with_spec")[1] == InputSpec(8, (0.5,), (0.5,))


def test_a_file_with_postponed_annotations_and_a_dataclass_loads(tmp_path):
    path = tmp_path / "json.py"  # has the name of a Python module, which must not change
    path.write_text(textwrap.dedent(POSTPONED))
    assert models.load(f"{path}:make")[0].in_features == 4
    assert sys.modules["json"] is json
    modules = set(sys.modules)
    (tmp_path / "fails.py").write_text("raise RuntimeError")
    with pytest.raises(ModelError, match="RuntimeError"):
        models.load(f"{tmp_path / 'fails.py'}:make")
    assert set(sys.modules) == modules


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "failed with RuntimeError"),
        ("wrong", "must return a torch.nn.Module"),
        ("number", "no function"),
        ("x", "no function"),
    ],
)
def test_a_function_that_returns_no_model_is_an_error(source, function, message):
    with pytest.raises(ModelError, match=message):
        models.load(f"{source}:{function}")


@needs_pickles
def test_weights_are_loaded_from_safetensors_or_from_pickles_of_tensors_only(source, tmp_path):
    state = {"weight": torch.ones(2, 4), "bias": torch.zeros(2)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        model, _ = models.load(f"{source}:make", tmp_path / name)
        assert torch.equal(model.weight, state["weight"])


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"PK\x03\x04 not safetensors", "isn't a safetensors file"),
        ("w.safetensors", b"", "isn't a safetensors file"),
        pytest.param("w.pth", pickle.dumps(Evil()), "tensors alone", marks=needs_pickles),
        pytest.param("w.pt", b"\x80garbage", "tensors alone", marks=needs_pickles),
        pytest.param("w.bin", b"", "tensors alone", marks=needs_pickles),
        ("w.pth", None, "no weights file"),
    ],
)
def test_files_that_are_not_weights_are_an_error_and_are_never_executed(source, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        models.load(f"{source}:make", tmp_path / name)


@pytest.mark.parametrize(
    ("version", "safe"), [("2.6.0", False), ("2.9.1+cu128", False), ("2.10.0", True), ("2.11", True)]
)
def test_pickles_are_an_error_in_versions_of_pytorch_with_an_unsafe_reader(
    source, tmp_path, monkeypatch, version, safe
):
    torch.save({"weight": torch.ones(2, 4), "bias": torch.zeros(2)}, tmp_path / "w.pth")
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    with nullcontext() if safe else pytest.raises(ModelError, match=r"known holes.*safetensors.*2\.10"):
        models.load(f"{source}:make", tmp_path / "w.pth")


def test_errors_for_weights_of_another_model_name_the_difference(source, tmp_path):
    save_file({"weight": torch.ones(3, 4), "extra": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"lacking bias; unknown extra; of another shape weight"):
        models.load(f"{source}:make", tmp_path / "w.safetensors")


def test_the_error_for_an_unknown_name_lists_the_nearest():
    with pytest.raises(ModelError, match="resnet50"):
        models.load("resnet5O", None)
    with pytest.raises(ModelError, match="no file"):
        models.load("nowhere.py:make")
    with pytest.raises(ModelError, match="ModuleNotFoundError"):
        models.load("no.such.module:make")


def test_torchvision_models_have_their_input_size(tmp_path):
    import torchvision.models

    save_file(torchvision.models.get_model("squeezenet1_1").state_dict(), tmp_path / "w.safetensors")
    state = torch.get_rng_state()
    model, spec = models.load("squeezenet1_1", tmp_path / "w.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert (type(model).__name__, spec) == ("SqueezeNet", InputSpec(224, crop_fraction=224 / 256))


def test_torchvision_models_have_their_resize_size_and_interpolation():
    _, spec = models.load("swin_t", pretrained=False)
    assert (spec.size, spec.short_side, spec.interpolation) == (224, 232, "bicubic")
