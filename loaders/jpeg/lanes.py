"""Vector registers, written as arithmetic: what numba's own loops leave to the mood of the vectoriser.

`Lanes` stands for a register while a function is compiled; arithmetic on it emits LLVM instructions, so a formula over
`Lanes` is a formula over 8 to 64 numbers at once. `emitted` turns a Python function over them into one that compiled
code can call. LLVM maps the vectors onto whatever registers the processor has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BIT, BYTE, SHORT, INT, LONG = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))


class Lanes:
    """Integers side by side. They wrap around as C's do; `>>` keeps the sign."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value
        self.count, self.element = value.type.count, value.type.element

    @classmethod
    def repeated(cls, builder: Any, number: Any, element: Any, count: int) -> Lanes:
        """An integer of the compiled code, in every lane."""
        first = builder.insert_element(
            ir.Constant(ir.VectorType(element, count), ir.Undefined), builder.trunc(number, element), INT(0)
        )
        return cls(builder, first).pick([0] * count)

    def _with(self, other: Lanes | int) -> Any:
        """The other operand's value; a number stands for itself in every lane."""
        return other.value if isinstance(other, Lanes) else self.constants([other] * self.count).value

    def _apply(self, operation: str, other: Lanes | int) -> Lanes:
        return Lanes(self.builder, getattr(self.builder, operation)(self.value, self._with(other)))

    def __add__(self, other: Lanes | int) -> Lanes:
        return self._apply("add", other)

    def __sub__(self, other: Lanes | int) -> Lanes:
        return self._apply("sub", other)

    def __mul__(self, other: Lanes | int) -> Lanes:
        return self._apply("mul", other)

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._apply("and_", other)

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._apply("or_", other)

    def __lshift__(self, bits: int) -> Lanes:
        return self._apply("shl", bits)

    def __rshift__(self, bits: int) -> Lanes:
        return self._apply("ashr", bits)

    def constants(self, numbers: Sequence[int]) -> Lanes:
        """As many lanes as there are numbers, of this one's width."""
        kind = ir.VectorType(self.element, len(numbers))
        return Lanes(self.builder, ir.Constant(kind, [ir.Constant(self.element, n) for n in numbers]))

    def clamp(self, low: int, high: int) -> Lanes:
        """Each lane limited to [low, high]."""
        return self._limited("smax", low)._limited("smin", high)

    def _limited(self, which: str, bound: int) -> Lanes:
        return self._call(f"llvm.{which}", self._with(bound))

    def beyond(self, bound: Lanes) -> Lanes:
        """By how much each exceeds the bound, both without sign; 0 if it does not."""
        return self._call("llvm.usub.sat", bound.value)

    def magnitude(self) -> Lanes:
        """Absolute values; the lowest number stays itself."""
        return self._call("llvm.abs", BIT(0))

    def _call(self, name: str, argument: Any) -> Lanes:
        kind = ir.FunctionType(self.value.type, [self.value.type, argument.type])
        name = f"{name}.v{self.count}i{self.element.width}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return Lanes(self.builder, self.builder.call(function, [self.value, argument]))

    def signed(self, element: Any) -> Lanes:
        """The same numbers in wider lanes."""
        return Lanes(self.builder, self.builder.sext(self.value, ir.VectorType(element, self.count)))

    def unsigned(self, element: Any) -> Lanes:
        """The same numbers, read as unsigned, in wider lanes."""
        return Lanes(self.builder, self.builder.zext(self.value, ir.VectorType(element, self.count)))

    def low(self, element: Any) -> Lanes:
        """The low bits, in narrower lanes."""
        return Lanes(self.builder, self.builder.trunc(self.value, ir.VectorType(element, self.count)))

    def as_lanes(self, element: Any) -> Lanes:
        """The same bits, cut into lanes of another width."""
        count = self.count * self.element.width // element.width
        return Lanes(self.builder, self.builder.bitcast(self.value, ir.VectorType(element, count)))

    def pick(self, order: Sequence[int], other: Lanes | None = None) -> Lanes:
        """Lanes in another order; those of `other` are counted on from this one's."""
        mask = ir.Constant(ir.VectorType(INT, len(order)), [ir.Constant(INT, i) for i in order])
        second = self.value if other is None else other.value
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, second, mask))

    def join(self, other: Lanes) -> Lanes:
        """This one's lanes, then the other's."""
        return self.pick(range(2 * self.count), other)

    def where(self, relation: str, number: int) -> Any:
        """A 64-bit integer with one bit for each lane that is `relation` ("==", "!=") to the number."""
        found = self.builder.icmp_signed(relation, self.value, self._with(number))
        bits = self.builder.bitcast(found, ir.IntType(self.count))
        return bits if self.count == 64 else self.builder.zext(bits, LONG)

    def lane(self, index: int) -> Any:
        """One number."""
        return self.builder.extract_element(self.value, INT(index))


class Memory:
    """A byte address while a function is compiled."""

    def __init__(self, builder: Any, address: Any) -> None:
        self.builder, self.address = builder, builder.bitcast(address, BYTE.as_pointer())

    def at(self, offset: Any) -> Memory:
        """`offset` bytes on: a number, or an integer of the compiled code."""
        return Memory(
            self.builder, self.builder.gep(self.address, [LONG(offset) if isinstance(offset, int) else offset])
        )

    def word(self, kind: Any = LONG) -> Any:
        """One integer, or whatever `kind` says."""
        return self.builder.load(self.builder.bitcast(self.address, kind.as_pointer()), align=1)

    def put(self, word: Any) -> None:
        self.builder.store(word, self.builder.bitcast(self.address, word.type.as_pointer()), align=1)

    def load(self, element: Any, count: int) -> Lanes:
        return Lanes(self.builder, self.word(ir.VectorType(element, count)))

    def store(self, lanes: Lanes) -> None:
        self.put(lanes.value)


def emitted(result: Any = types.void) -> Callable[[Callable[..., Any]], Any]:
    """Make `function(*arguments)` callable from compiled code, where a `pointer` comes in as `Memory`.

    Other arguments come in as they are: 64-bit integers. It returns a 64-bit integer where `result` is one.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        def typed(typing_context: Any, *arguments: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                pairs = zip(signature.args, values, strict=True)
                returned = function(*(_argument(context, builder, *each) for each in pairs))
                return context.get_dummy_value() if returned is None else returned

            return result(*arguments), generate

        parameters = inspect.signature(function).parameters.values()
        context = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        typed.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        return intrinsic(typed)

    return decorate


def _argument(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return Memory(builder, value) if isinstance(kind, types.CPointer) else value


def _pointer(typing_context: Any, array: Any) -> Any:
    """The elements of a contiguous array, to index as in C: no negative indexes, no reference counts, no bounds.

    Something else must keep the array for as long as they are used, as the caller does with its arguments.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


pointer: Any = intrinsic(_pointer)


def _shifted(typing_context: Any, base: Any, count: Any) -> Any:
    """A pointer to the element `count` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return base(base, count), generate


shifted: Any = intrinsic(_shifted)
