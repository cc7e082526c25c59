"""Amounts of memory as people type them."""

from __future__ import annotations

import re

from penstock.errors import UserError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str | None, flag: str = "--memory-budget") -> int | None:
    """`8GB`, `500M`, `1.5 GiB` or `1000000` as a number of bytes; None stays None. Raises UserError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    if not found or not float(found[1]):
        raise UserError(f"{flag} {text!r} is no amount of memory: write it as 8GB, 500MB or 1.5GiB")
    return int(float(found[1]) * UNITS[found[2] or ""])
