"""Untrusted text for terminals and pages."""

from __future__ import annotations

__all__ = ["visible"]


def visible(value: object) -> str:
    """Return text in which symbols replace control characters, and ``?`` replaces characters outside of Unicode.

    >>> visible("a\\x1b[31mb")
    'a␛[31mb'
    """
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 0x20 else "\u2421" if c == "\x7f" else c for c in str(value))
    shown = "".join("\ufffd" if 0x80 <= ord(c) < 0xA0 else c for c in shown)
    return shown.encode("utf-8", "replace").decode()
