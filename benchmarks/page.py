"""Measure the page of a large atlas of generated data in headless Chromium.

    python benchmarks/page.py FOLDER [--units 2048] [--facets 8000] [--reuse]

Writes an atlas of generated data to FOLDER and its page, opens the page from its file:// address and prints: seconds
until the first picture, milliseconds of filtering and sorting until the next frame, the longest frame while scrolling
through all units, frames per second while panning the map, and the memory of all of Chromium's processes. Needs
Chromium and playwright (`pip install -e ".[test]"`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from captum_mfv import AtlasFolder
from captum_mfv.report import atlas as page
from captum_mfv.runs.atlas import MEMBERS, SHEET, image_file, members_file
from captum_mfv.runs.atlas_writer import AtlasWriter
from captum_mfv.runs.records import ATLAS_FORMAT
from captum_mfv.runs.settings import AtlasSettings
from captum_mfv.storage.files import tensor_file

LAYER, SIDE, N_PICTURES, N_KINDS = "features.12", 224, 200, 40


def pictures(n: int, seed: int = 0) -> list[Image.Image]:
    """Return smooth random images, each kind with its own colors and orientation."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        kind = np.random.default_rng(number % N_KINDS)
        y, x = np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij")
        angle, stretch = kind.uniform(0, np.pi), kind.uniform(1, 5)
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        filters = 1 / (np.hypot(along * stretch, across) + 0.02) ** kind.uniform(1.2, 1.9)
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, SIDE, SIDE))) * filters).real
        noise /= noise.std(axis=(1, 2), keepdims=True)
        mixed = np.tensordot(kind.normal(size=(3, 3)) / 1.5, noise, 1) + kind.normal(size=(3, 1, 1)) * 0.8
        found.append(Image.fromarray((255 / (1 + np.exp(-1.6 * mixed))).astype(np.uint8).transpose(1, 2, 0)))
    return found


def make(folder: Path, n_units: int, n_facets: int, images: Sequence[Image.Image], seed: int = 0) -> AtlasFolder:
    """Write an atlas of generated rows; images that are equal are one file with several names."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    originals = folder / ".originals"
    originals.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(originals / f"{number}.webp", lossless=True, method=0)
        sheet = Image.new("RGB", (SHEET * 128, 128))
        for nth in range(SHEET):
            member = images[(number + nth * N_KINDS) % len(images)].resize((128, 128))
            sheet.paste(member, (nth * 128, 0))
        sheet.save(originals / f"{number}_members.webp", quality=80)
    (folder / "images" / LAYER).mkdir(parents=True)
    counts = 1 + rng.multinomial(n_facets - n_units, np.full(n_units, 1 / n_units))
    kinds, means = rng.integers(len(images), size=n_facets), rng.standard_normal((N_KINDS, 16))
    centers = (means[kinds % N_KINDS] + 0.4 * rng.standard_normal((n_facets, 16))).astype(np.float32)
    places = (centers[:, :2] * 20 + rng.standard_normal((n_facets, 2)) * 4).astype(np.float32)
    units, facets = list[dict[str, Any]](), list[dict[str, Any]]()
    for index, count in enumerate(counts.tolist()):
        name = f"{LAYER}:{index}"
        p_value = float(rng.uniform() ** 6)
        stabilities = rng.uniform(0.3, 1, count)
        label = f"kind {kinds[len(facets)] % N_KINDS}" if index % 3 == 0 else None
        units.append({"unit": name, "layer": LAYER, "index": index, "status": "done", "n_images": 200})
        units[-1] |= {
            "peak": 10.0,
            "multifacetedness": float(rng.beta(2, 8)),
            "p_value": p_value,
            "p_adjusted": p_value,
        }
        units[-1] |= {"n_facets": count, "coverage": float(rng.uniform(0.2, 1)), "retention": 1.0, "label": label}
        for nth in range(count):
            picture = kinds[len(facets)]
            os.link(originals / f"{picture}.webp", folder / image_file(name, nth))
            os.link(originals / f"{picture}_members.webp", folder / members_file(name, nth))
            interval = (max(0.0, stabilities[nth] - 0.1), min(1.0, stabilities[nth] + 0.1))
            members = [
                {"path": f"n{i:08}/image_{i}.jpg", "activation": 9.0 - i / 9, "distance": 1 + i / 9}
                for i in range(MEMBERS)
            ]
            row = {"unit": name, "index": nth, "size": 200 // count, "activation": 7.0, "stability": stabilities[nth]}
            row |= {"stability_interval": interval, "image_activation": 12.0, "activation_percentile": 1.0}
            facets.append({**row, "retention": True, "label": None, "image": image_file(name, nth), "members": members})
    settings = AtlasSettings(model="squeezenet1_0", units=f"{LAYER}:*", images="imagenet/", top_k=200)
    manifest = {"format": ATLAS_FORMAT, "kind": "atlas", "status": "finished", "n_units": n_units, "n_images": 100_000}
    manifest |= {"settings": vars(settings), "versions": {}, "timings": {}}
    for file, value in {"manifest.json": manifest, "units.json": units, "facets.json": facets}.items():
        (folder / file).write_text(json.dumps(value))
    arrays = {f"{LAYER}/centers": centers, f"{LAYER}/map": places}
    (folder / "codes.safetensors").write_bytes(tensor_file(arrays, {"format": str(ATLAS_FORMAT)}))
    return AtlasWriter.read(folder)


FRAMES = """async () => {
    const times = []; let last = performance.now(); let on = true;
    const tick = (now) => { times.push(now - last); last = now; if (on) requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
    await (WORK)();
    on = false;
    return times.slice(2);
}"""

SCROLL = """async () => {
    const end = document.documentElement.scrollHeight;
    for (let y = 0; y < end; y += 400) { window.scrollTo(0, y); await new Promise(requestAnimationFrame); }
}"""

PAN = """async () => {
    const canvas = document.querySelector("canvas"), send = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type,
        {pointerId: 1, clientX: x, clientY: y, bubbles: true}));
    canvas.setPointerCapture = () => 0;
    send("pointerdown", 700, 500);
    for (let n = 0; n < 180; n++) {
        send("pointermove", 700 + 500 * Math.sin(n / 25), 500 + 200 * Math.sin(n / 20));
        await new Promise(requestAnimationFrame);
    }
    send("pointercancel", 700, 500);
}"""

CHANGE = """async ([key, value]) => {
    const field = document.querySelector(`[data-key="${key}"]`), began = performance.now();
    field.value = value;
    field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input", {bubbles: true}));
    const done = performance.now();
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    return [done - began, performance.now() - began];
}"""


def memory(session: Any) -> float:
    """Return the megabytes of private memory of all processes of the browser that run now (Linux)."""
    ids = [process["id"] for process in session.send("SystemInfo.getProcessInfo")["processInfo"]]
    total = 0
    for pid in ids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1])
    return total / 1024


def measure(path: Path) -> dict[str, float]:
    """Return the figures of a page."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    figures: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])
        tab, session = browser.new_page(viewport={"width": 1440, "height": 900}), browser.new_browser_cdp_session()
        tab.goto(path.as_uri(), wait_until="commit")
        tab.wait_for_selector("#wall img")
        figures["first pictures, s"] = tab.evaluate("performance.now()") / 1000
        paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        while not (painted := tab.evaluate(paint)):
            tab.wait_for_timeout(10)
        figures["first paint, s"] = painted / 1000
        changes = {"search": ("q", "kind 7"), "filter": ("stability_min", "0.6"), "sort": ("sort", "multifacetedness")}
        for name, change in changes.items():
            tab.wait_for_timeout(1500)  # images of the state before are loaded
            figures[f"{name}, ms"], figures[f"{name} and next frame, ms"] = tab.evaluate(CHANGE, list(change))
        tab.evaluate("location.hash = '#'")
        tab.wait_for_timeout(500)
        frames = tab.evaluate(FRAMES.replace("WORK", SCROLL))
        figures["longest frame of scrolling, ms"] = max(frames)
        figures["median frame of scrolling, ms"] = float(np.median(frames))
        figures["most elements"] = tab.evaluate("document.querySelectorAll('*').length")
        figures["memory after scrolling, MB"] = memory(session)
        tab.evaluate("location.hash = '#view=map'")
        tab.wait_for_selector("#map:not([hidden]):not([aria-busy])")
        tab.wait_for_timeout(500)
        frames = tab.evaluate(FRAMES.replace("WORK", PAN))
        figures["map, frames per second"] = 1000 * len(frames) / sum(frames)
        figures["map, longest frame, ms"] = max(frames)
        figures["memory after the map, MB"] = memory(session)
        browser.close()
    return figures


def main() -> None:
    """Write the atlas and its page, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--units", type=int, default=2048)
    parser.add_argument("--facets", type=int, default=8000)
    parser.add_argument("--reuse", action="store_true", help="use the atlas that is in FOLDER")
    options = parser.parse_args()
    if options.reuse:
        folder = AtlasWriter.read(options.folder)
    else:
        folder = make(options.folder, options.units, options.facets, pictures(N_PICTURES))
    began = perf_counter()
    path = page.build(folder)
    print(f"{platform.platform()}, {os.cpu_count()} cores")
    print(f"{len(folder.units)} units, {len(folder.facets)} facets; page written in {perf_counter() - began:.1f} s")
    size = sum(file.stat().st_size for file in [path, *path.parent.glob("data/*")])
    print(f"index.html and data: {size / 1e6:.1f} MB in {len(list(path.parent.glob('data/*'))) + 1} files")
    for name, value in measure(path).items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
