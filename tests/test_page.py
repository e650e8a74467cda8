"""The page in a browser: by mouse, by keyboard, without scripts, on a small screen."""

import html
import json
import re
import shutil
import textwrap

import numpy as np
import pytest
from conftest import accessibility, blocked_by_policy, in_browser, planted_images
from PIL import Image

from captum_mfv import Unit, models, report
from captum_mfv.attr import explained
from captum_mfv.errors import RunError
from captum_mfv.images import to_pil
from captum_mfv.jobs import RunSettings, run
from captum_mfv.jobs.evaluation import evaluate
from captum_mfv.metrics import Judge
from captum_mfv.report.charts import plane, sparkline, strip
from captum_mfv.report.compare import matched
from captum_mfv.report.publication import publish
from captum_mfv.report.templates import data_url, environment, small_url
from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.writer import RunWriter
from captum_mfv.storage.untrusted import visible

MODEL = """
    import torch
    from torch import nn
    from captum_mfv import InputSpec

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = {"conv": nn.Conv2d(3, 12, 5, 2, 2), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1),
                      "flat": nn.Flatten(), "<b>logits</b>\\u202e": nn.Linear(12, 5)}
            model = nn.Sequential()
            for name, layer in layers.items():
                model.add_module(name, layer)
        return model, InputSpec(32)
"""

NAMES = [
    "<img src=x onerror=hacked=1>.png",
    "</script><script>hacked=1</script>.png",
    "'\" onload=hacked=1 '.png",
    "two\nlines.png",
    "שלום \u202egnp.png",
    "🫑 {{ 7 * 7 }} &amp;.png",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a finished and evaluated run with hostile file, layer and model names."""
    root = tmp_path_factory.mktemp("page")
    (root / "<i>model.py").write_text(textwrap.dedent(MODEL))
    for i, image in enumerate(planted_images(10)[0]):
        path = root / "images" / (NAMES[i // 5] if i % 5 == 0 else f"{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path)
    job = RunSettings(f"{root}/<i>model.py:make", "<b>logits</b>\u202e:1", f"{root}/images", facets=3, steps=5)
    found = run(job, root / "run")
    model, spec = models.load(job.model)
    evaluate(found, Judge(model, Unit("<b>logits</b>\u202e", 2), input_spec=spec), judge_name="<b>judge")
    return found


def page_of(folder):
    return folder.path / "report.html"


@in_browser
@pytest.mark.parametrize("width", [1440, 400])
def test_the_pictures_come_first_then_the_unit_then_how_sure_it_is(width, folder, visit):
    page = visit(page_of(folder), width)
    titles = ["What it shows", "How sure is it?", "Each facet", "Map of the images"]
    assert page.locator("h2").all_inner_texts()[:4] == titles
    pairs = page.locator(".pairs li")
    assert pairs.locator("img").count() == 3 * (1 + 4) + 1
    made, real = (pairs.first.locator("img").nth(n).bounding_box() for n in (0, 1))
    assert made["width"] > 1.9 * real["width"]
    assert made["y"] + made["height"] < 900
    terms = page.locator("#main em").all_inner_texts()
    assert {"unit", "activation", "facet", "codes", "stability", "retention", "center"} <= set(terms)
    pairs.nth(1).get_by_role("link").click()
    assert page.evaluate("location.hash") == "#facet-1"


@in_browser
def test_hovering_over_the_map_shows_the_image_and_clicking_selects_its_facet(folder, visit):
    page = visit(page_of(folder))
    tip = page.locator(".tip")
    assert tip.is_hidden()
    dot = page.locator("a.dot").last  # not covered by another dot
    dot.hover()
    row, facet = dot.get_attribute("data-row"), dot.get_attribute("data-facet")
    assert tip.locator(".badge").inner_text() == facet
    assert tip.locator("bdi").inner_text() == dot.get_attribute("data-name")
    assert tip.locator("img").get_attribute("src") == page.locator(f"#image-{row}").get_attribute("src")
    dot.click()
    assert page.evaluate("location.hash") == f"#facet-{facet}"
    assert page.evaluate("document.activeElement.id") == f"facet-{facet}"
    page.mouse.move(2, 2)
    assert tip.is_hidden()


@in_browser
def test_the_map_is_one_tab_stop_with_arrow_keys(folder, visit):
    page = visit(page_of(folder))
    assert page.locator("a.dot[tabindex='0']").count() == 1
    page.locator("a.dot[tabindex='0']").focus()
    assert page.locator(".tip").is_visible()
    seen = set()
    for key in ["Home", *["ArrowRight"] * 4, *["ArrowDown"] * 4, *["ArrowLeft"] * 4, "ArrowUp", "End"]:
        page.keyboard.press(key)
        seen.add(page.evaluate("document.activeElement.dataset.row"))
        assert page.locator("a.dot[tabindex='0']").count() == 1
    assert len(seen) > 5
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()
    facet = page.evaluate("document.activeElement.dataset.facet")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == f"facet-{facet}"


@in_browser
def test_hovering_over_the_legend_highlights_the_facets_images_on_the_map(folder, visit):
    page = visit(page_of(folder))
    page.locator("[data-key='1']").hover()
    lit = page.locator("a.dot.lit")
    assert lit.count() == page.locator("a.dot[data-facet='1']").count()
    assert page.locator("svg.one").count() == 1
    page.mouse.move(2, 2)
    assert page.locator("svg.one").count() == 0


@in_browser
def test_attributions_are_overlaid_on_one_card_or_on_all(folder, visit):
    page = visit(page_of(folder))
    first, second = page.locator("#facet-0"), page.locator("#facet-1")
    button = first.get_by_role("button", name="attribution")
    shown = first.locator(".members .overlay").first
    assert (first.locator(".layer").is_visible(), shown.is_visible()) == (False, False)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert (first.locator(".layer").is_visible(), shown.is_visible()) == (True, True)
    assert second.locator(".layer").is_hidden()
    button.press("Enter")
    assert (first.locator(".layer").is_visible(), shown.is_visible()) == (False, False)
    everywhere = page.get_by_role("button", name="Show attributions on all")
    everywhere.click()
    assert second.locator(".members .overlay").last.is_visible()
    everywhere.press(" ")
    assert second.locator(".layer").is_hidden()


@in_browser
@pytest.mark.parametrize(("name", "left"), [("start", "start"), ("no facets", "no facets")])
def test_a_slider_compares_the_image_with_its_start_and_with_the_baseline(name, left, folder, visit):
    page = visit(page_of(folder))
    card = page.locator("#facet-1")
    slider = card.locator("input[type=range]")
    assert slider.is_hidden()
    card.get_by_role("button", name=name).click()
    assert card.locator(".side.left").inner_text() == left
    wanted = "#plain" if name == "no facets" else "#facet-1 [data-show=start] img"
    assert card.locator(".layer").get_attribute("src") == page.locator(wanted).get_attribute("src")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    clip = card.locator(".layer").evaluate("layer => getComputedStyle(layer).clipPath")
    assert clip == "inset(0px 40% 0px 0px)"
    box = card.locator(".frame").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + 40)
    assert int(slider.input_value()) == pytest.approx(25, abs=3)


@in_browser
def test_the_command_is_copied_as_it_was_given(folder, visit):
    page = visit(page_of(folder), permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == folder.settings["command"]


@in_browser
@pytest.mark.parametrize(("kind", "width"), [("run", 1440), ("run", 400), ("compared", 1440), ("compared", 400)])
def test_the_page_has_no_accessibility_violations(kind, width, folder, visit, tmp_path):
    violations = accessibility()
    path = page_of(folder) if kind == "run" else report.compare([folder, folder], tmp_path / "compare.html")
    page = visit(path, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for summary in page.locator("summary").all():
        summary.click()
    if kind == "run":
        page.locator("#facet-0").get_by_role("button", name="start").click()
        page.locator("a.dot[tabindex='0']").focus()
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page, "color-contrast") == []


@in_browser
def test_hostile_names_are_escaped_and_never_executed(folder, visit):
    page = visit(page_of(folder))
    shown = page.locator("body").inner_text() + json.dumps(
        page.locator("[alt]").evaluate_all("all => all.map(one => one.alt)"), ensure_ascii=False
    )
    for name in NAMES:
        text = name.replace("\n", "␊")
        assert text in shown or json.dumps(text, ensure_ascii=False)[1:-1] in shown
    assert "<b>logits</b>" in page.locator("h1").inner_text()
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("script").count() == 1
    assert page.locator("[onerror], [onload], h1 b").count() == 0
    assert page.locator("h1 bdi").count() == 1


@in_browser
def test_the_content_security_policy_blocks_requests_and_other_scripts(folder, browser):
    refused, hacked = blocked_by_policy(browser, page_of(folder))
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    assert hacked == "undefined"


@in_browser
def test_without_scripts_the_page_shows_everything(folder, visit):
    page = visit(page_of(folder), java_script_enabled=False)
    card = page.locator("#facet-0")
    assert card.locator(".members .overlay").first.is_visible()
    assert card.locator("[data-show=start] img").is_visible()
    assert page.locator("#plain").is_visible()
    assert page.get_by_role("button", name="Copy").count() == 0
    page.locator("a.dot").last.click()
    assert "#facet-" in page.url


@in_browser
def test_a_published_run_has_no_real_image_and_no_name_of_one(folder, tmp_path, visit):
    sizes = publish(folder, tmp_path / "site", license="CC BY 4.0")
    assert sizes.keys() == {"index.html", "publication.json"}
    text = html.unescape(b"".join((tmp_path / "site" / name).read_bytes() for name in sizes).decode())
    names = [member["path"] for row in folder.read_members() for member in row["members"]]
    assert [name for name in names if visible(name) in text] == []
    assert str(folder.path.parent) not in text
    page = visit(tmp_path / "site" / "index.html")
    sources = set(page.locator("img[src]").evaluate_all("all => all.map(one => one.src)"))
    facets = folder.read_facets()
    made = [to_pil(image) for image in [*folder.read_images(facets), folder.read_baseline()]]
    overlays = [to_pil(folder.read_overlay(facet.index)) for facet in facets]
    assert sources == {url for image in [*made, *overlays] for url in (data_url(image), small_url(image))} - {
        data_url(overlay) for overlay in overlays
    }
    page.get_by_role("button", name="no facets").first.click()
    page.get_by_role("button", name="Show attributions on all").click()
    assert page.locator(".members, .map, [data-show=start]").count() == 0
    assert page.locator(".pairs.alone").count() == 1
    assert "beside" not in page.locator(".lead").inner_text()


def test_a_run_of_an_older_version_without_baseline_and_intervals_has_a_page(folder, tmp_path):
    old = RunWriter.read(shutil.copytree(folder.path, tmp_path / "old"))
    (old.path / "images" / "plain.png").unlink()
    shutil.rmtree(old.path / "attributions")
    rows = old.read_members()
    for row in rows:
        del row["stability_interval"]
    old.write_json("facets.json", rows)
    old.write_metrics(
        "run", {name: old.read_metrics()[name] for name in old.read_metrics().keys() - {"plain", "judge"}}
    )
    old.write_metrics("judge", {})
    page = report.build(old).read_text()
    assert 'id="plain"' not in page
    assert 'data-show="attribution"' not in page
    assert "not evaluated" in page


def test_the_page_states_the_explained_quantity(folder):
    assert visible(explained(folder.read_facets())) in html.unescape(page_of(folder).read_text())


def test_each_facet_has_an_interval_that_contains_its_stability(folder):
    for row in folder.read_members():
        low, high = row["stability_interval"]
        assert 0 <= low <= row["stability"] <= high <= 1
        assert f"{low:.2f} to {high:.2f}" in page_of(folder).read_text()


def test_the_baseline_image_is_of_the_unit_and_has_a_nearest_facet(folder):
    plain = folder.read_metrics()["plain"]
    assert plain.keys() == {"activation", "percentile", "nearest_facet"}
    assert folder.read_baseline().shape == (3, 32, 32)
    text = " ".join(page_of(folder).read_text().split())
    assert "maximized from noise, as Lucent does by default, in as many steps" in text


def test_ten_facets_of_the_largest_images_stay_below_15_mb():
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(512, 512, 3), dtype=np.uint8))
    assert data_url(noise).startswith("data:image/webp")
    large = len(data_url(noise)) + 2 * len(small_url(noise, 2048)) + len(small_url(noise, 224))
    assert 10 * (large + 66 * len(small_url(noise))) < 15e6
    small = Image.new("RGB", (32, 32))
    assert data_url(small).startswith("data:image/png")


def test_the_strip_extends_to_the_image_up_to_twice_the_real_range():
    real = np.linspace(10, 20, 50)
    near, far = strip(real, [24.0]), strip(real, [24.0, 500.0])
    assert (near.low, near.high, near.mark(24.0)) == (10, 24, 300)
    assert (far.high, far.mark(500.0)) == (30, 300)
    assert near.path(real) == near.bars
    assert near.path(real[:0]) == ""


def test_charts_accept_missing_values():
    assert sparkline(np.array([1.0])) == "0.0,30.0"
    assert sparkline(np.array([np.nan, 0.0, 1.0])) == "0.0,30.0 240.0,0.0"
    embedding = np.array([[0.0, 0.0], [1.0, 1.0], [np.nan, np.nan], [2.0, 0.0]])
    drawn = plane(embedding, np.array([0, 0, -1, 1]), ["a", "b", "c", "d"], np.ones(4))
    assert [(point.name, point.facet) for point in drawn["points"]] == [("a", 0), ("b", 0), ("d", 1)]
    assert [place.facet for place in drawn["places"]] == [0, 1]
    assert all(0 < point.x < drawn["width"] and 0 < point.y < drawn["height"] for point in drawn["points"])
    assert len(plane(np.zeros((1, 1)), np.zeros(1, int), ["a"], np.ones(1))["points"]) == 1


def test_seventy_facets_differ_in_color_or_shape_on_cards_and_map():
    macros = environment().get_template("macros.html").module
    badges = [re.sub(r">\d+<", "><", macros.badge(index)) for index in range(70)]
    assert len(set(badges)) == 70
    hue, shape = (environment().filters[name] for name in ("hue", "shape"))
    assert len({(hue(index), shape(index)) for index in range(70)}) == 70


def test_facets_are_paired_to_maximize_the_sum_of_overlaps():
    assert matched(np.array([[0.6, 0.5], [0.5, 0.0]])) == {0: 1, 1: 0}
    assert matched(np.array([[0.6, 0.0, 0.0], [0.0, 0.0, 0.0]])) == {0: 0}


def test_runs_are_compared_by_settings_and_by_images_that_facets_share(folder, tmp_path):
    other = RunWriter.read(shutil.copytree(folder.path, tmp_path / "other"))
    rows = other.read_members()
    rows[0]["members"], rows[2]["members"] = rows[2]["members"], rows[0]["members"]
    rows[1]["members"] = [{**member, "path": f"else/{member['path']}"} for member in rows[1]["members"]]
    other.write_json("facets.json", rows)
    other.manifest["settings"] = {**other.settings, "seed": 7}
    page = report.compare([folder, other], tmp_path / "new" / "compare.html").read_text()
    start, end = page.index("Settings that differ"), page.index("settings that are equal")
    assert ">seed<" in page[start:end]
    assert "recipe" not in page[start:end].replace("report", "")
    cells = page[page.index('id="facets-title"') :].split("<tr>")
    order = [cell.split("Image of facet ")[1:] for cell in cells if "Image of facet" in cell]
    assert [[int(cell[0]) for cell in row] for row in order] == [[0, 2], [1], [2, 0], [1]]
    assert page.count("overlap 1.00") == 2
    assert "Nearest to their own facet: start images" in page
    assert re.search(r"\d\.\d\d \(\d\.\d\d to \d\.\d\d\)", page)


def test_wrong_runs_to_compare_are_an_error(folder, tmp_path):
    with pytest.raises(RunError, match="at least two runs"):
        report.compare([folder], tmp_path / "compare.html")
    stopped = RunFolder(folder.path, {**folder.manifest, "status": "running"})
    with pytest.raises(RunError, match="isn't finished"):
        report.compare([folder, stopped], tmp_path / "compare.html")
    assert not (tmp_path / "compare.html").exists()
