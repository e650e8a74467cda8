"""Vocabularies: words that images are scored against, from a file, or the built-in list of common words."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from captum_mfv.errors import LabelError
from captum_mfv.storage.untrusted import read_text, visible

__all__ = ["check_words", "common_words", "read_words"]

_LONGEST = 200  # characters; a word may be a phrase
_MOST = 100_000


def read_words(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the words of a text file in UTF-8, one a line; empty lines and lines that begin with # are left out.

    Raises:
        LabelError: if the file can't be read, or errors of `check_words`.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise LabelError(f"{path} can't be read as a list of words: {error}") from error
    return _parse(text, str(path))


@cache
def common_words() -> tuple[str, ...]:
    """Return the built-in vocabulary: common objects, animals, food, scenes, colors, textures and parts, in English."""
    return _parse((files(__package__) / "words.txt").read_text(encoding="utf-8"), "words.txt")


def check_words(words: Iterable[str], what: str = "words") -> tuple[str, ...]:
    """Return words as a tuple; ``what`` names them in errors.

    Raises:
        TypeError: if the words are not a sequence of strings.
        LabelError: if there is no word or too many, or one is empty, too long, not printable or there twice.
    """
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise TypeError(f"{what} must be a list of strings, not {words!r}")
    checked = tuple(words)
    if wrong := [word for word in checked if not isinstance(word, str)]:
        raise TypeError(f"{what} must be strings, not {wrong[0]!r}")
    if not 1 <= len(checked) <= _MOST:
        raise LabelError(f"{what} must be 1 to {_MOST} words, not {len(checked)}")
    seen = set[str]()
    for word in checked:
        if not word.strip() or len(word) > _LONGEST or not word.isprintable():
            shown = visible(word if len(word) <= _LONGEST else f"{word[:40]}…")
            raise LabelError(f"{what}: each must be 1 to {_LONGEST} printable characters, not {shown!r}")
        if word in seen:
            raise LabelError(f"{what}: {word!r} is there twice")
        seen.add(word)
    return checked


def _parse(text: str, what: str) -> tuple[str, ...]:
    lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
    return check_words((line for line in lines if line and not line.startswith("#")), what)
