"""Progress on standard error: bars on a terminal, otherwise one line per minute."""

import sys
from time import sleep

import pytest
from tqdm import tqdm

from captum_mfv.display import progress


def test_without_a_terminal_a_long_scan_prints_whole_lines_and_a_short_one_none(capsys, monkeypatch):
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    with progress.Progress(total=50, desc="activations", unit="image") as bar:
        bar.update(10)
        tqdm.write("a warning", file=sys.stderr)
    with progress.waiting("metrics", True):
        pass
    assert capsys.readouterr().err == "a warning\n"
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    with progress.Progress(total=50, desc="activations", unit="image", mininterval=0) as bar:
        sleep(0.01)
        bar.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("activations: 10 of 50 images, ")
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize("disable", [True, False])
def test_on_a_terminal_a_bar_moves(capsys, monkeypatch, disable):
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    with progress.Progress(total=5, desc="activations", disable=disable) as bar:
        bar.update(5)
    assert ("\ractivations: 100%" in capsys.readouterr().err) != disable
