"""Seeds for whatever must be drawn inside a step: pure functions of the run's seed, so that nothing has to be saved."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose, independent of all others: `derive_seed(0, "shuffle", step)`."""
    digest = hashlib.blake2b(repr((seed, purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
