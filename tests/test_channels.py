"""Images of one channel and of many: files, synthesis, runs and their pages."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import tifffile
import torch
from conftest import same
from PIL import Image
from torch import nn

import captum_mfv as mfv
from captum_mfv import cli
from captum_mfv.errors import ImageError
from captum_mfv.figures import plot_facets
from captum_mfv.images import to_pil
from captum_mfv.optvis.recipes import get_recipe
from captum_mfv.optvis.render import render_facets

N = 13
SPEC = mfv.InputSpec(16, (0.2,) * N, (0.1,) * N, value_range=(0, 10_000), rgb=(3, 2, 1))
MODEL = """
import torch
from torch import nn
import captum_mfv as mfv

def make():
    torch.manual_seed(0)
    layers = nn.Conv2d(13, 24, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)
    spec = mfv.InputSpec(16, (0.2,) * 13, (0.1,) * 13, value_range=(0, 10_000), rgb=(3, 2, 1))
    return nn.Sequential(*layers).eval(), spec
"""


def scenes(n_each=12):
    """Return images of three kinds, (n, 13, 16, 16) in [0, 1], that differ in bands 4, 8 and 12 alone."""
    images = 0.1 + 0.1 * torch.rand(3 * n_each, N, 16, 16, generator=torch.Generator().manual_seed(0))
    for kind, band in enumerate((4, 8, 12)):
        images[kind * n_each : (kind + 1) * n_each, band, 4:12, 4:12] += 0.6
    return images


def status(*words):
    """Return the exit status of the command."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return stopped.value.code


def model():
    namespace = {}
    exec(MODEL, namespace)
    return namespace["make"]()[0]


FILES = {
    "bands first": lambda values, path: np.save(path.with_suffix(".npy"), values),
    "bands last": lambda values, path: np.save(path.with_suffix(".npy"), np.moveaxis(values, 0, 2)),
    "pages of TIFF": lambda values, path: tifffile.imwrite(path.with_suffix(".tif"), values),
    "planes of TIFF": lambda values, path: tifffile.imwrite(
        path.with_suffix(".tiff"), values, planarconfig="separate", photometric="minisblack"
    ),
    "samples of TIFF": lambda values, path: tifffile.imwrite(
        path.with_suffix(".tif"), np.moveaxis(values, 0, 2), planarconfig="contig", photometric="minisblack"
    ),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_files_of_13_bands_are_scaled_from_the_value_range(kind, dtype, tmp_path):
    values = np.random.default_rng(0).integers(0, 12_000, (N, 16, 16)).astype(dtype)
    FILES[kind](values, tmp_path / "scene")
    (item,) = mfv.ImageFolder(tmp_path, SPEC)
    assert item.dtype == torch.float32
    assert np.allclose(item, (values / 10_000.0).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_bands_are_resized_and_cropped_as_channels_of_a_photograph_are(interpolation, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    (tmp_path / "bands").mkdir()
    (tmp_path / "photograph").mkdir()
    np.save(tmp_path / "bands" / "a.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "photograph" / "a.png")
    spec = mfv.InputSpec(16, crop_fraction=0.8, interpolation=interpolation)
    (bands,), (photograph,) = (mfv.ImageFolder(tmp_path / name, spec) for name in ("bands", "photograph"))
    assert (bands - photograph).abs().max() < 1.1 / 255, "the photograph is rounded to 8 bits, after each axis"


def test_one_channel_keeps_16_bits_and_three_channels_repeat_them(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257 + 1
    Image.fromarray(levels).save(tmp_path / "scan.png")
    gray = mfv.InputSpec(16, (0.5,), (0.5,))
    assert np.allclose(mfv.ImageFolder(tmp_path, gray)[0][0], levels / 65_535, atol=1e-7)
    window = mfv.InputSpec(16, (0.5,), (0.5,), value_range=(1000, 3000))
    assert np.allclose(mfv.ImageFolder(tmp_path, window)[0][0], ((levels - 1000.0) / 2000).clip(0, 1), atol=1e-6)
    color = mfv.ImageFolder(tmp_path, mfv.InputSpec(16))[0]
    assert np.allclose(color, np.stack([levels / 65_535] * 3), atol=1e-7)


def test_the_value_range_holds_for_8_bits_too(tmp_path):
    Image.fromarray(np.full((16, 16), 100, np.uint8)).save(tmp_path / "scan.png")
    spec = mfv.InputSpec(16, (0.5,), (0.5,), value_range=(50, 150))
    assert torch.allclose(mfv.ImageFolder(tmp_path, spec)[0], torch.tensor(0.5))


@pytest.mark.parametrize("n", [1, 3])
def test_pages_of_tiff_are_not_read_as_a_color_image(n, tmp_path):
    tifffile.imwrite(tmp_path / "scene.tif", np.ones((N, 16, 16), np.uint16), photometric="minisblack")
    with pytest.raises(ImageError, match=r"scene.tif: its pages are channels; input_spec must have a mean and a std"):
        mfv.ImageFolder(tmp_path, mfv.InputSpec(16, (0.5,) * n, (0.5,) * n))[0]


def test_a_photograph_with_overviews_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "photo.tif") as file:
        file.write(pixels, photometric="rgb")
        file.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.allclose(mfv.ImageFolder(tmp_path, mfv.InputSpec(16))[0], pixels.transpose(2, 0, 1) / 255)


def test_the_first_page_of_a_tiff_file_with_overviews_is_read(tmp_path):
    values = np.random.default_rng(0).integers(0, 10_000, (N, 16, 16)).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "scene.tif") as file:
        file.write(values, planarconfig="separate", photometric="minisblack", subifds=0)
        file.write(values[:, ::2, ::2], planarconfig="separate", photometric="minisblack", subfiletype=1)
    assert np.allclose(mfv.ImageFolder(tmp_path, SPEC)[0], values / 10_000, atol=1e-6)


def test_a_circle_of_tiff_pages_ends(tmp_path):
    tifffile.imwrite(tmp_path / "scene.tif", np.ones((2, 8, 8), np.uint16), photometric="minisblack", metadata=None)
    content = bytearray((tmp_path / "scene.tif").read_bytes())
    first = int.from_bytes(content[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    second = int.from_bytes(content[end : end + 4], "little")
    after = second + 2 + 12 * int.from_bytes(content[second : second + 2], "little")
    content[after : after + 4] = first.to_bytes(4, "little")
    (tmp_path / "scene.tif").write_bytes(content)
    item = mfv.ImageFolder(tmp_path, SPEC)[0]
    assert item.shape == (N, 16, 16)


UNKNOWN = mfv.InputSpec(16, (0.2,) * N, (0.1,) * N)
WRONG_FILES = {
    "negative values": (
        np.full((N, 8, 8), -3, np.int16),
        UNKNOWN,
        r"from -3 to -3 have no known range; give.*value_range",
    ),
    "64-bit integers": (np.ones((N, 8, 8), np.int64), UNKNOWN, "int64 values from 1 to 1 have no known range"),
    "floats above 1": (np.full((N, 8, 8), 3.5), UNKNOWN, "from 3.5 to 3.5 have no known range"),
    "no data": (np.full((N, 8, 8), np.nan), SPEC, "not finite"),
    "12 bands": (np.ones((12, 8, 8), np.uint8), SPEC, r"its shape is \(12, 8, 8\), not \(13, H, W\) or \(H, W, 13\)"),
    "one band": (np.ones((8, 8), np.uint8), SPEC, r"its shape is \(8, 8\)"),
    "text": (np.array(["a"]), SPEC, "not an array of integers or floating-point"),
    "objects": (np.array([{}], object), SPEC, "Python objects"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_does_not_fit_is_an_error_that_names_it(case, tmp_path):
    values, spec, message = WRONG_FILES[case]
    np.save(tmp_path / "scene.npy", values, allow_pickle=True)
    with pytest.raises(ImageError, match=f"scene.npy: .*{message}"):
        mfv.ImageFolder(tmp_path, spec)[0]


def test_a_photograph_has_no_13_bands(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    with pytest.raises(ImageError, match=r"photo.png: it has 3 channels at most, not 13; save 13 channels as .npy"):
        mfv.ImageFolder(tmp_path, SPEC)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": (3, 2, 13)}, "rgb must be three of the channels 0 to 12"),
        ({"rgb": (3, 2)}, "rgb"),
        ({"value_range": (1, 1)}, "low below high"),
        ({"value_range": "0-255"}, "value_range"),
    ],
)
def test_settings_of_channels_that_do_not_fit_are_named(change, message):
    with pytest.raises(ImageError, match=message):
        mfv.InputSpec(**{**asdict(SPEC), **change})


def test_images_of_another_number_of_channels_are_an_error():
    with pytest.raises(ImageError, match="images have 3 channels; input_spec has mean and std of 13"):
        mfv.find_facets(model(), mfv.Unit("4", 0), torch.rand(8, 3, 16, 16), n_facets=2, input_spec=SPEC)
    with pytest.raises(ImageError, match="images have 1 channels; input_spec has mean and std of 3"):
        mfv.InputSpec(16)(torch.rand(2, 1, 16, 16))


@pytest.mark.parametrize(("n", "shown"), [(1, (0,)), (2, (0, 1, 1)), (3, (0, 1, 2)), (4, (0, 1, 2))])
def test_the_first_channels_are_displayed_by_default(n, shown):
    spec = mfv.InputSpec(16, (0.5,) * n, (0.5,) * n)
    image = torch.rand(n, 16, 16)
    assert torch.equal(spec.display(image), image[list(shown)])


def test_an_image_of_13_channels_is_no_picture():
    with pytest.raises(ImageError, match=r"give input_spec\.display"):
        to_pil(torch.rand(N, 8, 8))
    assert to_pil(SPEC.display(torch.rand(N, 8, 8))).mode == "RGB"


@pytest.mark.parametrize("n", [2, 13])
@pytest.mark.parametrize("recipe", ["facet", "facet-from-noise", "maco", "paper-mean", "logit", "faceted"])
def test_recipes_render_images_of_n_channels(n, recipe):
    torch.manual_seed(0)
    layers = nn.Conv2d(n, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    network, spec = nn.Sequential(*layers).eval(), mfv.InputSpec(16, (0.5,) * n, (0.5,) * n)
    images = scenes(6)[:, [4, 8, 12, *range(10)]][:, :n]
    facets = mfv.find_facets(network, mfv.Unit("4", 0), images, n_facets=2, input_spec=spec)
    made = render_facets(network, facets, images, recipe=recipe, steps=5, input_spec=spec)
    for one in made:
        assert one.image.shape == (n, 16, 16)
        assert one.rgba.shape == (4, 16, 16)
        assert one._repr_png_() is not None
        assert not same(one.image, one.start)
    plot_facets(made, images=images, starts=True)


def test_colors_of_many_channels_are_decorrelated_on_the_images():
    images = scenes()
    facets = mfv.find_facets(model(), mfv.Unit("4", 0), images, n_facets=2, input_spec=SPEC)
    recipes = (get_recipe("facet"), replace(get_recipe("facet"), colors="images"))
    made = [render_facets(model(), facets, images, recipe=one, steps=4, input_spec=SPEC) for one in recipes]
    assert torch.equal(made[0][0].image, made[1][0].image)


def test_a_run_of_13_bands_is_written_read_judged_and_shown(tmp_path, capsys):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "net.py").write_text(MODEL)
    for number, image in enumerate(scenes()):
        np.save(tmp_path / "scenes" / f"{number:02d}.npy", (image * 10_000).numpy().astype(np.uint16))
    out, network = tmp_path / "run", f"{tmp_path}/net.py:make"
    words = ["--model", network, "--unit", "4:0", "--images", tmp_path / "scenes", "--facets", 3, "--steps", 20]
    assert status("run", *words, "--out", out) == 0
    folder = mfv.RunFolder.read(out)
    facets = folder.read_facets()
    images = folder.read_images(facets)
    assert [tuple(image.shape) for image in images] == [(N, 16, 16)] * 3
    for facet, image in zip(facets, images, strict=True):
        shown = Image.open(out / "images" / f"facet_{facet.index:02d}.png")
        assert shown.mode == "RGB"
        assert np.abs(np.asarray(shown) / 255 - image[[3, 2, 1]].permute(1, 2, 0).numpy()).max() < 0.6 / 255
    assert folder.read_baseline().shape == (N, 16, 16)
    assert folder.read_renderings(facets)[0].image.shape == (N, 16, 16)
    assert folder.member_images()[0].shape == (N, 16, 16)
    assert status("evaluate", out, "--judge", network, "--judge-unit", "4:0") == 0
    assert "data:image" in (out / "report.html").read_text()
    assert status("compare", out, out, "--out", tmp_path / "compare.html") == 0
    np.save(out / "images" / "facet_00.npy", np.full((N, 16, 16), np.nan, np.float32))
    with pytest.raises(mfv.errors.RunError, match=r"facet_00.npy can't be read: its values must lie in \[0, 1\]"):
        folder.read_images(facets)
    capsys.readouterr()
    assert status("run", *words, "--seed", 1, "--update", "--out", out) == 0
    assert np.isfinite(np.load(out / "images" / "facet_00.npy")).all(), "redone"
