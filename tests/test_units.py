import numpy as np
import pytest
import torch

from captum_mfv import Code, Unit
from captum_mfv.errors import UnitError
from captum_mfv.jobs.atlas.plan import parse_units

MAP = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
TOKENS = torch.arange(2 * 5 * 3.0).view(2, 5, 3)


@pytest.mark.parametrize(
    ("reduce", "output", "expected"),
    [
        ("mean", MAP, MAP[:, 1].mean((1, 2))),
        ("max", MAP, MAP[:, 1].amax((1, 2))),
        ("center", MAP, MAP[:, 1, 2, 2]),
        ("mean", TOKENS, TOKENS[:, :, 1].mean(1)),
        ("max", TOKENS, TOKENS[:, :, 1].amax(1)),
        ("cls", TOKENS, TOKENS[:, 0, 1]),
        ("mean", MAP[..., 0, 0], MAP[:, 1, 0, 0]),
    ],
)
def test_a_unit_reads_its_channel_from_maps_tokens_and_vectors(reduce, output, expected):
    assert torch.equal(Unit("layer", 1, reduce).read(output), expected)


def test_a_direction_is_a_weighted_sum_of_channels():
    weights = torch.tensor([1.0, -2.0, 0.5])
    assert torch.allclose(Unit("layer", weights).read(MAP), MAP.mean((2, 3)) @ weights)


def test_layer_colon_index_is_lucents_notation():
    assert Unit.parse("features.12:37") == Unit("features.12", 37)
    assert str(Unit.parse("features.12:37")) == "features.12:37"


@pytest.mark.parametrize("text", ["", "features.12", "features.12:", ":3", "features.12:x", "features.12:-1", "a:²"])
def test_text_other_than_layer_colon_index_is_an_error(text):
    with pytest.raises(UnitError, match="LAYER:INDEX"):
        Unit.parse(text)


@pytest.mark.parametrize("unit", [None, ("fc", 1), 3, torch.nn.Linear(1, 1)])
def test_other_types_than_units_raise_a_type_error_with_an_example(unit):
    with pytest.raises(TypeError, match="unit must be a Unit or 'LAYER:INDEX'"):
        Unit.parse(unit)
    with pytest.raises(TypeError, match=r"'LAYER:REDUCE'|dotted name"):
        Code.parse(unit if unit is not None else [])


@pytest.mark.parametrize("index", [np.int64(3), torch.tensor(3), 3])
def test_an_integer_of_any_kind_is_an_index(index):
    assert Unit("layer", index).index == 3


@pytest.mark.parametrize(("index", "error"), [(True, TypeError), ("3", TypeError), (1.5, TypeError), (None, TypeError)])
def test_an_index_of_another_type_is_a_type_error(index, error):
    with pytest.raises(error, match="index"):
        Unit("layer", index)


@pytest.mark.parametrize("index", [-1, [], [1.0, float("nan")]])
def test_negative_empty_and_nonfinite_indices_are_an_error(index):
    with pytest.raises(UnitError):
        Unit("layer", index)


def test_the_error_for_a_missing_channel_has_the_range():
    with pytest.raises(UnitError, match="units 0 to 2; there is no unit 7"):
        Unit("layer", 7).read(MAP)
    with pytest.raises(UnitError, match="takes 3 weights"):
        Unit("layer", [1.0, 2.0]).read(MAP)


@pytest.mark.parametrize(("reduce", "output"), [("center", TOKENS), ("cls", MAP), ("mean", MAP[None])])
def test_a_reduction_that_does_not_fit_the_output_is_an_error(reduce, output):
    with pytest.raises(UnitError):
        Unit("layer", 0, reduce).read(output)


def test_a_code_is_pooled_or_flattened():
    assert torch.equal(Code("layer").read(MAP), MAP.mean((2, 3)))
    assert Code("layer", "flatten").read(MAP).shape == (2, 48)
    assert torch.equal(Code("layer").read(MAP[..., 0, 0]), MAP[..., 0, 0])
    with pytest.raises(UnitError, match="flatten"):
        Code("layer", "median")


def test_a_file_of_numpy_is_a_direction(tmp_path):
    np.save(tmp_path / "cav.npy", np.array([0.5, -1.0], np.float32))
    unit = Unit.parse(f"features.12:{tmp_path / 'cav.npy'}")
    assert (unit.layer, unit.index, str(unit)) == ("features.12", (0.5, -1.0), "features.12:direction[2]")


def test_the_path_of_a_direction_may_begin_with_a_drive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("C:cav.npy", np.array([0.5, -1.0], np.float32))  # here, the name of a file in this folder
    wanted = Unit("fc", (0.5, -1.0))
    assert Unit.parse("fc:C:cav.npy") == wanted
    assert list(parse_units("fc:C:cav.npy,3")) == [wanted, Unit("fc", 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"short", "isn't a direction"),
        (np.zeros((2, 2)), r"holds float64 \(2, 2\), not a vector"),
        (np.array(["a"]), "not an array of integers"),
        (np.array([{}], object), "isn't a direction"),
        (np.array([np.nan]), "finite"),
    ],
)
def test_a_file_that_holds_no_direction_is_an_error(content, message, tmp_path):
    path = tmp_path / "cav.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(UnitError, match=message):
        Unit.parse(f"fc:{path}")
