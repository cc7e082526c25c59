"""What numba has no words for, written in LLVM's own vectors, which it maps to whatever the processor has.

| function | what it does |
|---|---|
| `turn` | transposes a block in registers |
| `weigh`, `weigh_signed` | sum up lines with weights, for the crop |
| `blur` | sums up lines and their mirror images with weights |
| `normalise` | makes float32 numbers of bytes and writes them past the caches, which they would only fill |
| `prefetch`, `fence` | call for memory early; finish what was written past the caches |

Arrays are one-dimensional, and nothing is checked against their ends. Sums and lifted levels are those of `fixed.py`;
vectors of 16-bit numbers are as wide as processors have them, because the sums stay in registers over all their terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from penstock.augment.fused_cpu.memory import ALIGNMENT

LANE = 16  # bytes: within lanes of so many, x86 shuffles wide registers at no more cost than narrow ones
PIXELS = 16  # that are normalised at once
LEVELS, TERMS = 3 * PIXELS, 4 * PIXELS  # numbers of each term: more than one turn, for any channel to begin with
SHORTS = 32  # numbers of 16 bits in a vector
RUN = 2 * SHORTS  # numbers of 16 bits that are summed at once; twice as many where they come from bytes
BITS = 7  # a sum has 128 to a level
NEGATIVE = 49152  # signed weights from here up stand for themselves less 65536
MARGIN = 128  # levels by which sums of signed products are too high, so that what undershoots stays positive
INDEX, BYTE, SHORT, NUMBER, REAL = ir.IntType(64), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
LINE = ir.VectorType(SHORT, SHORTS)


class _Array:
    """An array among an intrinsic's arguments, as memory that vectors are loaded from and stored to."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any) -> None:
        structure = context.make_array(kind)(context, builder, array)
        self.builder, self.data, self.bytewise = builder, structure.data, kind.dtype == types.uint8
        self.length = builder.extract_value(structure.shape, 0)

    def at(self, index: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self.data, [index]), kind.as_pointer())

    def load(self, index: Any, kind: Any) -> Any:
        return self.builder.load(self.at(index, kind), align=1)

    def store(self, value: Any, index: Any, align: int = 1) -> Any:
        return self.builder.store(value, self.at(index, value.type), align=align)


def _mask(indices: list[int]) -> Any:
    return ir.Constant(ir.VectorType(NUMBER, len(indices)), indices)


def _same(value: int) -> Any:
    return ir.Constant(LINE, [value] * SHORTS)


def _spread(builder: Any, value: Any) -> Any:
    """A vector of one number, of which the last 16 bits count."""
    value = value if value.type == SHORT else builder.trunc(value, SHORT)
    nothing = ir.Constant(LINE, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, value, NUMBER(0)), nothing, _mask([0] * SHORTS))


def _high(builder: Any, a: Any, b: Any) -> Any:
    """(a · b) >> 16: see `fixed.high`."""
    kind = ir.FunctionType(LINE, [LINE, LINE, NUMBER])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.umul.fix.v{SHORTS}i16")
    return builder.call(function, [a, b, NUMBER(16)])


def _product(builder: Any, line: Any, weight: Any) -> Any:
    return _high(builder, line, _spread(builder, weight))


def _signed_product(builder: Any, line: Any, weight: Any) -> Any:
    """The same, modulo 65536, of a weight that from NEGATIVE up stands for itself less 65536."""
    negative = builder.sext(builder.icmp_unsigned(">=", weight, SHORT(NEGATIVE)), SHORT)
    return builder.sub(_product(builder, line, weight), builder.and_(line, _spread(builder, negative)))


def _sum(builder: Any, totals: list[Any], first: int, count: Any, terms: Callable[[Any], list[Any]]) -> list[Any]:
    """The totals plus the terms of k = first … count - 1."""
    places = [cgutils.alloca_once_value(builder, total) for total in totals]
    with cgutils.for_range(builder, count, start=INDEX(first)) as loop:
        for place, term in zip(places, terms(loop.index), strict=True):
            builder.store(builder.add(builder.load(place), term), place)
    return [builder.load(place) for place in places]


def _to_bytes(builder: Any, total: Any) -> Any:
    """A sum that is half a level too high, rounded."""
    return builder.trunc(builder.lshr(total, _same(BITS)), ir.VectorType(BYTE, SHORTS))


def _to_lifted(builder: Any, total: Any) -> Any:
    """The same, as lifted levels."""
    return builder.shl(builder.sub(total, _same(1 << BITS - 1)), _same(1))


def _clamp(builder: Any, total: Any) -> Any:
    """A sum in 1/64 of a level, MARGIN levels too high, as bytes: rounded, clamped."""
    kind = ir.FunctionType(LINE, [LINE, LINE])
    less = cgutils.get_or_insert_function(builder.module, kind, f"llvm.usub.sat.v{SHORTS}i16")
    least = cgutils.get_or_insert_function(builder.module, kind, f"llvm.umin.v{SHORTS}i16")
    level = builder.lshr(builder.call(less, [builder.add(total, _same(32)), _same(64 * MARGIN)]), _same(6))
    return builder.trunc(builder.call(least, [level, _same(255)]), ir.VectorType(BYTE, SHORTS))


def _interleave(builder: Any, lines: list[Any], length: int) -> list[Any]:
    """The lines' columns, in two lanes: each round interleaves the first half of the lines with the second."""
    half, other = length // 2, 2 * length
    low = [lane * length + i // 2 + i % 2 * other for lane in range(2) for i in range(length)]
    masks = _mask(low), _mask([index + half for index in low])
    for _ in range(length.bit_length() - 1):
        pairs = zip(lines[:half], lines[half:], strict=True)
        lines = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
    return lines


def _turn(
    typing_context: Any, source: Any, starts: Any, first: Any, offset: Any, target: Any, begin: Any, pitch: Any
) -> Any:
    """Transpose a block: LANE bytes, say L elements, of 2·L lines.

    Line k begins at source[starts[first + k] + offset]; its element r goes to target[begin + r·pitch + k].
    """
    length, element = LANE * 8 // source.dtype.bitwidth, ir.IntType(source.dtype.bitwidth)
    both = _mask(list(range(2 * length)))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, first, offset, _, place, pitch = arguments
        levels, begins, out = (_Array(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 4))
        lines = []
        for k in range(2 * length):
            start = builder.add(begins.load(builder.add(first, INDEX(k)), INDEX), offset)
            lines.append(levels.load(start, ir.VectorType(element, length)))
        lines = [builder.shuffle_vector(a, b, both) for a, b in zip(lines[:length], lines[length:], strict=True)]
        for line in _interleave(builder, lines, length):
            out.store(line, place)
            place = builder.add(place, pitch)
        return context.get_dummy_value()

    index = types.int64
    return types.void(source, starts, index, index, target, index, index), generate


def _weigh(signed: bool) -> Callable[..., Any]:
    """target[at:] = the sum of weight[begin + k] · source[first + k·pitch:] over k < count.

    Either 2 · RUN bytes to lifted levels, in pieces of SHORTS, of even and of odd columns in turn; or RUN lifted levels
    to bytes. With `signed` weights, see `_signed_product`, there are sums between the two instead of lifted levels, in
    1/128 of a level, MARGIN levels too high.
    """

    def weigh(
        context: Any, source: Any, first: Any, pitch: Any, weight: Any, begin: Any, count: Any, target: Any, at: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, first, pitch, _, begin, count, _, at = arguments
            levels, weights, out = (_Array(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 6))
            product = _signed_product if signed else _product

            def terms(k: Any) -> list[Any]:
                share = weights.load(builder.add(begin, k), SHORT)
                place, lines = builder.add(first, builder.mul(k, pitch)), []
                for part in range(2):
                    offset = INDEX(part * SHORTS * (2 if levels.bytewise else 1))
                    line = levels.load(builder.add(place, offset), LINE)
                    even, odd = builder.shl(line, _same(8)), builder.and_(line, _same(0xFF00))
                    lines += [even, odd] if levels.bytewise else [line]
                return [product(builder, line, share) for line in lines]

            # Products are rounded down, by half a unit each on average; unsigned ones do not show it before the fourth.
            lost = builder.lshr(count, INDEX(1))
            if signed:
                start = builder.add(lost, INDEX(MARGIN << BITS if levels.bytewise else 0))
            else:
                lost = builder.select(builder.icmp_signed(">", count, INDEX(3)), lost, INDEX(0))
                start = builder.add(lost, INDEX(1 << BITS - 1))
            begun = [_spread(builder, start)] * (4 if levels.bytewise else 2)
            for part, total in enumerate(_sum(builder, begun, 0, count, terms)):
                if signed:
                    settled = _clamp(builder, total) if out.bytewise else total
                else:
                    settled = _to_bytes(builder, total) if out.bytewise else _to_lifted(builder, total)
                out.store(settled, builder.add(at, INDEX(part * SHORTS)))
            return context.get_dummy_value()

        index = types.int64
        return types.void(source, index, index, weight, index, index, target, index), generate

    return weigh


def _blur(typing_context: Any, source: Any, centre: Any, step: Any, weight: Any, target: Any, at: Any) -> Any:
    """target[at : at + RUN] = the sum of weight[k] · (source[centre - k·step:] + source[centre + k·step:]) over k.

    `source` is uint16, with 128 to a level; `target` the same, or bytes, for which the sum is rounded.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, centre, step, _, _, at = arguments
        lines, weights, out = (_Array(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 4))

        def terms(k: Any) -> list[Any]:
            share, far = _spread(builder, weights.load(k, SHORT)), builder.mul(k, step)
            ends, pairs = (builder.sub(centre, far), builder.add(centre, far)), []
            for part in range(2):
                a, b = (lines.load(builder.add(end, INDEX(part * SHORTS)), LINE) for end in ends)
                pairs.append(_high(builder, builder.add(a, b), share))
            return pairs

        lost = builder.lshr(weights.length, INDEX(1))  # half a unit for each product, which are rounded down
        start = _spread(builder, builder.add(lost, INDEX(1 << BITS - 1)) if out.bytewise else lost)
        middle = [builder.add(start, term) for term in terms(INDEX(0))]
        for part, total in enumerate(_sum(builder, middle, 1, weights.length, terms)):
            out.store(_to_bytes(builder, total) if out.bytewise else total, builder.add(at, INDEX(part * SHORTS)))
        return context.get_dummy_value()

    index = types.int64
    return types.void(source, index, index, weight, target, index), generate


def _normalise(typing_context: Any, source: Any, terms: Any, phase: Any, target: Any, at: Any) -> Any:
    """target[at : at + LEVELS] = source[at:], normalised, as the bits of float32; target[at] is aligned.

    `terms` float32 [5 · TERMS]: (level · (a + b) - c) · (d + e) with the rounding of divisions, for the channels in
    turn; at `phase`, 0 … 2, for that of source[at].
    """
    vector = ir.VectorType(REAL, PIXELS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, phase, _, at = arguments
        levels, parts, out = (_Array(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 3))
        kind = ir.FunctionType(vector, [vector, vector, vector])
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{PIXELS}f32")
        constant, once = builder.module.add_metadata([]), builder.module.add_metadata([NUMBER(1)])
        for part in range(3):
            starts = [builder.add(phase, INDEX(term * TERMS + part * PIXELS)) for term in range(5)]
            a, b, c, d, e = (parts.load(start, vector) for start in starts)
            for term in (a, b, c, d, e):
                term.set_metadata("invariant.load", constant)
            place = builder.add(at, INDEX(part * PIXELS))
            level = builder.uitofp(levels.load(place, ir.VectorType(BYTE, PIXELS)), vector)
            above = builder.fsub(builder.call(fused, [level, a, builder.fmul(level, b)]), c)
            value = builder.call(fused, [above, d, builder.fmul(above, e)])
            out.store(value, place, ALIGNMENT).set_metadata("nontemporal", once)
        return context.get_dummy_value()

    return types.void(source, terms, types.int64, target, types.int64), generate


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Have array[index] brought into the second-level cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), NUMBER, NUMBER, NUMBER])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = _Array(context, builder, array, arguments[0]).at(arguments[1], BYTE)
        builder.call(function, [place, NUMBER(0), NUMBER(2), NUMBER(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _fence(typing_context: Any) -> Any:
    """Have all that was written past the caches seen before anything that is written later."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


turn: Any = intrinsic(_turn)
weigh: Any = intrinsic(_weigh(signed=False))
weigh_signed: Any = intrinsic(_weigh(signed=True))
blur: Any = intrinsic(_blur)
normalise: Any = intrinsic(_normalise)
prefetch: Any = intrinsic(_prefetch)
fence: Any = intrinsic(_fence)
