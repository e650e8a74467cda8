"""Mutated input of every kind: it is used or refused by name, and nothing outside its folder is opened."""

import warnings

import pytest
from conftest import needs_pickles
from fuzz_targets import targets
from hypothesis import HealthCheck, Phase, given, settings

from captum_mfv.errors import MFVWarning

EXAMPLES = {"run folders": 25, "run folders: evaluate": 25, "run folders: go on": 25, "images": 150}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MFVWarning)  # of two steps, which gain nothing
        return {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


@pytest.mark.filterwarnings("ignore")  # decoders' and numpy's, of bytes that mean nothing
@pytest.mark.parametrize(
    "name",
    [
        "images",
        "weights: safetensors",
        pytest.param("weights: pickles", marks=needs_pickles),
        "facet sets",
        "recipes",
        "configs",
        "run folders",
        "run folders: evaluate",
        "run folders: go on",
    ],
)
def test_whatever_comes_is_used_or_refused_by_name_and_nothing_else_is_opened(found, name):
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
