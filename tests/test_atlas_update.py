"""An atlas with other settings: --update redoes the units that depend on them, and keeps the others."""

import pytest

import captum_mfv as mfv
from captum_mfv.errors import RunError
from captum_mfv.jobs import atlas


@pytest.fixture
def settings(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(mfv.datasets.planted_images(n_each=4)[0]):
        mfv.images.to_pil(image).save(images / f"{number:02}.png")

    def made(**changed):
        given = {"units": "rectified:0", "facets": 1, "steps": 1, "reduce": "mean", "top_k": 10, **changed}
        return atlas.AtlasSettings(model="captum_mfv.datasets:planted_network", images=images, **given)

    return made


@pytest.mark.parametrize(
    ("changed", "kept"), [({"units": "rectified:0-1"}, True), ({"steps": 2}, False)], ids=["longer list", "more steps"]
)
def test_update_keeps_the_units_that_do_not_depend_on_what_changed(settings, changed, kept, tmp_path):
    out = tmp_path / "out"
    atlas.run(settings(), out)
    before = (out / "units" / "rectified" / "0.json").stat().st_mtime_ns
    with pytest.raises(RunError, match="--update"):
        atlas.run(settings(**changed), out)
    folder = atlas.run(settings(**changed), out, update=True)
    assert folder.finished
    assert {row["status"] for row in mfv.AtlasFolder.read(out).units} == {"done"}
    assert ((out / "units" / "rectified" / "0.json").stat().st_mtime_ns == before) == kept
