"""Fixed-point arithmetic in 16 bits: what the resampling, the blur and the colours are made of.

A vector register holds twice as many 16-bit numbers as float32 ones, and bytes need no conversion to become such
numbers. A grey level is lifted to the upper byte; its product with a 16-bit weight keeps the upper half of 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.augment.jit import njit

BYTE = np.uint16(8)


def _high(typing_context: Any, a: Any, b: Any) -> Any:
    """(a · b) >> 16 of two uint16.

    By LLVM's own name for it, because from a multiplication and a shift in wider integers it does not find its way
    back to the one instruction that x86 has for this.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, scale = ir.IntType(16), ir.IntType(32)
        kind = ir.FunctionType(word, [word, word, scale])
        return builder.call(builder.module.declare_intrinsic("llvm.umul.fix", [word], kind), [*arguments, scale(16)])

    return types.uint16(types.uint16, types.uint16), generate


high: Any = intrinsic(_high)


@njit
def lift(level):  # type: ignore[no-untyped-def]
    """A byte in the upper half of 16 bits."""
    return np.uint16(np.uint16(level) << BYTE)


@njit
def less(a, b):  # type: ignore[no-untyped-def]
    """a - b, or 0 where that is negative."""
    return np.uint16(max(a, b) - b)
