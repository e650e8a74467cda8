"""The k largest values of units: parts of a scan merge to what one sort of all values gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_mfv.activations.top_values import TopValues
from captum_mfv.jobs.atlas.scan import select_units

VALUES = st.sampled_from([0.0, -1.0, 0.5, 0.5, 1.0, 2.0, np.nan, np.inf, -np.inf])  # many ties
SCANS = st.tuples(st.integers(1, 3), st.integers(1, 6), st.lists(st.integers(0, 7), min_size=1, max_size=5))


def scanned(values: np.ndarray, means: np.ndarray, first: int, k: int, batch: int) -> TopValues:
    """Return the top values of (N, n_units) activations, and means, of the images from ``first`` on."""
    top = TopValues(values.shape[1], k)
    for start in range(0, len(values), batch):
        rows = np.arange(first + start, first + min(start + batch, len(values)))
        peaks = torch.tensor(rows)[:, None, None].expand(-1, values.shape[1], 2)
        here = slice(start, start + batch)
        top.add(rows.tolist(), torch.tensor(values[here]).float(), peaks, torch.tensor(means[here]).float())
    top.n_done = torch.tensor(len(values))
    return top


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(SCANS, st.data())
def test_parts_in_any_order_merge_to_the_k_largest_of_all(scan, data):
    n_units, k, sizes = scan
    n_images = sum(sizes)
    values, means = (
        np.array(data.draw(st.lists(numbers, min_size=n_images * n_units, max_size=n_images * n_units)))
        for numbers in (VALUES, st.sampled_from([-0.5, 0.0, 0.25, np.nan, np.inf]))
    )
    values, means = values.reshape(n_images, n_units), means.reshape(n_images, n_units)
    means = np.where(np.isfinite(values), np.nan_to_num(means, posinf=1), means)
    firsts = np.cumsum([0, *sizes]).tolist()
    parts = [
        scanned(values[first : first + size], means[first : first + size], first, k, data.draw(st.integers(1, 4)))
        for first, size in zip(firsts, sizes, strict=False)
    ]
    merged = TopValues(n_units, k)
    for number in data.draw(st.permutations(range(len(parts)))):
        merged.merge(parts[number])
    for unit, (column, mean) in enumerate(zip(values.T, means.T, strict=True)):
        usable = np.where(np.isfinite(column) & (column > 0), column, -np.inf)
        order = np.lexsort((np.arange(n_images), -mean, -usable))[:k]
        order = order[usable[order] > -np.inf]
        n = len(order)
        assert merged.values[unit].tolist() == [*usable[order], *[-np.inf] * (k - n)]
        assert merged.indices[unit].tolist() == [*order, *[-1] * (k - n)]
        assert merged.peaks[unit, :, 0].tolist() == [*order, *[-1] * (k - n)]
    assert merged.n_not_finite.tolist() == (~np.isfinite(values)).sum(0).tolist()
    assert (int(merged.n_read), int(merged.n_done)) == (n_images, n_images)
    again = TopValues(n_units, k)
    again.load({name: value.clone() for name, value in merged.state().items()})
    state = {name: value.numpy() for name, value in again.state().items()}
    last = select_units(state, [n_units - 1])
    assert last["values"].tolist() == merged.values[-1:].tolist()


def test_a_state_of_other_units_is_an_error():
    with pytest.raises(ValueError, match="other shapes or types"):
        TopValues(2, 3).load(TopValues(2, 4).state())
