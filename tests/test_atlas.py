"""The atlas of a network with known facets: what is found, what the folder returns, and the same by every engine."""

from collections import Counter

import numpy as np
import pytest
import torch
from small_atlas import content, settings, write_inputs

from captum_mfv import AtlasFolder, FacetFinder, ImageFolder, Unit, find_facets, models, top_images
from captum_mfv.errors import FacetError, RunError, UnitError
from captum_mfv.images.files import from_pil, open_image
from captum_mfv.jobs import atlas
from captum_mfv.metrics import multifacetedness


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("atlas"))


@pytest.fixture(scope="module")
def made(root):
    """Return the atlas of all five units by the default settings, but for few steps."""
    job = settings(root, top_k=60, facets="auto", steps=4, batch=None)
    return AtlasFolder.read(atlas.run(job, root / "made").path)


def test_known_units_have_the_facets_that_were_built_into_them(made):
    assert made.finished
    assert [row["unit"] for row in made.units] == [f"unit:{i}" for i in range(5)]
    assert [row["status"] for row in made.units] == ["done", "done", "dead", "done", "done"]
    assert [row.get("n_facets") for row in made.units] == [2, 1, None, 2, 3]
    assert [row.get("n_images") for row in made.units] == [40, 20, None, 40, 60]
    kinds = {}
    for row in made.facets:
        found = Counter(member["path"][-5] for member in row["members"])
        assert len(found) == 1, "a facet holds one kind of image"
        assert row["size"] == len(row["members"]) == 20
        kinds.setdefault(row["unit"], set()).update(found)
    assert kinds == {"unit:0": {*"01"}, "unit:1": {*"0"}, "unit:3": {*"01"}, "unit:4": {*"012"}}
    for row in made.facets:
        assert 0 <= row["activation_percentile"] <= 1
        assert row["retention"] is True
        low, high = row["stability_interval"]
        assert 0 <= low <= row["stability"] <= high <= 1
        assert [member["distance"] for member in row["members"]] == sorted(m["distance"] for m in row["members"])


def test_p_values_are_corrected_over_the_units_of_a_layer(made):
    done = [row for row in made.units if row["status"] == "done"]
    p_values = np.array([row["p_value"] for row in done])
    order = p_values.argsort()
    stepped = p_values[order] * len(done) / np.arange(1, len(done) + 1)
    wanted = np.empty(len(done))
    wanted[order] = np.minimum.accumulate(stepped[::-1])[::-1].clip(max=1)
    np.testing.assert_allclose([row["p_adjusted"] for row in done], wanted)
    assert [row["unit"] for row in made.ranked()] == ["unit:4", "unit:0", "unit:3", "unit:1"]
    assert p_values[1] > 0.01 > p_values[[0, 2, 3]].max()


def test_a_unit_has_the_facets_that_find_facets_returns_on_its_top_images(made, root):
    model, spec = models.load(f"{root}/net.py:make")
    images = ImageFolder(root / "images", spec)
    top = top_images(model, Unit("unit", 0, "max"), images, 60, input_spec=spec)
    finder = FacetFinder("auto", max_facets=6, random_state=0)
    wanted = find_facets(model, top.unit, top, finder=finder, input_spec=top.input_spec)
    one = made.unit("unit:0")
    np.testing.assert_array_equal(one.facets.labels, wanted.labels)
    np.testing.assert_allclose(one.facets.codes, wanted.codes, atol=1e-6)
    np.testing.assert_allclose(one.facets.activations, wanted.activations, atol=1e-6)
    assert one.facets.unit == wanted.unit
    for row, facet in zip(one.rows, wanted, strict=True):
        member, place = row["members"][0], int(facet.members[0])
        upper, left = top.corners[place].tolist()
        assert member["path"] == images.name(int(top.indices[place]))
        assert member["crop"] == (left, upper, left + top.crop_size, upper + top.crop_size)
    assert [image.shape for image in one.images] == [(3, top.crop_size, top.crop_size)] * 2
    assert torch.equal(one.images[1], from_pil(open_image(made.path / "images/unit/0_1.webp")))
    assert open_image(made.path / "images/unit/0_1_members.webp").size == (9 * top.crop_size, top.crop_size)


@pytest.mark.parametrize("unit", ["unit:0", "unit:1"])  # with separated clusters and without
def test_a_unit_has_the_multifacetedness_of_its_facets(made, unit):
    scored, row = multifacetedness(made.unit(unit).facets), next(row for row in made.units if row["unit"] == unit)
    found = row["multifacetedness"], row["p_value"], row["coverage"]
    assert found == pytest.approx((scored.score, scored.p_value, scored.coverage), rel=1e-6)


def test_the_nearest_facet_of_a_facet_is_that_of_an_equal_unit(made):
    for facet in range(2):
        (row, cosine), *others = made.nearest("unit:0", facet, n=20)
        equals = {(row["unit"], row["index"]) for row, cosine in [(row, cosine), *others] if cosine > 0.999}
        assert ("unit:3", facet) in equals
        assert cosine == pytest.approx(1, abs=1e-5)
        assert len(others) == len(made.facets) - 2
    with pytest.raises(FacetError, match="no facet 9 of unit:0"):
        made.nearest("unit:0", 9)
    places, centers = made.map("unit"), made.centers("unit")
    assert places.shape == (len(made.facets), 2)
    assert np.isfinite(places).all()
    row = next(i for i, row in enumerate(made.facets) if row["unit"] == "unit:3")
    np.testing.assert_array_equal(centers[row], made.unit("unit:3").facets.centers[0])


def test_tables_are_data_frames_and_units_without_facets_are_errors(made):
    frame = made.to_pandas()
    assert frame.set_index("unit").loc["unit:4", "n_facets"] == 3
    assert len(made.to_pandas("facets")) == len(made.facets)
    with pytest.raises(RunError, match="table must be units, facets or labels, not 'rows'"):
        made.to_pandas("rows")
    with pytest.raises(UnitError, match="unit:2 is dead, and has no facets"):
        made.unit("unit:2")
    with pytest.raises(UnitError, match="unit:7 isn't in the atlas"):
        made.unit(Unit("unit", 7))


# The same files, whoever does the work


@pytest.fixture(scope="module")
def plain(root):
    """Return the files of an atlas that was made in this process."""
    return content(atlas.run(settings(root), root / "plain").path)


def differing(one, other):
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_each_engine_writes_the_same_files(engine, root, plain, tmp_path):
    pytest.importorskip("distributed" if engine == "dask" else "ray")
    made = content(atlas.run(settings(root), tmp_path / "out", engine=engine, threads=1).path)
    assert differing(made, plain) == []


@pytest.mark.parametrize("order", [["0/2", "1/2"], ["2/3", "0/3", "1/3"]])
def test_shards_in_any_order_merge_to_the_same_files(order, root, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("captum_mfv.jobs.atlas.plan._PART", 32)  # two parts, one for each shard
    for shard in order:
        with pytest.raises(RunError, match="of 5 units aren't done; run the shards that are left"):
            atlas.run(settings(root), tmp_path / "out", merge=True)
        atlas.run(settings(root), tmp_path / "out", shard=shard)
    out = atlas.run(settings(root), tmp_path / "out", merge=True).path
    assert differing(made := content(out), plain) == []
    (out / "index.html").unlink()
    (part := out / "data" / ".units.js.0a1b2c3d.part").write_bytes(b"half")
    atlas.run(settings(root), out)
    assert differing(content(out), made) == [], "what is missing is written again"
    assert not part.exists(), "what a killed write left is removed"
