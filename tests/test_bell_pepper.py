"""Real images and a real network: comparison with the facets that the paper's authors found with another network."""

import json
import warnings

import numpy as np
import pytest
from conftest import DATA, needs_data
from sklearn.metrics import adjusted_rand_score

from captum_mfv import FacetFinder, ImageFolder, Unit, models
from captum_mfv.activations.codes import collect
from captum_mfv.facets import cluster

pytestmark = needs_data


@pytest.fixture(scope="module")
def pepper():
    model, spec = models.load("squeezenet1_0", DATA / "squeezenet1_0_imagenet.safetensors")
    images = ImageFolder(DATA / "bell_pepper" / "images", spec)
    groups = json.loads((DATA / "bell_pepper" / "authors_facets.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every image can be read
        collection = collect(model, Unit("classifier.1", 945), images, input_spec=spec)
    return collection, [groups[images.name(i)] for i in range(len(images))]


def test_the_code_is_the_last_map_before_the_logits(pepper):
    assert pepper[0].code.layer == "features.12"
    assert pepper[0].codes.shape == (150, 512)
    assert (pepper[0].activations > 0).mean() > 0.95


def test_the_papers_pipeline_finds_the_authors_facets(pepper):
    collection, known = pepper
    index = [
        adjusted_rand_score(known, cluster(collection, FacetFinder(10, random_state=seed)).labels) for seed in range(3)
    ]
    assert np.mean(index) >= 0.5
