"""Arithmetic that the kernels share: whole levels, luma, random words, sums."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def whole(x):  # type: ignore[no-untyped-def]
    """x without its fraction, for 0 <= x < 2**23.

    Two additions: at 2**23 a float's last bit counts ones, so adding it towards zero drops the fraction. The hardware's
    own conversions run at an eighth (sm_80) to a half of the rate of additions, and every operation ends in three.
    """
    if INTERPRET:
        return tl.floor(x)
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .f32 t; add.rz.f32 t, $1, 0f4B000000; add.rn.f32 $0, t, 0fCB000000; }",
            "=f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def reciprocal(x):  # type: ignore[no-untyped-def]
    """1 / x to about one unit in the last place: one instruction, where `/` takes eight."""
    if INTERPRET:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def power(x):  # type: ignore[no-untyped-def]
    """2 ** x, 0 where that is below 2 ** -126: one instruction, where `tl.exp2` takes four to be right even there."""
    if INTERPRET:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def bound(x):  # type: ignore[no-untyped-def]
    """A loop's bound. The interpreter's scalars are arrays of one element, which NumPy 2.4 takes for no integer."""
    if INTERPRET:
        return x.handle.data.item()
    else:
        return x


@triton.jit
def clamp(x):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(x, 0.0), 255.0)


@triton.jit
def level(x):  # type: ignore[no-untyped-def]
    """Clamp to 0 … 255 and truncate to a whole level, as torchvision's uint8 operations end."""
    return whole(clamp(x))


@triton.jit
def nearest(x):  # type: ignore[no-untyped-def]
    """Clamp to 0 … 255 and round to the nearest level."""
    return whole(clamp(x) + 0.5)


@triton.jit
def luma(r, g, b):  # type: ignore[no-untyped-def]
    """Grey level, truncated: ITU-R 601 as torchvision rounds it."""
    return whole(0.2989 * r + 0.587 * g + 0.114 * b)


@triton.jit
def total(x):  # type: ignore[no-untyped-def]
    """The sum of a block. By `tl.reduce`, as `tl.sum` is compiled code, which interpreted kernels may not call."""
    return tl.reduce(x, None, tl.standard._sum_combine)


@triton.jit
def to_float(x):  # type: ignore[no-untyped-def]
    """int32 below 2**23 to float32, by placing it in the last bits of 2**23: at the full rate of arithmetic."""
    return (x | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def philox(counter, key_0, key_1):  # type: ignore[no-untyped-def]
    """Philox4x32-10 at counter (counter, 0, 0, 0), as `augment/philox.py`: the first three words, uint32."""
    c0 = counter.to(tl.uint32)
    c1 = c0 * 0
    c2 = c1
    c3 = c1
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(c0, tl.full([], 0xD2511F53, tl.uint32))
        high_1 = tl.umulhi(c2, tl.full([], 0xCD9E8D57, tl.uint32))
        low_0 = c0 * tl.full([], 0xD2511F53, tl.uint32)
        low_1 = c2 * tl.full([], 0xCD9E8D57, tl.uint32)
        c0 = high_1 ^ c1 ^ key_0
        c1 = low_1
        c2 = high_0 ^ c3 ^ key_1
        c3 = low_0
        key_0 = key_0 + tl.full([], 0x9E3779B9, tl.uint32)
        key_1 = key_1 + tl.full([], 0xBB67AE85, tl.uint32)
    return c0, c1, c2


@triton.jit
def pack(r, g, b):  # type: ignore[no-untyped-def]
    """Levels as a stored view's word: red, green, blue and 0x64 (bands.half), from the low byte up.

    One conversion for three: float32 holds 24 bits.
    """
    return (r + g * 256.0 + b * 65536.0).to(tl.int32) | 0x64000000


@triton.jit
def unpack(word):  # type: ignore[no-untyped-def]
    """A stored view's word as levels, int32."""
    return word & 255, (word >> 8) & 255, (word >> 16) & 255
