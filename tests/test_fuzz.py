"""Mutated input of every kind is accepted or raises an `MFVError`, and no file outside its folder is opened."""

import warnings

import pytest
from conftest import needs_pickles, posix
from fuzz_targets import targets
from hypothesis import HealthCheck, Phase, given, settings

from captum_mfv.errors import MFVWarning

pytestmark = posix

EXAMPLES = {"run folders": 25, "run folders: evaluate": 25, "run folders: resume": 15, "images": 150}
EXAMPLES |= {"atlas folders": 30, "atlas folders: resume": 10, "run folders: label": 20, "atlas folders: label": 20}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MFVWarning)  # two steps gain no activation
        return {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


@pytest.mark.filterwarnings("ignore")  # warnings of decoders and NumPy about random bytes
@pytest.mark.parametrize(
    "name",
    [
        "images",
        "images: .npy",
        "images: .tif",
        "weights: safetensors",
        pytest.param("weights: pickles", marks=needs_pickles),
        "facet sets",
        "recipes",
        "configs",
        "run folders",
        "run folders: evaluate",
        "run folders: label",
        "run folders: resume",
        "atlas folders",
        "atlas folders: label",
        "atlas folders: resume",
    ],
)
def test_any_input_is_accepted_or_raises_an_mfv_error_and_no_other_file_is_opened(found, name):
    target, accepted = found[name], []

    @settings(
        max_examples=EXAMPLES.get(name, 100),
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def once(value):
        accepted.append(target.accepts(value))

    once()
    assert 0 < sum(accepted) < len(accepted)
