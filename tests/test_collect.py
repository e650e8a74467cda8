"""Passes over a dataset: top images of many units with their crops, rows in files, resumed passes."""

import json
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SPEC, Keyed, fingerprint, planted_images, same, small_cnn
from torch import nn

from captum_mfv import Code, FacetFinder, InputSpec, Unit, find_facets, top_images
from captum_mfv.activations import capture, guard
from captum_mfv.activations.codes import Store, collect
from captum_mfv.activations.top_values import TopValues
from captum_mfv.errors import FacetError, ImageError, MFVWarning, RunError, UnitError
from captum_mfv.images import stack
from captum_mfv.storage.identity import dataset_fingerprint


@pytest.fixture(scope="module")
def images():
    return torch.cat([planted_images()[0], torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(1))])


def outputs(model, layer, images):
    with guard(model), torch.no_grad(), capture(model, [layer]) as run:
        return run(SPEC(images))[layer]


def test_top_images_are_the_strongest_peaks_and_their_crops_drive_the_unit_as_much(images):
    model, unit = small_cnn(), Unit("conv2", 3, "max")
    top = top_images(model, unit, images, 15, input_spec=SPEC)
    peaks = outputs(model, "conv2", images)[:, 3].flatten(1).amax(1)
    assert top.indices.tolist() == peaks.argsort(descending=True)[:15].tolist()
    assert np.allclose(top.activations, peaks[top.indices], atol=1e-5)
    assert top.input_spec == InputSpec(12, SPEC.mean, SPEC.std)
    assert top.cropped
    again = collect(model, unit, top, input_spec=top.input_spec)
    assert (again.activations >= top.activations - 1e-4).all()
    for k in range(15):
        y, x = top.corners[k]
        assert torch.equal(top[k], images[top.indices[k], :, y : y + 12, x : x + 12])


@pytest.mark.parametrize(
    ("unit", "read"),
    [
        (Unit("fc", 1), lambda out: out[:, 1]),
        (Unit("conv2", 3), lambda out: out[:, 3].mean((1, 2))),
        (Unit("conv2", np.eye(24)[3]), lambda out: out[:, 3].mean((1, 2))),
    ],
)
def test_top_images_of_units_without_a_peak_are_not_cropped(unit, read, images):
    model = small_cnn()
    top = top_images(model, unit, images, 5, input_spec=SPEC)
    values = read(outputs(model, unit.layer, images))
    wanted = values.argsort(descending=True)[:5]
    assert top.indices.tolist() == wanted[values[wanted] > 0].tolist()
    assert not top.cropped
    assert len(top) > 0
    assert torch.equal(stack(top, range(len(top))), images[top.indices])


def test_many_units_take_one_pass_and_have_the_same_images_as_each_alone(images):
    model = small_cnn()
    passes = []
    model.conv1.register_forward_hook(lambda *_: passes.append(1))
    units = [Unit("conv2", c, "max") for c in range(8)] + [Unit("fc", 0), Unit("conv1", 2, "max")]
    together = top_images(model, units, images, 10, input_spec=SPEC, batch_size=30)
    taken = len(passes)
    alone = [top_images(model, unit, images, 10, input_spec=SPEC, batch_size=30) for unit in units]
    assert taken < len(passes) / 5
    for one, other in zip(together, alone, strict=True):
        assert one.unit == other.unit
        assert np.array_equal(one.indices, other.indices)
        assert np.array_equal(one.corners, other.corners)


def test_equal_activations_keep_the_order_of_the_dataset(images):
    repeated = torch.cat([images[:7]] * 6)
    whole = top_images(small_cnn(), Unit("conv2", 3, "max"), repeated, 20, input_spec=SPEC, batch_size=42)
    for batch_size in (1, 5):
        top = top_images(small_cnn(), Unit("conv2", 3, "max"), repeated, 20, input_spec=SPEC, batch_size=batch_size)
        assert np.array_equal(top.indices, whole.indices)
        assert np.array_equal(top.corners, whole.corners)
    by_image = whole.indices[:18] % 7
    assert [np.diff(whole.indices[:18][by_image == n]).tolist() for n in dict.fromkeys(by_image)] == [[7] * 5] * 3


def test_top_images_hold_units_x_k_numbers_however_many_images(images):
    top = TopValues(6, 4)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(50, 10, 6, generator=generator)
    batches[3, 2, 1], batches[7, :, 2] = float("nan"), 0
    for n, batch in enumerate(batches):
        top.add(range(10 * n, 10 * n + 10), batch, torch.zeros(10, 6, 2, dtype=torch.int64))
    assert sum(value.numel() for value in top.state().values()) == 6 * 4 * 5 + 6 + 2
    everything = batches.flatten(0, 1).T.nan_to_num(-1)
    assert torch.equal(top.indices, everything.sort(dim=1, descending=True).indices[:, :4])
    assert top.n_not_finite.tolist() == [0, 1, 0, 0, 0, 0]


def test_of_maxima_at_which_a_unit_saturates_the_larger_mean_comes_first():
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 1, 1), relu6=nn.ReLU6())).requires_grad_(False)
    model.conv.load_state_dict({"weight": torch.full((1, 1, 1, 1), 20.0), "bias": torch.zeros(1)})
    images = torch.zeros(6, 1, 8, 8)
    for k, side in enumerate([2, 5, 0, 3, 5, 1]):
        images[k, :, :side, :side] = 0.9
    top = top_images(model, Unit("relu6", 0, "max"), images, 4, input_spec=InputSpec(8, (0,), (1,), crop_fraction=1))
    assert top.activations.tolist() == [6.0] * 4
    assert top.indices.tolist() == [1, 4, 3, 0]


@pytest.mark.parametrize("n", [70, 25])
def test_a_stopped_scan_for_top_images_resumes_to_the_same_result(images, tmp_path, monkeypatch, n):
    monkeypatch.setattr("captum_mfv.activations.top_k._SECONDS", 0.0)
    units = [Unit("conv2", c, "max") for c in range(5)] + ["fc:1"]
    options = {"input_spec": SPEC, "batch_size": 10}
    stored = {**options, "store": tmp_path / "top", "key": "images"}
    with pytest.raises(KeyboardInterrupt):
        top_images(small_cnn(), units, Stops(images, n), 15, **stored)
    rest = Stops(images, 999)
    resumed = top_images(small_cnn(), units, rest, 15, **stored)
    assert n - 30 <= min(rest.read) <= n
    done = top_images(small_cnn(), units, Stops(images, 0), 15, **stored)
    whole = top_images(small_cnn(), units, images, 15, **options)
    for one, again, other in zip(resumed, done, whole, strict=True):
        for name in ("indices", "activations", "corners"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
            assert np.array_equal(getattr(again, name), getattr(other, name))
    with pytest.raises(RunError, match=r"holds another pass \(k 15 there, 16 here\)"):
        top_images(small_cnn(), units, rest, 16, **stored)
    (tmp_path / "top" / "top.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="can't be continued"):
        top_images(small_cnn(), units, rest, 15, **stored)


def test_facets_of_a_hidden_unit_are_found_in_the_crops_of_its_peaks(images):
    model = small_cnn()
    top = top_images(model, Unit("conv2", 3, "max"), images, 60, input_spec=SPEC)
    facets = find_facets(model, top.unit, top, n_facets=3, input_spec=top.input_spec)
    assert facets.code == Code("relu1")
    assert len(facets.labels) == len(top)


def test_a_dead_unit_has_no_images_and_a_clear_error(images):
    model = small_cnn()
    nn.init.constant_(model.conv2.bias, -1e3)
    top = top_images(model, Unit("relu2", 3, "max"), images, input_spec=SPEC)
    assert len(top) == 0
    with pytest.raises(ImageError, match="no image activates relu2:3 above zero"):
        find_facets(model, top.unit, top, input_spec=top.input_spec)
    with pytest.warns(MFVWarning, match=r"relu2:3 is 0 on all 120 images: the unit is dead"):
        find_facets(model, Unit("relu2", 3), images, input_spec=SPEC)


@pytest.mark.parametrize(
    ("data", "k", "message"),
    [
        (torch.zeros(0, 3, 32, 32), 5, "the dataset holds no images"),
        (torch.zeros(4, 3, 32, 32), 0, "k must be at least 1, not 0"),
    ],
)
def test_no_images_are_an_error(data, k, message):
    with pytest.raises(ImageError, match=message):
        top_images(small_cnn(), Unit("fc", 0), data, k, input_spec=SPEC)


def test_identical_images_have_one_facet_or_an_error_with_the_number_of_distinct_codes(images):
    same_image = images[:1].expand(20, -1, -1, -1)
    with pytest.raises(FacetError, match="1 distinct codes"):
        find_facets(small_cnn(), Unit("conv2", 3), same_image, n_facets=3, input_spec=SPEC)
    found = find_facets(small_cnn(), Unit("conv2", 3), same_image, n_facets="auto", input_spec=SPEC)
    assert [len(facet) for facet in found] == [20]


def test_one_image_is_one_facet(images):
    found = find_facets(small_cnn(), Unit("conv2", 3), images[:1], n_facets="auto", input_spec=SPEC)
    assert [facet.members.tolist() for facet in found] == [[0]]


class Stops:
    """Images that raise KeyboardInterrupt after a number of images."""

    fingerprint = "images"

    def __init__(self, images, after):
        self.images, self.after, self.read = images, after, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index >= self.after:
            raise KeyboardInterrupt
        self.read.append(index)
        return self.images[index]


@pytest.fixture
def saved_every_batch(monkeypatch):
    """Save the state of a pass after every batch."""
    monkeypatch.setattr("captum_mfv.activations.codes._SECONDS", 0.0)


@pytest.mark.usefixtures("saved_every_batch")
def test_an_interrupted_pass_resumes_where_it_ended(images, tmp_path):
    model, unit = small_cnn(), Unit("fc", 1)
    before = fingerprint(model)
    with pytest.raises(KeyboardInterrupt):
        collect(model, unit, Stops(images, 70), input_spec=SPEC, batch_size=10, store=tmp_path / "rows")
    rest = Stops(images, 999)
    found = collect(model, unit, rest, input_spec=SPEC, batch_size=10, store=tmp_path / "rows")
    assert 50 <= min(rest.read) <= 70
    whole = collect(model, unit, images, input_spec=SPEC, batch_size=10)
    assert np.array_equal(found.codes, whole.codes)
    assert np.array_equal(found.activations, whole.activations)
    done = Stops(images, 0)
    assert np.array_equal(collect(model, unit, done, input_spec=SPEC, store=tmp_path / "rows").codes, whole.codes)
    after = fingerprint(model)
    assert [key for key in before if not same(before[key], after[key])] == []


class Holes(Stops):
    def __getitem__(self, index):
        if index % 3 == 2:
            raise ImageError(f"number {index}: broken")
        return super().__getitem__(index)


def test_rows_of_unreadable_images_are_nan_in_files_and_in_memory(images, tmp_path):
    for store in (None, tmp_path / "rows"):
        with pytest.warns(UserWarning, match="broken"):
            found = collect(small_cnn(), Unit("fc", 1), Holes(images, 999), input_spec=SPEC, store=store)
        assert found.indices.tolist() == [i for i in range(120) if i % 3 != 2]
        assert np.isnan(found.codes[2::3]).all()
        assert np.isfinite(found.codes[found.indices]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"unit": Unit("fc", 2)},
        {"code": "relu1"},
        {"input_spec": InputSpec(40)},
        {"model": small_cnn(seed=1)},
        {"images": torch.rand(7, 3, 32, 32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_of_another_pass_are_refused_and_kept(change, images, tmp_path):
    first = {"model": small_cnn(), "unit": Unit("fc", 1), "images": images, "input_spec": SPEC}
    collect(**first, store=tmp_path / "rows")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "rows").iterdir()}
    with pytest.raises(RunError, match="holds another pass"):
        collect(**{**first, **change}, store=tmp_path / "rows")
    assert {path.name: path.read_bytes() for path in (tmp_path / "rows").iterdir()} == kept


def brightness(batch):
    return batch.mean((2, 3))


def darkness(batch):
    return 1 - batch.mean((2, 3))


def test_a_store_never_returns_rows_of_another_dataset_of_the_same_length(images, tmp_path):
    options = {"model": small_cnn(), "unit": Unit("fc", 1), "input_spec": SPEC, "store": tmp_path / "rows"}
    rows = collect(images=images, **options)
    with pytest.raises(RunError, match=r"holds another pass \(images \w+ there, \w+ here\)"):
        collect(images=images.flip(0), **options)
    same = collect(images=images.clone(), **options)
    assert np.array_equal(rows.codes, same.codes)


def test_a_store_never_returns_codes_of_another_function(images, tmp_path):
    options = {"model": small_cnn(), "unit": Unit("fc", 1), "images": images, "input_spec": SPEC}
    with pytest.raises(RunError, match=r"code function brightness has no fingerprint.*give key="):
        collect(**options, code_fn=brightness, store=tmp_path / "rows")
    collect(**options, code_fn=brightness, store=tmp_path / "rows", key="brightness")
    for change in ({"code_fn": darkness, "key": "darkness"}, {"key": "brightness"}):
        with pytest.raises(RunError, match=r"holds another pass"):
            collect(**options, **change, store=tmp_path / "rows")


def test_storing_rows_of_a_dataset_without_a_fingerprint_needs_a_key(images, tmp_path):
    read = small_cnn(), Unit("fc", 1), Keyed(images)
    for call in (collect, find_facets, partial(top_images, k=3)):
        with pytest.raises(RunError, match=r"dataset of type Keyed has no fingerprint.*give key="):
            call(*read, input_spec=SPEC, store=tmp_path / "rows")
        assert not (tmp_path / "rows").exists()
    top = top_images(*read, 5, input_spec=SPEC, store=tmp_path / "top", key="noise")
    with pytest.raises(RunError, match=r"\(images \w+ there"):
        top_images(*read, 5, input_spec=SPEC, store=tmp_path / "top", key="other noise")
    with pytest.raises(RunError, match="type Keyed has no fingerprint"):
        collect(*read[:2], top, input_spec=SPEC, store=tmp_path / "rows")
    collect(*read[:2], top, input_spec=SPEC, store=tmp_path / "rows", key="noise")


def test_top_images_are_identified_by_their_dataset_and_place(images):
    model, unit = small_cnn(), Unit("conv2", 3, reduce="max")
    found = [
        dataset_fingerprint(top_images(model, unit, data, k, input_spec=SPEC))
        for data, k in [(images, 5), (images.clone(), 5), (images, 4), (images.flip(0), 5)]
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize("content", ["{", json.dumps({"parts": {}, "n_done": 3}), json.dumps([1])])
def test_a_store_that_cannot_be_read_is_an_error(content, images, tmp_path):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(RunError, match="can't be continued"):
        collect(small_cnn(), Unit("fc", 1), images, input_spec=SPEC, store=tmp_path)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((60, 9), np.float32),
        np.zeros(60),
        np.array([["words"]] * 60),
        np.zeros(()),
        np.zeros((61, 12)),
        b"short",
    ],
)
@pytest.mark.usefixtures("saved_every_batch")
def test_a_store_with_arrays_of_another_shape_or_type_is_an_error(rows, images, tmp_path):
    options = {"input_spec": SPEC, "batch_size": 10, "store": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        collect(small_cnn(), Unit("fc", 1), Stops(images, 30), **options)
    path = tmp_path / "codes.npy"
    path.write_bytes(path.read_bytes()[:-4]) if isinstance(rows, bytes) else np.save(path, rows)
    size = path.stat().st_size
    with pytest.raises(RunError, match="can't be continued"):
        collect(small_cnn(), Unit("fc", 1), Stops(images, 999), **options)
    assert path.stat().st_size == size


@pytest.mark.usefixtures("saved_every_batch")
def test_stored_rows_that_were_changed_are_refused(images, tmp_path):
    options = {"input_spec": SPEC, "batch_size": 10, "store": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        collect(small_cnn(), Unit("fc", 1), Stops(images, 30), **options)
    np.lib.format.open_memmap(tmp_path / "codes.npy", "r+")[7, 2] += 1
    with pytest.raises(RunError, match="can't be continued: it was changed; remove it"):
        collect(small_cnn(), Unit("fc", 1), Stops(images, 999), **options)


def test_rows_written_again_have_new_checksums(tmp_path):
    store = Store(4, {}, tmp_path)
    store.write([0, 1, 2], {"rows": np.ones((3, 2), np.float32)})
    store.finish()
    again = Store(4, {}, tmp_path)
    again.write([1, 2], {"rows": np.zeros((2, 2), np.float32)})  # interrupted before the state is saved
    del again
    resumed = Store(4, {}, tmp_path)
    assert resumed.n_done == 1
    resumed.finish()
    assert np.array_equal(Store(4, {}, tmp_path).arrays["rows"][0], [1, 1])


@pytest.mark.parametrize("n_done", [-1, 5])
def test_a_store_of_more_rows_than_images_is_refused(n_done, tmp_path):
    store = Store(4, {}, tmp_path)
    store.write([0], {"rows": np.ones((1, 2), np.float32)})
    store.finish()
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**state, "n_done": n_done}))
    with pytest.raises(RunError, match="can't be continued"):
        Store(4, {}, tmp_path)


def test_a_folder_of_other_files_is_an_error(images, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="something other"):
        collect(small_cnn(), Unit("fc", 1), images, input_spec=SPEC, store=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


class Last(nn.Module):
    """A layer that returns channels last, as Swin's blocks do."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_channels_last_maps_need_the_option(images):
    model = nn.Sequential(small_cnn().conv1, Last(), nn.Flatten(), nn.LazyLinear(4)).eval()
    model(images[:1])
    with pytest.raises(UnitError, match=r"layer 1 returns \(N, 16, 16, 12\).*write channels='last'"):
        find_facets(model, Unit("1", 3), images, input_spec=SPEC)
    with pytest.raises(UnitError, match="write channels='last'"):
        find_facets(model, Unit("3", 0), images, code="1", input_spec=SPEC)
    last = top_images(model, Unit("1", 3, "max", "last"), images, 20, input_spec=SPEC)
    first = top_images(model, Unit("0", 3, "max"), images, 20, input_spec=SPEC)
    assert np.array_equal(last.indices, first.indices)
    assert np.array_equal(last.corners, first.corners)
    auto = find_facets(model, Unit("3", 0), images, finder=FacetFinder(2, random_state=0), input_spec=SPEC)
    assert auto.code == Code("1", channels="last")
    assert auto.codes.shape == (120, 12)


def test_channels_are_first_last_or_none():
    for make in (lambda: Unit("1", 0, channels="middle"), lambda: Code("1", channels="middle")):
        with pytest.raises(UnitError, match="channels must be first, last or None, not 'middle'"):
            make()
