import io
import struct
import tarfile
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captum_mfv.errors import ImageError, MFVWarning
from captum_mfv.images import ImageArchives, ImageFolder, InputSpec, batches, image_at, open_images, stack, to_pil
from captum_mfv.images.listing import Listing
from captum_mfv.images.loading import KeptImages

SPEC = InputSpec(16)
RED, HALF = (220, 40, 30), 0.5


def saved(folder, name, image, **options):
    image.save(folder / name, **options)
    return ImageFolder(folder, SPEC)[0]


def color(item):
    return (item[:, 8, 8] * 255).round().int().tolist()


def test_every_image_mode_is_read_correctly(tmp_path):
    ramp = np.full((16, 16), 32768, np.uint16)
    palette = Image.new("RGB", (16, 16), RED).quantize(4)
    clear = palette.copy()
    clear.info["transparency"] = clear.getpixel((0, 0))
    cases = {
        "gray.png": (Image.new("L", (16, 16), 100), [100] * 3),
        "bilevel.png": (Image.new("1", (16, 16), 1), [255] * 3),
        "16bit.png": (Image.fromarray(ramp), [128] * 3),
        "palette.png": (palette, list(RED)),
        "clear_palette.gif": (clear, [255] * 3),
        "opaque.png": (Image.new("RGBA", (16, 16), (*RED, 255)), list(RED)),
        "clear.png": (Image.new("RGBA", (16, 16), (*RED, 0)), [255] * 3),
        "gray_alpha.png": (Image.new("LA", (16, 16), (0, 128)), [127] * 3),
        "cmyk.tif": (Image.new("RGB", (16, 16), RED).convert("CMYK"), list(RED)),
    }
    for name, (image, expected) in cases.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        assert color(saved(folder, name, image)) == pytest.approx(expected, abs=1), name


def test_exif_rotation_is_undone(tmp_path):
    image = Image.new("RGB", (16, 16), "white")
    image.paste((0, 0, 0), (0, 0, 16, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated clockwise by 90 degrees
    item = saved(tmp_path, "turned.png", image, exif=exif)
    assert item[:, :, -4:].max() == 0
    assert item[:, :, :12].min() == 1


def test_the_short_side_is_scaled_and_the_center_cropped(tmp_path):
    image = Image.new("RGB", (64, 32), "white")
    image.paste((0, 0, 0), (16, 0, 48, 32))
    item = saved(tmp_path, "wide.png", image)
    assert item.shape == (3, 16, 16)
    assert item.dtype == torch.float32
    assert item.max() < 0.5


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "short"), [(60, 20), (62, 21), (79, 19)])
def test_files_are_resized_and_cropped_as_torchvision_does(tmp_path, interpolation, width, short):
    functional = pytest.importorskip("torchvision.transforms.functional")
    pixels = np.random.default_rng(0).integers(0, 256, (40, width, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    item = ImageFolder(tmp_path, InputSpec(16, crop_fraction=16 / short, interpolation=interpolation))[0]
    mode = functional.InterpolationMode(interpolation)
    wanted = functional.center_crop(functional.resize(Image.fromarray(pixels), [short], mode), [16])
    assert torch.equal(item, functional.to_tensor(wanted))


@pytest.mark.parametrize(
    "change",
    [{"crop_fraction": 0.0}, {"crop_fraction": 1.5}, {"interpolation": "cubic"}, {"size": "16"}, {"mean": (0.5, None)}],
)
def test_preprocessing_out_of_range_is_an_error_that_names_the_argument(change):
    with pytest.raises(ImageError, match=f"^{next(iter(change))}"):
        InputSpec(**change)


def test_preprocessing_accepts_numbers_of_numpy_and_torch():
    spec = InputSpec(np.int64(16), torch.tensor([0.5]), np.array([0.25]))
    assert (type(spec.size), spec.mean, spec.std) == (int, (0.5,), (0.25,))


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [(0, ValueError, "at least 1, not 0"), (-1, ValueError, "not -1"), (2.5, TypeError, "an integer, not 2.5")],
)
def test_a_batch_size_below_one_is_an_error(size, error, message):
    with pytest.raises(error, match=f"batch_size must be .*{message}"):
        next(batches(torch.rand(3, 3, 8, 8), size))


def test_a_batch_size_may_be_a_numpy_integer():
    assert len(list(batches(torch.rand(3, 3, 8, 8), np.int64(2)))) == 2


def test_the_input_follows_the_first_floating_point_parameter_or_buffer():
    images, spec = torch.rand(2, 3, 8, 8), InputSpec(8)
    model = nn.Module()
    assert torch.equal(spec.feed(model)(images), spec(images))  # a model without parameters
    model.register_parameter("steps", nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False))
    model.register_buffer("scale", torch.ones(2, dtype=torch.float16, device="meta"))
    assert (spec.feed(model)(images).dtype, spec.feed(model)(images).device.type) == (torch.float16, "meta")
    model.register_parameter("weight", nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))
    assert (spec.feed(model)(images).dtype, spec.feed(model)(images).device.type) == (torch.bfloat16, "cpu")


def test_one_channel_specs_read_gray_images(tmp_path):
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.png")
    assert ImageFolder(tmp_path, InputSpec(16, (0.5,), (0.5,)))[0].shape == (1, 16, 16)


def bomb():
    """Return a PNG of a few bytes whose header has 40000 x 40000 pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_unreadable_files_are_skipped_and_each_named_once(tmp_path):
    good = io.BytesIO()
    Image.new("RGB", (40, 40), RED).save(good, "JPEG")
    (tmp_path / "b_good.jpg").write_bytes(good.getvalue())
    (tmp_path / "a_empty.jpg").write_bytes(b"")
    (tmp_path / "c_cut.jpg").write_bytes(good.getvalue()[:400])
    (tmp_path / "d_text.png").write_text("not an image")
    (tmp_path / "e_bomb.png").write_bytes(bomb())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "f_good.png").write_bytes(good.getvalue())
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    folder = ImageFolder(tmp_path, SPEC)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MFVWarning)
        seen = [folder.name(i) for indices, _ in batches(folder, 2) for i in indices]
    messages = [str(item.message) for item in caught if item.category is MFVWarning]
    assert seen == ["b_good.jpg", "sub/f_good.png"]
    assert [sum(name in message for message in messages) for name in ("a_em", "c_cut", "d_te", "e_bo")] == [1] * 4
    assert len(messages) == 4


def test_a_missing_or_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="isn't a folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="holds no images"):
        ImageFolder(tmp_path)


def test_normalized_images_are_an_error_with_advice():
    with pytest.raises(ImageError, match="input_spec"):
        image_at(torch.randn(3, 3, 8, 8) * 2, 1)
    with pytest.raises(TypeError, match=r"item 0 is a tensor of shape \(8, 8\)"):
        image_at(torch.rand(3, 8, 8), 0)
    with pytest.raises(ImageError, match="differ in size"):
        stack([torch.rand(3, 8, 8), torch.rand(3, 8, 9)], [0, 1])


def test_datasets_with_labels_are_accepted():
    pairs = [(image, 7) for image in torch.rand(5, 3, 8, 8)]
    assert torch.equal(stack(pairs, [3]), pairs[3][0][None])
    assert [indices for indices, _ in batches(pairs, 2)] == [[0, 1], [2, 3], [4]]


def test_an_input_spec_resizes_and_normalizes():
    spec = InputSpec(8, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    x = spec(torch.full((2, 3, 16, 16), HALF))
    assert x.shape == (2, 3, 8, 8)
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([0.0, 1.0, 0.5]))
    with pytest.raises(ImageError, match="std"):
        InputSpec(8, (0.5,), (0.0,))


def test_a_saved_image_is_read_within_one_level(tmp_path):
    image = torch.rand(3, 16, 16)
    to_pil(image).save(tmp_path / "a.png")
    assert (ImageFolder(tmp_path, SPEC)[0] - image).abs().max() <= 0.5 / 255 + 1e-6


def photos(folder, n=5):
    """Write small images into two subfolders; return the folder."""
    for k in range(n):
        path = folder / ("a" if k % 2 else "b") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (40 * k, 100, 50)).save(path)
    return folder


def archives(folder, images, n=2):
    """Write images into tar archives with a label beside each, as WebDataset does; return the folder."""
    folder.mkdir()
    for k in range(n):
        with tarfile.open(folder / f"{k:03}.tar", "w") as archive:
            for index in range(k, len(images), n):
                archive.add(images.paths[index], images.name(index))
                label = tarfile.TarInfo(f"{index}.cls")
                label.size = 1
                archive.addfile(label, io.BytesIO(b"7"))
    return folder


def test_images_in_archives_are_those_of_the_files(tmp_path):
    images = ImageFolder(photos(tmp_path / "photos"), SPEC)
    packed = open_images(archives(tmp_path / "shards", images))
    assert isinstance(packed, ImageArchives)
    packed.input_spec = SPEC
    order = [0, 2, 4, 1, 3]
    assert [packed.name(i).split(".tar/")[1] for i in range(len(packed))] == [images.name(i) for i in order]
    assert torch.equal(stack(packed, range(5)), stack(images, order))
    assert torch.equal(ImageArchives(tmp_path / "shards/001.tar", SPEC)[0], images[1])
    assert packed.fingerprint != images.fingerprint
    with pytest.raises(ImageError, match="no tar archive"):
        ImageArchives(tmp_path / "photos")
    (tmp_path / "shards/002.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ImageError, match=r"002\.tar can't be read as a tar archive"):
        ImageArchives(tmp_path / "shards")


@pytest.mark.parametrize("packed", [False, True])
def test_a_listing_is_reused_until_files_come_or_go(tmp_path, packed, monkeypatch):
    root = photos(tmp_path / "photos")
    if packed:
        root = archives(tmp_path / "shards", ImageFolder(root))
    images, path = open_images(root), tmp_path / "listing.json"
    assert Listing.read(path, root) is None
    images.listing.write(path)
    again = open_images(root, path)
    assert (len(again), again.fingerprint) == (len(images), images.fingerprint)
    with monkeypatch.context() as patch:
        patch.setattr(Listing, "of_folder" if packed else "of_archives", None)
        patch.setattr(Listing, "of_archives" if packed else "of_folder", None)
        assert torch.equal(open_images(root, path)[1], images[1])
    if packed:
        (root / "000.tar").unlink()
    else:
        Image.new("RGB", (16, 16)).save(root / "a" / "new.png")
    assert Listing.read(path, root) is None
    assert len(open_images(root, path)) == (2 if packed else 6)
    outside = '{"names": ["../a"], "sizes": [1], "offsets": [], "times": {".": 1}}'
    for text in ("[]", '{"names": ["a"], "sizes": [], "offsets": [], "times": {}}', "{", outside):
        path.write_text(text)
        assert Listing.read(path, root) is None


def test_workers_decode_the_same_batches(tmp_path):
    images = ImageFolder(photos(tmp_path), SPEC)
    (tmp_path / "a" / "x.png").write_bytes(b"broken")
    images = ImageFolder(tmp_path, SPEC)
    with pytest.warns(MFVWarning, match="left out .*x.png"):
        here = list(batches(images, 2, 1, 5))
    with pytest.warns(MFVWarning, match="left out .*x.png"):
        there = list(batches(images, 2, 1, 5, workers=1))
    assert [indices for indices, _ in here] == [indices for indices, _ in there] == [[1], [3, 4]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(here, there, strict=True))


def test_kept_images_read_8_bit_items_once_and_return_the_same_numbers(monkeypatch):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    images = [levels / 255, levels / 256, levels.flip(1) / 255]  # the second isn't of 8 bits
    read = []

    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    def numbers_are_read(expected):
        kept = KeptImages(Counted(images))
        for _ in range(3):
            assert all(torch.equal(kept[index], images[index]) for index in range(3))
        assert read == expected
        read.clear()

    numbers_are_read([0, 1, 2, 1, 1])
    monkeypatch.setattr("captum_mfv.images.loading._KEPT", 256)  # bytes, one image
    numbers_are_read([0, 1, 2, 1, 2, 1, 2])
