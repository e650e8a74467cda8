"""The README's examples run as printed; those marked as downloading are only compiled."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"(<!-- downloads -->\n)?```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_the_examples_run_one_after_the_other():
    names = {}
    for downloads, source in PYTHON:
        code = compile(source, "README.md", "exec")
        if not downloads:
            exec(code, names)
    assert len(set(names["paper"])) == len(set(names["ward"])) == 5


def test_there_are_two_set_up_commands_of_one_line_each():
    setup = [block for block in SHELL if "venv" in block]
    assert [block.count("\n") for block in setup] == [1, 1]
    assert "captum-mfv demo" in setup[0]
    assert "pytest" in setup[1]


def test_the_commands_options_exist():
    from captum_mfv.cli import app

    jobs = [block for block in SHELL if block.startswith("captum-mfv run")]
    known = {option for parameter in app.commands["run"].params for option in parameter.opts}
    assert len(jobs) == 2
    assert set(re.findall(r"--[\w-]+", "".join(jobs))) <= known
