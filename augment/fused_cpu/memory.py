"""Arrays that are aligned, and arrays that are not counted.

A vector of 64 bytes that does not begin at a multiple of 64 is read in two accesses.

numba counts references to an array's memory with atomic additions, at each slice whose counting it cannot prove to be
balanced. In loops over the short lines of a small view that costs as much as the work. An array on loan has no counter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic
from numpy.typing import DTypeLike, NDArray

from penstock.augment.jit import njit

ALIGNMENT = 64  # bytes: a line of the caches


def aligned(count: int, kind: DTypeLike) -> NDArray[Any]:
    """An empty array of `count` elements that begins at a multiple of ALIGNMENT bytes."""
    size = count * np.dtype(kind).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(kind)


@njit(inline=True)
def whole(count, unit):  # type: ignore[no-untyped-def]
    """`count` rounded up to a multiple of `unit`."""
    return (count + unit - 1) // unit * unit


def _borrow(typing_context: Any, array: Any) -> Any:
    """The same array without its reference counter; something else must keep the memory for as long as it is used.

    Arguments of a call from Python are kept by the caller; an array that compiled code made itself is not.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(array)(context, builder, arguments[0])
        view.meminfo, view.parent = view.meminfo.type(None), view.parent.type(None)
        return view._getvalue()

    return array(array), generate


borrow: Any = intrinsic(_borrow)
