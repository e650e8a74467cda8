"""The page of an atlas in a browser: wall, table, map, a unit; by mouse, by keyboard, by address."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import accessibility, blocked_by_policy, in_browser
from PIL import Image
from safetensors.numpy import save_file

from captum_mfv import AtlasFolder
from captum_mfv.cli import app
from captum_mfv.cli.server import find_site, serve
from captum_mfv.errors import RunError
from captum_mfv.report import atlas
from captum_mfv.report.publication import publish, rebuild
from captum_mfv.runs.atlas import image_file, members_file

GALLERY = Path(__file__).parent.parent / "docs" / "_extra" / "gallery"
EVIL = "<img src=x onerror=hacked=1></script><script>hacked=1</script>\u202e"


def units():
    """Return units of two layers, with 1 to 3 facets, a dead one, a failed one, and hostile names."""
    rng = np.random.default_rng(0)
    rows = []
    for layer, n in (("conv", 40), (EVIL, 3)):
        for index in range(n):
            row = {"unit": f"{layer}:{index}", "layer": layer, "index": index, "status": "done", "n_images": 50}
            row |= {
                "peak": 9.5,
                "multifacetedness": rng.uniform(),
                "p_value": rng.uniform() ** 3,
                "n_facets": 1 + index % 3,
            }
            row |= {"p_adjusted": row["p_value"], "coverage": rng.uniform(), "retention": rng.uniform()}
            rows.append(row | {"label": f"{EVIL} stripes" if index == 2 else "red disc" if index % 7 == 0 else None})
    for index, status in ((7, "dead"), (8, "failed")):
        rows[index] = {"unit": f"conv:{index}", "layer": "conv", "index": index, "status": status}
    rows[8]["error"] = f"UnitError: {EVIL}"
    return rows


def write(path, rows):
    """Write an atlas of these units with generated facets, images and map."""
    rng = np.random.default_rng(1)
    facets, arrays = [], {}
    for row in rows:
        for index in range(row.get("n_facets", 0)):
            stability = None if row["index"] == 4 else float(rng.uniform())
            facet = {"unit": row["unit"], "index": index, "size": 10 + index, "activation": 5.0, "stability": stability}
            facet |= {"image_activation": 8.0, "activation_percentile": 0.9, "retention": index == 0, "label": None}
            members = [{"path": f"{n}_{EVIL}.jpg", "activation": 6.0, "distance": 1.0 + n} for n in range(5)]
            facets.append(facet | {"image": "https://example.org/beacon.webp", "members": members})
            for name, size in ((image_file, (32, 32)), (members_file, (160, 32))):
                file = path / name(row["unit"], index)
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, tuple(rng.integers(256, size=3).tolist())).save(file)
    for layer in dict.fromkeys(row["layer"] for row in rows):
        n = sum(facet["unit"].rpartition(":")[0] == layer for facet in facets)
        arrays[f"{layer}/centers"] = rng.standard_normal((n, 6)).astype(np.float32)
        arrays[f"{layer}/map"] = rng.standard_normal((n, 2)).astype(np.float32)
    save_file(arrays, path / "codes.safetensors", {"format": "1"})
    manifest = {"format": 1, "kind": "atlas", "status": "finished", "n_units": len(rows), "n_images": 100}
    manifest |= {
        "settings": {"model": "net", "images": "photos dir/", "top_k": 50, "seed": 3},
        "versions": {},
        "timings": {},
    }
    for name, value in {"manifest": manifest, "units": rows, "facets": facets}.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return AtlasFolder.read(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return an atlas with a page."""
    made = write(tmp_path_factory.mktemp("atlas"), units())
    atlas.build(made)
    return made


@pytest.fixture
def start(folder, visit):
    """Open a state of the page, and wait until it is shown."""

    def start(state="", **options):
        page = visit(folder.path / "index.html", state=state, **options)
        page.wait_for_selector("main:not([aria-busy])")
        return page

    return start


def field(page, key):
    return page.locator(f"[data-key={key}]")


def shown(page):
    """Return the units on the wall in their order, the first 5 at most."""
    places = "all => all.map(one => [Number(one.parentElement.ariaPosInSet), data.units[one.dataset.unit].position])"
    return [unit for _, unit in sorted(page.locator("#wall a").evaluate_all(places))][:5]


def wait_for_unit(page, name):
    page.locator("#unit-title", has_text=re.compile(f"^{re.escape(name)}$")).wait_for()


def found(page):
    """Return the number of units that the page says it found."""
    return int(page.locator("#count").inner_text().split()[0])


def stability(folder, row):
    values = [one["stability"] for one in folder.facets if one["unit"] == row["unit"] and one["stability"] is not None]
    return float(np.mean(values)) if values else None


def value(folder, row, name):
    return stability(folder, row) if name == "stability" else row.get(name)


@in_browser
@pytest.mark.parametrize("name", ["multifacetedness", "p_value", "n_facets", "stability", "coverage", "retention"])
def test_units_are_sorted_by_each_figure_in_both_directions_and_units_without_it_come_last(name, folder, start):
    page = start("#layer=conv")
    field(page, "sort").select_option(name)
    rows = [row for row in folder.units if row["layer"] == "conv"]
    known = [row for row in rows if value(folder, row, name) is not None]
    sign = 1 if name == "p_value" else -1
    for direction in (sign, -sign):
        best = [value(folder, folder.units[unit], name) for unit in shown(page)]
        wanted = sorted((value(folder, row, name) for row in known), key=lambda one: direction * one)
        assert best == pytest.approx(wanted[:5])
        page.locator("#direction").click()
    page.locator("#wall a").first.focus()
    page.keyboard.press("End")
    last = int(page.evaluate("document.activeElement.dataset.unit"))
    assert value(folder, folder.units[last], name) is None


@in_browser
def test_units_are_sorted_by_label_status_and_place(folder, start):
    page = start("#sort=unit")
    assert shown(page) == [0, 1, 2, 3, 4]
    field(page, "sort").select_option("label")
    assert all(folder.units[unit]["label"] for unit in shown(page))
    field(page, "sort").select_option("status")
    page.locator("#direction").click()
    assert shown(page)[:2] == [7, 8]


@in_browser
def test_each_filter_keeps_the_units_that_it_names(folder, start):
    page = start()
    rows = folder.units
    assert found(page) == len(rows)
    page.locator(".filters summary").click()

    def expect(keeps):
        assert found(page) == sum(map(keeps, rows))
        page.evaluate("history.replaceState(null, '', '#'); dispatchEvent(new PopStateEvent('popstate'))")
        assert found(page) == len(rows)

    field(page, "layer").select_option("conv")
    expect(lambda row: row["layer"] == "conv")
    for status in ("done", "dead", "failed"):
        field(page, "status").select_option(status)
        expect(lambda row, status=status: row["status"] == status)
    for choice, wanted in (("with", True), ("without", False)):
        field(page, "label").select_option(choice)
        expect(lambda row, wanted=wanted: bool(row.get("label")) == wanted)
    field(page, "p_max").select_option("0.05")
    expect(lambda row: row.get("p_adjusted", 1) <= 0.05)
    field(page, "facets_min").fill("2")
    expect(lambda row: row.get("n_facets", 0) >= 2)
    field(page, "facets_max").fill("2")
    expect(lambda row: row.get("n_facets", 0) <= 2)
    for name in ("multifacetedness", "stability", "coverage", "retention"):
        field(page, f"{name}_min").fill("0.5")
        assert page.locator(f"output[for={name}-min]").inner_text() == "≥ 0.50"
        expect(lambda row, name=name: (value(folder, row, name) or 0) >= 0.5)
    field(page, "facets_min").fill("9")
    assert page.get_by_text("No unit matches").is_visible()
    page.get_by_role("button", name="Clear the search and the filters").click()
    assert found(page) == len(rows)


@in_browser
def test_the_search_finds_units_by_name_and_by_label(folder, start):
    page = start()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.keyboard.type("conv:3")
    assert found(page) == 11
    page.keyboard.press("Escape")
    assert found(page) == len(folder.units)
    page.get_by_label("Search by unit or label").fill("DISC red")
    assert found(page) == sum(row.get("label") == "red disc" for row in folder.units)
    assert page.evaluate("location.hash") == "#q=DISC+red"


@in_browser
def test_states_have_addresses_and_back_and_forward_restore_them(folder, start):
    page = start()
    page.get_by_role("button", name="Table").click()
    field(page, "sort").select_option("coverage")
    assert page.evaluate("location.hash") == "#density=table&sort=coverage"
    page.get_by_role("link", name="conv:10", exact=True).click()
    wait_for_unit(page, "conv:10")
    assert page.evaluate("location.hash") == "#unit=conv:10&density=table&sort=coverage"
    page.wait_for_function("() => document.activeElement.id === 'unit-title'")
    page.go_back()
    page.wait_for_function("() => document.activeElement.textContent === 'conv:10'")
    page.go_back()
    page.wait_for_function("() => document.querySelector('[data-key=sort]').value === 'p_value'")
    page.go_forward()
    page.go_forward()
    wait_for_unit(page, "conv:10")
    page.go_back()
    page.go_back()
    page.go_back()
    page.locator("#wall").wait_for()
    page.evaluate("location.hash = '#sort=evil&density=evil&p_max=evil&evil=1&view=map'")
    page.locator("#map").wait_for()
    assert found(page) == len(folder.units)


@in_browser
def test_a_unit_shows_its_facets_in_words_and_leads_to_neighbors_and_to_its_run(folder, start):
    page = start("#unit=conv:5&sort=unit", permissions=["clipboard-read", "clipboard-write"])
    text = page.locator("#unit").inner_text()
    assert "group" in text
    assert "by chance, 1 is" in text
    assert page.locator(".facet").count() == 3
    assert "6 of 43" in text
    row = folder.nearest("conv:5", 0, 12)
    others = [one["unit"] for one, _ in row if one["unit"] != "conv:5"][:8]
    assert page.locator(".facet").first.locator(".neighbors bdi").all_inner_texts() == others
    command = "captum-mfv run --recipe facet --seed 3 --model net --unit conv:5 --images 'photos dir/' --top-k 50"
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == f"{command} --facets 3 --out out/conv-5"
    page.get_by_role("link", name="Next unit").click()
    wait_for_unit(page, "conv:6")
    page.keyboard.press("ArrowLeft")
    wait_for_unit(page, "conv:5")
    page.keyboard.press("ArrowLeft")
    wait_for_unit(page, "conv:4")
    other = page.locator(".neighbors a").first
    name = other.locator("bdi").inner_text()
    other.click()
    wait_for_unit(page, name)
    page.keyboard.press("Escape")
    page.locator("#wall").wait_for()


@in_browser
def test_dead_failed_and_unknown_units_say_why_they_have_no_facets(start):
    page = start("#unit=conv:7")
    page.get_by_text("no image activates this unit").wait_for()
    page.evaluate("location.hash = '#unit=conv:8'")
    page.get_by_text("UnitError: <img src=x").wait_for()
    page.evaluate("location.hash = '#unit=<b>none'")
    page.get_by_text("no such unit").wait_for()


@in_browser
@pytest.mark.parametrize("density", ["facets", "members", "table"])
def test_arrow_keys_walk_through_the_units(density, folder, start):
    page = start(f"#sort=unit&density={density}")
    links = page.locator("#table tbody a" if density == "table" else "#wall a")
    links.first.focus()
    names = []
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End", "Home"):
        page.keyboard.press(key)
        names.append(page.locator(":focus bdi").first.inner_text())
    assert names[0] == names[2] != names[1]
    assert names[3].endswith(":2")
    assert names[4] == "conv:0"
    if density != "table":
        page.keyboard.press("ArrowRight")
        assert page.locator(":focus bdi").first.inner_text() == "conv:1"
        assert page.locator("#wall a[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    page.locator("#unit").wait_for()


@in_browser
def test_the_document_holds_only_what_is_near_the_screen(folder, start):
    page = start("#density=members")
    counts = []
    for _ in range(12):
        counts.append(page.locator("#wall .unit").count())
        page.mouse.wheel(0, 900)
        page.wait_for_timeout(20)
    assert max(counts) < len(folder.units) / 2
    page.wait_for_timeout(150)
    assert page.locator("#wall img[data-src]").count() == 0
    assert page.locator("#wall img").first.get_attribute("src").startswith("images/")


@in_browser
@pytest.mark.parametrize(
    ("state", "units_of"), [("#density=members", "#wall .unit"), ("#density=table", "tr[data-row]")]
)
def test_all_units_are_printed(state, units_of, folder, start):
    page = start(state)
    before = page.locator(units_of).count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert before < page.locator(units_of).count() == len(folder.units)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(units_of).count() == before


@in_browser
def test_keys_are_listed_and_the_list_closes(start):
    page = start()
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog", name="Keys").is_hidden()


@in_browser
def test_the_theme_is_that_of_the_system_until_it_is_switched(start):
    page = start(scheme="dark", permissions=[])
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    button = page.get_by_role("button", name="Dark").first
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(background) != dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) != dark


@in_browser
def test_the_map_is_moved_enlarged_and_opens_units(folder, start):
    page = start("#view=map&layer=conv")
    page.wait_for_selector("#map:not([aria-busy])")
    box = page.locator("canvas").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    facets = [one for one in folder.facets if one["unit"].startswith("conv:")]
    places = folder.map("conv")
    low, high = places.min(0), places.max(0)
    scale = min(box["width"], box["height"] * (high - low)[0] / (high - low)[1]) * 0.92 / (high - low)[0]
    x, y = ((places - (low + high) / 2) * scale + middle).T
    gaps = np.hypot(x[:, None] - x, y[:, None] - y) + 1e9 * np.eye(len(x))
    alone = int(gaps.min(1).argmax())
    page.mouse.move(x[alone], y[alone])
    unit, index = facets[alone]["unit"], facets[alone]["index"]
    assert unit in page.locator(".tip").inner_text()
    assert f"facet {index} of" in page.locator(".tip").inner_text()
    page.mouse.click(x[alone], y[alone])
    wait_for_unit(page, unit)
    page.go_back()
    page.wait_for_selector("#map:not([aria-busy])")
    page.mouse.move(*middle)
    page.mouse.wheel(0, -200)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1])
    page.mouse.up()
    page.wait_for_function("() => location.hash.includes('at=')")
    x, _, zoom = map(float, page.evaluate("state.now.at").split(","))
    assert zoom > 1
    assert x < 0.5
    assert page.locator("#unit").is_hidden()  # a drag is no click


@in_browser
def test_the_map_is_used_by_keyboard(folder, start):
    page = start("#view=map&layer=conv")
    page.wait_for_selector("#map:not([aria-busy])")
    page.locator("canvas").focus()
    page.keyboard.press("+")
    said = page.locator("[data-spoken]").inner_text()
    assert said.startswith("conv:")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.locator("[data-spoken]").inner_text() != said
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    page.locator("#unit").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.activeElement.tagName === 'CANVAS'")


@in_browser
@pytest.mark.parametrize("width", [1440, 400])
def test_the_page_has_no_accessibility_violations(width, start):
    violations = accessibility()
    page = start(width=width)
    for state in ("#", "#density=members", "#density=table", "#view=map", "#unit=conv:5"):
        page.evaluate(f"location.hash = '{state}'")
        page.wait_for_selector("#map:not([aria-busy])", state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state
        if state == "#":
            page.locator(".filters summary").click()
        assert violations(page) == [], state
        page.emulate_media(color_scheme="dark")
        assert violations(page, "color-contrast") == [], state
        page.emulate_media(color_scheme="light")


@in_browser
def test_hostile_names_and_labels_are_shown_and_never_run(start):
    page = start(f"#q={EVIL[:8]}")
    for state in ("#", "#density=table&q=stripes", "#view=map", "#unit=conv:2", "#unit=conv:8"):
        page.evaluate(f"location.hash = {json.dumps(state)}")
        page.wait_for_timeout(50)
        if state != "#view=map":
            assert "<img src=x onerror" in page.locator("body").inner_text()
        assert page.locator("[onerror], bdi img, bdi script").count() == 0
    assert page.evaluate("typeof hacked") == "undefined"


@in_browser
def test_the_content_security_policy_blocks_hosts_and_scripts_in_markup(folder, browser):
    refused, hacked = blocked_by_policy(browser, folder.path / "index.html")
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    assert hacked == "undefined"


@in_browser
def test_a_page_without_its_data_says_which_file_is_missing(folder, tmp_path, browser):
    shutil.copy(folder.path / "index.html", tmp_path)
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.get_by_role("alert").wait_for()
    assert "data/units.js can't be loaded" in page.get_by_role("alert").inner_text()
    context.close()


@in_browser
def test_a_publication_works_without_real_images_also_from_a_server(folder, tmp_path, visit, browser):
    copy = shutil.copytree(folder.path, tmp_path / "atlas")
    manifest = {**folder.manifest, "settings": {**folder.manifest["settings"], "units": "conv:*"}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    publish(AtlasFolder.read(copy), tmp_path / "site", title=EVIL, source="https://example.org", license="CC BY 4.0")
    page = visit(tmp_path / "site" / "index.html", state="#density=members")
    page.wait_for_selector("#wall .unit.facets img")
    assert page.get_by_role("button", name="Members").count() == 0
    assert page.locator("h1").first.inner_text() == EVIL
    assert page.get_by_role("link", name="https://example.org").get_attribute("href") == "https://example.org"
    page.get_by_text("How it was made").click()
    assert "captum-mfv atlas --recipe facet" in page.locator(".provenance pre").inner_text()
    page.evaluate("location.hash = '#unit=conv:5'")
    wait_for_unit(page, "conv:5")
    assert page.locator(".sheet, #unit details, #command").count() == 0
    assert page.locator(".neighbors img").count() > 0
    page.evaluate("location.hash = '#view=map'")
    page.wait_for_selector("#map:not([hidden]):not([aria-busy])")
    with serve(find_site(tmp_path / "site")) as address:
        page, messages, requests = browser.new_page(), [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#wall img")
        page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
        page.close()
    assert messages == []
    own = (f"{address}images/", f"{address}data/")
    assert [url for url in requests if not url.startswith(own)] == [address]


@in_browser
@pytest.mark.skipif(not GALLERY.is_dir(), reason="the source distribution has no gallery")
def test_the_gallery_in_the_docs_opens(visit, tmp_path):
    gallery = shutil.copytree(GALLERY, tmp_path / "gallery")
    (gallery / "index.html").write_bytes(rebuild(gallery))
    page = visit(gallery / "index.html", state="#sort=unit")
    page.wait_for_selector("#wall img")
    assert found(page) >= 64
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    page.locator("#wall a").first.click()
    page.locator("#unit .facet").first.wait_for()


def chunk(folder, name):
    """Return the value that a script in data/ hands to the page."""
    text = (folder.path / "data" / f"{name}.js").read_text()
    return json.loads(text[len(f'atlasChunk("{name}", ') : -len(");\n")])


def test_the_page_holds_no_address_from_the_tables_and_its_data_are_ascii(folder):
    files = {path.name: path.read_bytes() for path in folder.path.glob("data/*.js")}
    assert sorted(files) == ["facets-0.js", "map.js", "units.js"]
    assert not any(b"example.org" in content for content in files.values())
    assert all(content.isascii() for content in files.values())


def test_neighbors_are_the_nearest_facets_of_other_units(folder):
    rows = chunk(folder, "facets-0")["rows"]
    names = [row["unit"] for row in folder.units]
    for unit, index in (("conv:5", 1), ("conv:12", 0), (f"{EVIL}:1", 1)):
        wanted = [(row["unit"], row["index"], cosine) for row, cosine in folder.nearest(unit, index, 200)]
        wanted = [one for one in wanted if one[0] != unit][:8]
        listed = rows[names.index(unit)][index]["neighbors"]
        assert [(names[position], facet) for position, facet, _ in listed] == [one[:2] for one in wanted]
        assert [one[2] for one in listed] == pytest.approx([one[2] for one in wanted], abs=1e-3)


def test_sprites_hold_each_facets_image_in_the_order_of_the_map(folder):
    content = chunk(folder, "map")
    with Image.open(folder.path / "data" / "sprites-0.webp") as sprite:
        for place, tile in enumerate(content["layers"][0]["tile"][:70]):
            row = folder.facets[tile]
            assert row["index"] == content["layers"][0]["facet"][place]
            with Image.open(folder.path / image_file(row["unit"], row["index"])) as image:
                wanted = np.array(image.getpixel((16, 16)), int)
            got = np.array(sprite.getpixel((tile % 64 * 32 + 16, tile // 64 * 32 + 16)), int)
            assert np.abs(got - wanted).max() < 40


def test_report_rewrites_the_page_and_removes_files_of_an_earlier_one(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder.path, copy)
    before = (copy / "index.html").read_bytes()
    (copy / "index.html").unlink()
    for name in ("facets-7.js", "sprites-7.webp", "notes.js"):
        (copy / "data" / name).write_text("")
    result = CliRunner().invoke(app, ["report", str(copy)])
    assert result.exit_code == 0
    assert result.output.strip() == str(copy / "index.html")
    assert (copy / "index.html").read_bytes() == before
    kept = {path.name for path in (copy / "data").iterdir()}
    assert kept == {"units.js", "facets-0.js", "map.js", "sprites-0.webp", "notes.js"}


def test_an_image_that_cannot_be_read_leaves_a_gray_tile(tmp_path):
    made = write(tmp_path, units()[:2])
    (tmp_path / image_file("conv:0", 0)).write_bytes(b"no image")
    atlas.build(made)
    with Image.open(tmp_path / "data" / "sprites-0.webp") as sprite:
        assert sprite.getpixel((16, 16)) == pytest.approx((136, 136, 136), abs=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, facets, manifest: manifest.update(status="running"), "isn't finished"),
        (lambda rows, facets, manifest: rows[0].update(index="../../0", unit="conv:../../0"), "which no atlas has"),
        (lambda rows, facets, manifest: facets.pop(), "isn't of the units"),
        (lambda rows, facets, manifest: facets[0].update(index=1), "isn't of the units"),
        (lambda rows, facets, manifest: facets[0].update(unit="conv:99"), "isn't of the units"),
        (lambda rows, facets, manifest: (facets.pop(), rows[1].update(n_facets=1)), "codes.safetensors"),
    ],
)
def test_tables_that_contradict_each_other_are_an_error(change, message, tmp_path):
    made = write(tmp_path, units()[:2])
    rows, facets, manifest = made.units, made.facets, made.manifest
    change(rows, facets, manifest)
    for name, content in {"manifest": manifest, "units": rows, "facets": facets}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=message):
        atlas.build(AtlasFolder.read(tmp_path))
    assert not (tmp_path / "index.html").exists()


def test_a_data_folder_that_leads_elsewhere_is_not_written_to(tmp_path):
    made = write(tmp_path / "atlas", units()[:2])
    (tmp_path / "else").mkdir()
    (made.path / "data").symlink_to(tmp_path / "else")
    with pytest.raises(RunError, match="leads out"):
        atlas.build(made)
    assert list((tmp_path / "else").iterdir()) == []


def test_an_atlas_of_one_facet_has_a_page_and_no_neighbors(tmp_path):
    made = write(tmp_path, units()[:1])
    atlas.build(made)
    assert chunk(made, "facets-0")["rows"][0][0]["neighbors"] == []
