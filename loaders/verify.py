"""Read a whole set and name what is broken in it.

    python loaders/convert.py --verify train.beton

Every image is held against its checksum and decoded. The checksum finds any change of bytes or label since the shard
was written; decoding finds what was damaged before.
"""

from __future__ import annotations

from penstock.errors import BrokenImage
from penstock.loaders.in_order import in_order
from penstock.loaders.progress import bar
from penstock.loaders.sources.base import Source

CHUNK = 8  # images a task


def verify(source: Source, *, workers: int, progress: bool = True) -> list[BrokenImage]:
    """The broken images of a source, in order; freshly opened, so that no checksum has been tested before."""

    def check(first: int) -> list[BrokenImage | int]:
        return [_check(source, index) for index in range(first, min(first + CHUNK, len(source)))]

    broken = []
    with bar(source.name, len(source), disable=not progress) as shown:
        for results in in_order(check, range(0, len(source), CHUNK), workers):
            for result in results:
                if isinstance(result, BrokenImage):
                    shown.say(str(result))
                    broken.append(result)
                shown.advance(result if isinstance(result, int) else 0)
    return broken


def _check(source: Source, index: int) -> BrokenImage | int:
    """What is wrong with an image, or how many bytes of pixels it decodes to."""
    try:
        return source.decode(index).nbytes
    except BrokenImage as error:
        return error
