"""The operations that recipes are made of: probabilities and ranges. Data; nothing is drawn or moved here.

Each checks its values as it is made, so a recipe that exists can be drawn. Ranges are (lowest, highest) and drawn
uniformly; pixels of a view are counted after the crop; grey levels are 0 … 255. Names are torchvision's where it has
the operation, else Albumentations'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar

from penstock.augment.rows import Interpolation, Opcode
from penstock.augment.stages import Stages, check_stages, in_force, scaled
from penstock.errors import UserError

Range = tuple[float, float]
# A recipe's line leaves these out while they have their defaults
QUIET = ("ratio", "interpolation", "antialias", "kernel", "tiles", "fill")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of a view.

    Attributes:
        opcodes: what it may put into a row.
        slots: how many of them at most.
        limits: the values that each numeric field may have.

    Raises:
        UserError: a value outside its limits, or a range the wrong way round.
    """

    opcodes: ClassVar[frozenset[Opcode]] = frozenset()
    slots: ClassVar[int] = 1
    limits: ClassVar[dict[str, Range]] = {}

    def __post_init__(self) -> None:
        for spec in fields(self):
            if spec.type == "bool" and not isinstance(getattr(self, spec.name), bool):
                raise UserError(f"{type(self).__name__}: {spec.name} must be true or false")
            limits = (0.0, 1.0) if spec.name == "p" else self.limits.get(spec.name)
            if limits is not None:
                _check(type(self).__name__, spec, getattr(self, spec.name), limits)

    def __str__(self) -> str:
        shown = [f for f in fields(self) if f.name not in QUIET or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{f.name} {show(getattr(self, f.name))}' for f in shown)})"


def _check(operation: str, spec: Field, value: Any, limits: Range) -> None:
    """Raises UserError where a field's value is not what its annotation says, or outside its limits."""
    annotation = str(spec.type)
    if value is None and "None" in annotation:
        return
    ranged = "Range" in annotation or "tuple" in annotation
    wanted = f"{'two ' if ranged else 'a '}{'whole ' if 'int' in annotation else ''}number{'s' if ranged else ''}"
    numbers = value if isinstance(value, tuple) else (value,)
    kind = int if "int" in annotation else (int, float)
    if isinstance(value, tuple) != ranged or len(numbers) != 1 + ranged or not all(_is(kind, n) for n in numbers):
        raise UserError(f"{operation}: {spec.name} must be {wanted}, not {value!r}")
    if not limits[0] <= min(numbers) <= max(numbers) <= limits[1]:
        raise UserError(f"{operation}: {spec.name} {show(value)} is outside {show(limits[0])} … {show(limits[1])}")
    if numbers[0] > numbers[-1]:
        raise UserError(f"{operation}: {spec.name} {show(value)} is the wrong way round: write the lower value first")


def _is(kind: Any, value: Any) -> bool:
    """Whether a value is a finite number of that kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def show(value: Any) -> str:
    """A value as a recipe's line has it: .4 for 0.4, .2-1 for a range."""
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, tuple):
        return "-".join(map(show, dict.fromkeys(value)))  # a range of one value is that value
    if not isinstance(value, float):
        return str(value)
    text = f"{value:g}"
    return text.replace("0.", ".", 1) if 0 < abs(value) < 1 else text


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(Operation):
    """A random area and aspect ratio of the image, resized to S×S; ten tries, then a centre crop, as torchvision's."""

    opcodes = frozenset({Opcode.CROP})
    limits: ClassVar = {"scale": (0.0, 1.0), "ratio": (0.01, 100.0)}
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    interpolation: Interpolation = Interpolation.BILINEAR
    antialias: bool = True


@dataclass(frozen=True, kw_only=True)
class CenterCrop(Operation):
    """The central square whose side is `fraction` of the short side, resized to S×S (0.875 = 256 → 224)."""

    opcodes = frozenset({Opcode.CROP})
    limits: ClassVar = {"fraction": (0.01, 1.0)}
    fraction: float = 0.875
    interpolation: Interpolation = Interpolation.BILINEAR
    antialias: bool = True


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(Operation):
    opcodes = frozenset({Opcode.HORIZONTAL_FLIP})
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class VerticalFlip(Operation):
    opcodes = frozenset({Opcode.VERTICAL_FLIP})
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Flip(Operation):
    """One of: left to right, upside down, both. Albumentations had it until 2.0."""

    opcodes = frozenset({Opcode.HORIZONTAL_FLIP, Opcode.VERTICAL_FLIP})
    slots = 2
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ColorJitter(Operation):
    """Brightness, contrast and saturation by a factor in [max(0, 1-x), 1+x], hue by a shift in [-x, x] turns.

    The four apply in a drawn order, as torchvision's; one whose range is 0 is left out.
    """

    opcodes = frozenset({Opcode.BRIGHTNESS, Opcode.CONTRAST, Opcode.SATURATION, Opcode.HUE})
    slots = 4
    limits: ClassVar = {"brightness": (0, 100), "contrast": (0, 100), "saturation": (0, 100), "hue": (0, 0.5)}
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Grayscale(Operation):
    opcodes = frozenset({Opcode.GRAY})
    p: float = 0.2


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Operation):
    """Gaussian blur.

    Attributes:
        sigma: in pixels; None takes OpenCV's rule, .3 · radius + .5 of the kernel that was drawn.
        kernel: sizes in pixels to draw from, even ones made odd by one more; None reaches three sigma.
    """

    opcodes = frozenset({Opcode.GAUSSIAN_BLUR})
    limits: ClassVar = {"sigma": (0.01, 1000.0), "kernel": (1, 1001)}
    sigma: Range | None = (0.1, 2.0)
    kernel: tuple[int, int] | None = None
    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is None and self.kernel is None:
            raise UserError("GaussianBlur: neither sigma nor kernel is given: give one of them a range")


@dataclass(frozen=True, kw_only=True)
class Solarize(Operation):
    """Invert the levels at or above the threshold."""

    opcodes = frozenset({Opcode.SOLARIZE})
    limits: ClassVar = {"threshold": (0, 256)}
    threshold: float = 128.0
    p: float = 0.2


@dataclass(frozen=True, kw_only=True)
class RandomBrightnessContrast(Operation):
    """Levels times 1 ± contrast, plus 255 times ± brightness."""

    opcodes = frozenset({Opcode.BRIGHTNESS_CONTRAST})
    limits: ClassVar = {"brightness": (0, 1), "contrast": (0, 1)}
    brightness: float = 0.2
    contrast: float = 0.2
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class CLAHE(Operation):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of LAB's lightness."""

    opcodes = frozenset({Opcode.CLAHE})
    limits: ClassVar = {"clip_limit": (1, 1000), "tiles": (1, 64)}
    clip_limit: Range = (1.0, 4.0)
    tiles: int = 8
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Blur(Operation):
    """The mean of a square of 2 · radius + 1 pixels."""

    opcodes = frozenset({Opcode.BOX_BLUR})
    limits: ClassVar = {"radius": (1, 500)}
    radius: tuple[int, int] = (1, 3)
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Sharpen(Operation):
    """Mixed with alpha parts of a 3×3 Laplacian-sharpened image, whose kernel has 8 + lightness at its centre."""

    opcodes = frozenset({Opcode.SHARPEN})
    limits: ClassVar = {"alpha": (0, 1), "lightness": (0, 100)}
    alpha: Range = (0.2, 0.5)
    lightness: Range = (0.5, 1.0)
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ChannelShuffle(Operation):
    """Red, green and blue in one of their six orders."""

    opcodes = frozenset({Opcode.CHANNEL_SHUFFLE})
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class HueSaturationValue(Operation):
    """Shifts in OpenCV's 8-bit HSV, each within ± its field: hue in units of 2 degrees, the others in levels."""

    opcodes = frozenset({Opcode.HSV_SHIFT})
    limits: ClassVar = {"hue": (0, 180), "saturation": (0, 255), "value": (0, 255)}
    hue: float = 20.0
    saturation: float = 30.0
    value: float = 20.0
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class CoarseDropout(Operation):
    """Holes of one level at random places (Cutout: DeVries, Taylor 2017, arXiv 1708.04552)."""

    opcodes = frozenset({Opcode.COARSE_DROPOUT})
    limits: ClassVar = {"holes": (1, 1000), "height": (1, 10000), "width": (1, 10000), "fill": (0, 255)}
    holes: tuple[int, int] = (8, 8)
    height: tuple[int, int] = (8, 8)
    width: tuple[int, int] = (8, 8)
    fill: float = 0.0
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class GaussNoise(Operation):
    """Normal noise of its own for each pixel and channel; its variance, in squared levels, is drawn."""

    opcodes = frozenset({Opcode.GAUSSIAN_NOISE})
    limits: ClassVar = {"variance": (0, 65025)}
    variance: Range = (10.0, 50.0)
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Albumentations(Operation):
    """Any transform of the albumentations package that keeps the image's size: done on the CPU, whatever does the rest.

    Attributes:
        transform: its class's name, such as RandomRain.
        arguments: what it is made with; a mapping, kept as a sorted tuple of pairs.
    """

    opcodes = frozenset({Opcode.ALBUMENTATIONS})
    transform: str
    arguments: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments = self.arguments if isinstance(self.arguments, Mapping | tuple) else None
        if not isinstance(self.transform, str) or arguments is None or not all(map(_is_name, dict(arguments))):
            raise UserError(
                "Albumentations: transform must be a class's name, and arguments a mapping of names to values"
            )
        pairs = tuple(sorted((name, hashable(value)) for name, value in dict(arguments).items()))
        if any(isinstance(value, Mapping) for _, value in pairs):
            raise UserError(f"Albumentations {self.transform}: an argument cannot be a mapping")
        object.__setattr__(self, "arguments", pairs)

    def __str__(self) -> str:
        return f"Albumentations {self.transform}(p {show(self.p)})"


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def hashable(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class RandomChoice(Operation):
    """`times` operations picked uniformly, with replacement; each then applies with its own p. None does nothing."""

    operations: tuple[Operation | None, ...]
    times: int = 1

    def __post_init__(self) -> None:
        if not self.operations or not _is(int, self.times) or not 1 <= self.times <= 16:
            raise UserError("RandomChoice: name at least one operation, and times from 1 to 16")
        for member in self.operations:
            if isinstance(member, RandomChoice | ByEpoch) or (member and Opcode.CROP in member.opcodes):
                raise UserError(f"RandomChoice: {type(member).__name__} cannot be one of its operations")

    def __str__(self) -> str:
        return f"RandomChoice({self.times} of: {', '.join(map(str, self.operations))})"


@dataclass(frozen=True, kw_only=True)
class ByEpoch(Operation):
    """An operation whose strength depends on the epoch.

    Attributes:
        stages: (first epoch, counted from 0; operation from then on), in order, the first from epoch 0.
        of: the length of the run, in epochs, for which they are meant; shorter and longer runs are scaled.
    """

    stages: Stages[Operation]
    of: int

    def __post_init__(self) -> None:
        if any(stage is None or isinstance(stage, ByEpoch) for _, stage in self.stages):
            raise UserError("ByEpoch: a stage is one operation, and neither None nor another ByEpoch")
        check_stages("ByEpoch", self.stages, self.of)

    def __str__(self) -> str:
        return f"ByEpoch({'; '.join(f'from {start}: {operation}' for start, operation in self.stages)}; of {self.of})"

    def at(self, epoch: int) -> Operation:
        """The operation in force in an epoch, counted from 0."""
        return in_force(self.stages, epoch)

    def over(self, epochs: int) -> ByEpoch:
        """The same stages in a run of so many epochs; where several would begin together, the last of them does."""
        return ByEpoch(stages=scaled(self.stages, self.of, epochs), of=epochs)


OPERATIONS: dict[str, type[Operation]] = {
    operation.__name__: operation
    for operation in (
        RandomResizedCrop, CenterCrop, HorizontalFlip, VerticalFlip, Flip, ColorJitter, Grayscale, GaussianBlur,
        Solarize, RandomBrightnessContrast, CLAHE, Blur, Sharpen, ChannelShuffle, HueSaturationValue, CoarseDropout,
        GaussNoise, Albumentations, RandomChoice, ByEpoch,
    )
}  # fmt: skip
