"""Amounts of memory as people type them."""

from __future__ import annotations

import pytest

from penstock.errors import UserError
from penstock.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * 10**9), ("500M", 5 * 10**8), ("1.5 GiB", 3 << 29), ("1000", 1000), ("2kb", 2000), (None, None)],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8 bananas", "0", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=r"--memory-budget .* is no amount of memory"):
        parse_bytes(text)
