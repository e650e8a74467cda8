"""Make the README's links absolute in the metadata: PyPI shows the README without the files that it links to."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
PROJECT, README = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "README.md"))
(SOURCE,) = re.findall(r'^Source = "(.+)"$', PROJECT, re.MULTILINE)

setup(
    long_description=re.sub(
        r"(!?)\[[^\]]*\]\((?!https:|#)",
        lambda link: f"{link[0]}{SOURCE}/{'raw' if link[1] else 'blob'}/main/",  # an image's file, another file's page
        README,
    ),
    long_description_content_type="text/markdown",
)
