"""Whether a JPEG looks whole, at the speed of memory instead of a decoder's.

Compressed data holds no marker but stuffing and restarts, so the first other one must be the end of the image, in
the last two bytes. That fails for a file cut short, one with another patched into it, and one with bytes after its
end. A sector of zeros, as interrupted copies and crashed file systems leave, is hardly ever compressed data.
A file that fails is not broken yet: the decoder has the last word. One that passes may still be damaged: wrong bits
between whole markers, or a scan that ends early under an end that was put there. Only decoding tells.

Markers: ITU-T T.81, table B.1.
"""

from __future__ import annotations

import re

END = b"\xff\xd9"
START_OF_SCAN = 0xDA
# Besides stuffing, fill bytes and restarts, more scans may follow, with tables and restart intervals of their own.
OTHER_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7\xda\xc4\xdd]")
HOLE = bytes(512)


def looks_whole(jpeg: bytes) -> bool:
    """Whether the compressed data of a JPEG runs up to an end of image in its last two bytes, without a hole."""
    scan = first_scan(jpeg)
    if scan is None or not jpeg.endswith(END):
        return False
    found = OTHER_MARKER.search(jpeg, scan)
    return found is not None and found.start() == len(jpeg) - len(END) and jpeg.find(HOLE, scan) < 0


def first_scan(jpeg: bytes) -> int | None:
    """Where the first scan's marker lies, or None. Thumbnails, in the segments before, have scans of their own."""
    position = 2
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if marker == START_OF_SCAN:
            return position
        is_fill = marker == 0xFF
        position += 1 if is_fill else 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return None
