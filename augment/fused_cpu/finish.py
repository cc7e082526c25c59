"""The last step: bytes become normalised numbers in the batch, turned upright and flipped on the way.

Normalisation is a table of 256 values per channel, in the output's own bits: exact for any output type.
"""

from __future__ import annotations

from penstock.augment.jit import njit


@njit
def write_planes(planes, left_right, up_down, table, out):  # type: ignore[no-untyped-def]
    """out [S, S, 3] (rows, columns, channels; the output type's bits) = table[channel, byte] of transposed planes."""
    size = planes.shape[1]
    for y in range(size):
        row = out[size - 1 - y if up_down else y]
        for x in range(size):
            column = size - 1 - x if left_right else x
            row[x, 0] = table[0, planes[0, column, y]]
            row[x, 1] = table[1, planes[1, column, y]]
            row[x, 2] = table[2, planes[2, column, y]]


@njit
def write_image(image, table, out):  # type: ignore[no-untyped-def]
    """out [S, S, 3] = table[channel, byte] of an upright image, uint8 [S, S, 3]."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for channel in range(3):
                out[y, x, channel] = table[channel, image[y, x, channel]]
