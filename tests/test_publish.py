"""Publications: what they hold, where they are written, and what is refused before anything is written."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_atlas_page import EVIL, units, write

from captum_mfv import AtlasFolder
from captum_mfv.cli import app
from captum_mfv.errors import RunError
from captum_mfv.report.provenance import without_folders
from captum_mfv.report.publication import publish, rebuild
from captum_mfv.runs.atlas import image_file
from captum_mfv.storage.files import write_folder

SECRETS = ("zoe", "private", "beach", "holiday")
SETTINGS = {"model": "/home/ann/net.py:make", "units": "conv:*", "images": "/home/zoe/private/pictures", "sae": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return an atlas with secrets in its paths, names and errors."""
    made = write(tmp_path_factory.mktemp("atlas"), units())
    rows, facets = made.units, made.facets
    rows[8]["error"] = "ImageError: /home/zoe/private/pictures/holiday.jpg can't be read"
    for row in facets:
        for member in row["members"]:
            member["path"] = f"holiday/beach_{member['path']}"
    manifest = {**made.manifest, "settings": {**made.manifest["settings"], **SETTINGS}}
    for name, content in {"manifest": manifest, "units": rows, "facets": facets}.items():
        (made.path / f"{name}.json").write_text(json.dumps(content))
    return AtlasFolder.read(made.path)


def files_of(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def command(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output + str(result.exception or "")


def test_a_publication_has_no_file_name_path_or_error_text(folder, tmp_path):
    sizes = publish(folder, tmp_path / "site")
    found = files_of(tmp_path / "site")
    assert sizes == {name: len(content) for name, content in found.items()}
    assert {name: [word for word in SECRETS if word.encode() in text] for name, text in found.items()} == {
        name: [] for name in found
    }
    assert b"ImageError" in found["data/units.js"]
    assert "captum-mfv atlas" in json.loads(found["publication.json"])["command"]


def test_the_page_of_a_publication_is_made_again_from_its_data(folder, tmp_path):
    publish(folder, tmp_path / "site", title="A layer", source="https://example.org", license="CC0")
    assert rebuild(tmp_path / "site") == (tmp_path / "site" / "index.html").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ["index.html"]}, "'data/units.js'"),
        ({"files": ["data/../../secret"]}, "leads out"),
        ({"settings": None}, "NoneType"),
        ({"source": "javascript:alert(1)"}, "begins with https://"),
    ],
)
def test_a_page_is_not_made_of_another_folder(change, message, folder, tmp_path):
    publish(folder, tmp_path)
    record = json.loads((tmp_path / "publication.json").read_text())
    (tmp_path / "publication.json").write_text(json.dumps(record | change))
    with pytest.raises(RunError, match=re.escape(message)):
        rebuild(tmp_path)


def test_the_images_of_a_publication_are_those_of_facets(folder, tmp_path):
    publish(folder, tmp_path / "site", size=16)
    found = files_of(tmp_path / "site")
    images = {image_file(row["unit"], row["index"]) for row in folder.facets}
    scripts = {"data/units.js", "data/facets-0.js", "data/map.js"}
    assert found.keys() == images | scripts | {"data/sprites-0.webp", "index.html", "publication.json"}
    assert b"data:image" not in b"".join(found.values())
    for name in sorted(images)[:5]:
        with Image.open(tmp_path / "site" / name) as small, Image.open(folder.path / name) as image:
            assert small.size == (16, 16)
            assert np.abs(np.array(small, int)[8, 8] - np.array(image.convert("RGB"), int)[16, 16]).max() < 12


def test_everything_but_pixels_is_removed_from_image_files(folder, tmp_path):
    copy = AtlasFolder.read(shutil.copytree(folder.path, tmp_path / "atlas"))
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    Image.new("RGB", (32, 32)).save(copy.path / image_file("conv:0", 0), exif=exif)
    publish(copy, tmp_path / "site")
    assert b"secret" not in (tmp_path / "site" / image_file("conv:0", 0)).read_bytes()


def test_a_former_publication_is_replaced_and_other_files_are_refused(folder, tmp_path):
    site = tmp_path / "site"
    publish(folder, site)
    (site / "data" / "facets-0.js").write_text("old")
    publish(folder, site)
    assert b"old" not in (site / "data" / "facets-0.js").read_bytes()
    (site / "CNAME").write_text("example.org")
    with pytest.raises(RunError, match=r"holds CNAME, which is of no publication"):
        publish(folder, site)
    assert (site / "CNAME").read_text() == "example.org"
    with pytest.raises(RunError, match="of no publication"):
        publish(folder, folder.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        publish(folder, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "site"]


def test_an_empty_folder_and_a_link_to_one_are_written_to(folder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    publish(folder, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "index.html").exists()


def test_a_size_above_the_limit_is_refused_before_anything_is_written(folder, tmp_path):
    status, output = command("publish", folder.path, tmp_path / "site", "--no-photos", "--max-size", "20 kB")
    assert status != 0
    assert "is more than 0.02 MB; --max-size allows more, and smaller images, with --size PIXELS" in output
    assert list(tmp_path.iterdir()) == []
    status, output = command("publish", folder.path, tmp_path / "site", "--no-photos", "--max-size", "1MB")
    assert status == 0
    total = sum(map(len, files_of(tmp_path / "site").values()))
    assert output.strip() == f"{tmp_path / 'site' / 'index.html'}: {total / 1e6:.1f} MB in 86 files"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --no-photos"),
        (["--no-photos", "--max-size", "much"], "must be a size such as 50MB, not 'much'"),
        (["--no-photos", "--source", "javascript:alert(1)"], "begins with https://"),
        (["--no-photos", "--source", "https://[x"], "begins with https://"),
        (["--no-photos", "--size", "2"], "16"),
    ],
)
def test_wrong_options_are_refused(options, message, folder, tmp_path):
    status, output = command("publish", folder.path, tmp_path / "site", *options)
    assert status != 0
    assert message in output
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_atlas_or_an_image_that_cannot_be_read_is_refused(folder, tmp_path):
    copy = AtlasFolder.read(shutil.copytree(folder.path, tmp_path / "atlas"))
    (copy.path / image_file("conv:0", 0)).write_bytes(b"no image")
    with pytest.raises(RunError, match=r"0_0\.webp can't be read"):
        publish(copy, tmp_path / "site")
    (copy.path / image_file("conv:0", 0)).unlink()
    (copy.path / image_file("conv:0", 0)).symlink_to(folder.path / image_file("conv:0", 0))
    with pytest.raises(RunError, match="leads out of the folder"):
        publish(copy, tmp_path / "site")
    copy.manifest["status"] = "running"
    with pytest.raises(RunError, match="isn't finished"):
        publish(copy, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_title_source_and_license_are_shown_escaped(folder, tmp_path):
    publish(folder, tmp_path / "site", title=EVIL, license=EVIL, source="https://example.org/?a=<b>")
    page = (tmp_path / "site" / "index.html").read_text()
    assert EVIL not in page
    assert "&lt;img src=x" in page
    assert 'href="https://example.org/?a=&lt;b&gt;"' in page


@pytest.mark.parametrize(
    ("name", "value", "public"),
    [
        ("images", "/home/ann/photos/", "photos"),
        ("weights", "ann, private/net.pt", "net.pt"),
        ("images", "C:\\ann\\photos", "photos"),
        ("images", "data/shapes.py:make", "shapes.py:make"),
        ("model", "../ann/net.py:make", "net.py:make"),
        ("model", "hf:google/vit-base", "hf:google/vit-base"),
        ("model", "hf:/home/ann/vit", "vit"),
        ("model", "open_clip:ViT-B-32/laion", "open_clip:ViT-B-32/laion"),
        ("unit", "fc:/home/ann, private/d.npy", "fc:d.npy"),
        ("units", "conv:0-3,fc:ann/d.npy,conv:7", "conv:0-3,fc:d.npy,conv:7"),
        ("units", "/home/ann/units.txt", "units.txt"),
        ("top_k", 100, 100),
    ],
)
def test_settings_keep_names_of_files_without_their_folders(name, value, public):
    assert without_folders(name, value) == public


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    write_folder(tmp_path / "site", {"a/b.txt": b"old", "c.txt": b"old"})
    with pytest.raises(TypeError):
        write_folder(tmp_path / "site", {"a/b.txt": b"new", "c.txt": None})
    assert files_of(tmp_path) == {"site/a/b.txt": b"old", "site/c.txt": b"old"}
    write_folder(tmp_path / "site", {"d.txt": b"new"})
    assert files_of(tmp_path) == {"site/d.txt": b"new"}
