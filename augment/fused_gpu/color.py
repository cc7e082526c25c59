"""The pointwise operations, each on three float32 blocks of whole levels, truncated or rounded as its library does."""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.augment.fused_gpu.numbers import bound, clamp, level, luma, nearest, philox, reciprocal, whole

NORMAL = tl.constexpr(0)  # where the table of constants holds the normal distribution (constants.py)


@triton.jit
def blend(r, g, b, factor, other):  # type: ignore[no-untyped-def]
    """factor · image + (1 - factor) · other, where `other` is grey: a block or a scalar."""
    rest = (1.0 - factor) * other
    return level(factor * r + rest), level(factor * g + rest), level(factor * b + rest)


@triton.jit
def saturate(r, g, b, factor):  # type: ignore[no-untyped-def]
    return blend(r, g, b, factor, luma(r, g, b))


@triton.jit
def lacks(distance):  # type: ignore[no-untyped-def]
    """How much of the chroma a channel lacks, by how many sixths of a turn it is from where it is fullest, less one."""
    return tl.minimum(tl.maximum(distance, 0.0), 1.0)


@triton.jit
def from_hue(hue, high, chroma):  # type: ignore[no-untyped-def]
    """Red, green and blue from the hue in sixths of a turn, 0 … 6, and HSV's value and chroma (Smith 1978)."""
    r = high - chroma * lacks(2.0 - tl.abs(hue - 3.0))
    g = high - chroma * lacks(tl.abs(hue - 2.0) - 1.0)
    b = high - chroma * lacks(tl.abs(hue - 4.0) - 1.0)
    return r, g, b


@triton.jit
def turn_hue(r, g, b, shift):  # type: ignore[no-untyped-def]
    """Turn the hue by `shift` turns; value and chroma stay, so only the hue is computed."""
    high = tl.maximum(tl.maximum(r, g), b)
    chroma = high - tl.minimum(tl.minimum(r, g), b)
    inverse = reciprocal(tl.maximum(chroma, 1.0))
    from_red = (g - b) * inverse
    from_red = tl.where(from_red < 0, from_red + 6.0, from_red)
    hue = tl.where(high == g, 2.0 + (b - r) * inverse, 4.0 + (r - g) * inverse)
    hue = tl.where(high == r, from_red, hue) + 6.0 * (shift - tl.floor(shift))
    hue = tl.where(hue >= 6.0, hue - 6.0, hue)
    r, g, b = from_hue(hue, high, chroma)
    to_byte = 255.999 / 255.0  # torchvision's float to uint8 conversion
    return whole(r * to_byte), whole(g * to_byte), whole(b * to_byte)


@triton.jit
def twelfth_bits(dividend, divisor):  # type: ignore[no-untyped-def]
    """dividend / divisor in OpenCV's fixed point of 12 bits, int32: its tables hold this rounded, and no quotient of
    whole numbers up to 255 comes so near to a half that the approximate reciprocal rounds to the other side."""
    return whole(dividend * 4096.0 * reciprocal(tl.maximum(divisor, 1.0)) + 0.5).to(tl.int32)


@triton.jit
def towards_zero(x):  # type: ignore[no-untyped-def]
    """x without its fraction, of either sign: for scalars, whose conversions cost nothing."""
    return x.to(tl.int32).to(tl.float32)


@triton.jit
def shift_hsv(r, g, b, x, size, hue_shift, saturation_shift, value_shift):  # type: ignore[no-untyped-def]
    """Albumentations' shift of OpenCV's 8-bit HSV, whose hue counts units of 2 degrees: 0 … 179.

    There and back in OpenCV's arithmetic, as a unit of hue is up to 8 levels of a channel, in fixed point one way.
    Albumentations rounds the shift of the hue down and the others towards zero. OpenCV truncates what comes out, but
    rounds the size mod 32 pixels at a row's end, which do not fill a vector of AVX2. x: upright, int32 [1, X].
    """
    high = tl.maximum(tl.maximum(r, g), b)
    chroma = high - tl.minimum(tl.minimum(r, g), b)
    saturation = ((chroma.to(tl.int32) * twelfth_bits(255.0, high) + 2048) >> 12).to(tl.float32)
    sixth = tl.where(high == g, b - r + 2.0 * chroma, r - g + 4.0 * chroma)
    sixth = tl.where(high == r, g - b, sixth).to(tl.int32)
    hue = (sixth * twelfth_bits(30.0, chroma) + 2048) >> 12
    hue = tl.where(hue < 0, hue + 180, hue).to(tl.float32)
    turn = tl.floor(hue_shift)
    hue = hue + (turn - 180.0 * tl.floor(turn / 180.0))
    hue = tl.where(hue >= 180.0, hue - 180.0, hue) * (6.0 / 180.0)
    # A grey pixel keeps its saturation of 0, so that it stays grey.
    saturation = tl.where(saturation == 0, 0.0, clamp(saturation + towards_zero(saturation_shift)))
    value = clamp(high + towards_zero(value_shift)) * (1.0 / 255.0)
    r, g, b = from_hue(hue, 1.0, saturation * (1.0 / 255.0))
    bias = tl.where(x < size - size % 32, 0.0, 0.5)
    return whole(value * r * 255.0 + bias), whole(value * g * 255.0 + bias), whole(value * b * 255.0 + bias)


@triton.jit
def pick(r, g, b, channel):  # type: ignore[no-untyped-def]
    return tl.where(channel == 0, r, tl.where(channel == 1, g, b))


@triton.jit
def punch(r, g, b, x, y, size, holes, height, width, fill, key_0, key_1):  # type: ignore[no-untyped-def]
    """Coarse dropout: `holes` boxes become `fill`. x, y: upright coordinates, int32 [1, X], [Y, 1] (fields.hole)."""
    for h in range(bound(holes)):
        word_0, word_1, _ = philox(h + tl.full([], 0, tl.int32), key_0, key_1)
        top = tl.umulhi(word_0, (size - height + 1).to(tl.uint32)).to(tl.int32)
        left = tl.umulhi(word_1, (size - width + 1).to(tl.uint32)).to(tl.int32)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        r, g, b = tl.where(inside, fill, r), tl.where(inside, fill, g), tl.where(inside, fill, b)
    return r, g, b


@triton.jit
def add_noise(value, word, shift, sigma, constants):  # type: ignore[no-untyped-def]
    normal = tl.load(constants + NORMAL + ((word >> shift) & 0xFFF).to(tl.int32)).to(tl.float32, bitcast=True)
    return nearest(value + sigma * normal)


@triton.jit
def noise(r, g, b, x, y, size, sigma, key_0, key_1, constants):  # type: ignore[no-untyped-def]
    """Gaussian noise of `sigma` levels; x, y as in `punch` (fields.noise_words, fields.normal)."""
    pixel = y * size + x
    red, green, blue = philox(pixel >> 1, key_0, key_1)
    shift = ((pixel & 1) * 16 + 4).to(tl.uint32)
    r = add_noise(r, red, shift, sigma, constants)
    g = add_noise(g, green, shift, sigma, constants)
    return r, g, add_noise(b, blue, shift, sigma, constants)
