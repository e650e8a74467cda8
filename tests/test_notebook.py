"""Representations in notebooks: HTML, parsed as in a browser, and PNG."""

import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from captum_mfv import Code, Unit
from captum_mfv.display.notebook import swatch
from captum_mfv.optvis.render import Rendering

NASTY = '<script>alert("1")</script>\n‮&amp;🫑'


class Seen(HTMLParser):
    """Tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += f"{data}|"


def rendering(facets, image=None, **changes):
    image = torch.rand(3, 500, 400, generator=torch.Generator().manual_seed(0)) if image is None else image
    made = Rendering(
        facet=facets[1],
        image=image,
        start=image,
        history={"activation": np.array([1, 2.5], np.float32), "code": np.array([np.nan, -1], np.float32)},
        seed=7,
        recipe="facet",
        transparency=torch.ones(image.shape[1:]),
    )
    return replace(made, **changes)


def test_a_facet_set_shows_a_row_for_each_facet(facets):
    seen = Seen(facets._repr_html_())
    assert seen.tags.count("tr") == 1 + 3
    assert "3 facets of fc:1 in 60 images, code relu2, 100.0% nearest to their own center" in seen.text
    for facet in facets:
        assert f"|{facet.index}|{len(facet)}|{facet.activations.mean():.3g}|{facet.stability:.2f}|" in seen.text
    alone = Seen(replace(facets, stability=None, p_value=0.003)._repr_html_())
    assert "p = 0.003" in alone.text


def test_facets_differ_in_color_or_shape():
    assert len({swatch(index, "") for index in range(70)}) == 70


def test_a_rendering_shows_its_image_start_and_history(facets):
    seen = Seen(rendering(facets)._repr_html_())
    assert "facet 1 of fc:1: recipe facet, seed 7|" in seen.text
    assert "|1 → 2.5|-1 → -1|" in seen.text
    sources = [value for name, value in seen.attributes if name == "src"]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "interrupted" in rendering(facets, complete=False)._repr_html_()
    with Image.open(io.BytesIO(rendering(facets)._repr_png_())) as image:
        assert image.size == (400, 500)


@pytest.mark.parametrize(
    "html",
    [
        lambda facets: replace(facets, unit=Unit(NASTY, 1), code=Code(NASTY))._repr_html_(),
        lambda facets: rendering(facets, recipe=NASTY, history={NASTY: np.zeros(2, np.float32)})._repr_html_(),
    ],
)
def test_names_are_escaped_and_never_executed(html, facets):
    seen = Seen(html(facets))
    assert NASTY in seen.text
    assert set(seen.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "span", "img"}
    assert not [name for name, _ in seen.attributes if name not in ("style", "scope", "src", "alt")]


@pytest.mark.parametrize(
    "image",
    [torch.rand(1, 8, 8), torch.rand(5, 8, 8), torch.full((3, 8, 8), torch.nan), torch.rand(3, 1, 900)],
    ids=["gray", "five channels", "nan", "a line"],
)
def test_any_image_is_shown_or_described(image, facets):
    odd = rendering(facets, image)
    assert (odd._repr_png_() is None) == (len(image) == 5)
    assert ("|facet 1|facet 1, start|" in Seen(odd._repr_html_()).text) == (len(image) == 5)
