"""Recipes: which operations a method wants, with probabilities and ranges. Data; nothing is drawn or moved here.

>>> print(load_recipe("moco-cifar", size=32))
moco-cifar at 32 px: RandomResizedCrop(scale .08-1) > HorizontalFlip(p .5) > ...
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.augment.rows import Interpolation
from penstock.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def _number(value: float) -> str:
    return f"{value:g}".replace("0.", ".", 1) if 0 < abs(value) < 1 else f"{value:g}"


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A random area and aspect ratio of the image, resized to S×S; ten tries, then a centre crop, as torchvision's."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = Interpolation.BILINEAR
    antialias: bool = True

    def __str__(self) -> str:
        return f"RandomResizedCrop(scale {_number(self.scale[0])}-{_number(self.scale[1])})"


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The central square whose side is `fraction` of the short side, resized to S×S (0.875 = 256 → 224)."""

    fraction: float = 0.875
    interpolation: Interpolation = Interpolation.BILINEAR
    antialias: bool = True

    def __str__(self) -> str:
        return f"CenterCrop({_number(self.fraction)} of the short side)"


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip:
    p: float = 0.5

    def __str__(self) -> str:
        return f"HorizontalFlip(p {_number(self.p)})"


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast and saturation by a factor in [max(0, 1-x), 1+x], hue by a shift in [-x, x] turns.

    The four apply in a drawn order, as torchvision's; one whose range is 0 is left out.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 1.0

    def __str__(self) -> str:
        ranges = ", ".join(map(_number, (self.brightness, self.contrast, self.saturation, self.hue)))
        return f"ColorJitter({ranges}; p {_number(self.p)})"


@dataclass(frozen=True, kw_only=True)
class Grayscale:
    p: float = 0.2

    def __str__(self) -> str:
        return f"Grayscale(p {_number(self.p)})"


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Gaussian blur, sigma in pixels, uniform in the range; the kernel reaches three sigma."""

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def __str__(self) -> str:
        return f"GaussianBlur(sigma {_number(self.sigma[0])}-{_number(self.sigma[1])}; p {_number(self.p)})"


Operation = RandomResizedCrop | CenterCrop | HorizontalFlip | ColorJitter | Grayscale | GaussianBlur


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An ordered list of operations; the first is the crop, which decides the size.

    Attributes:
        name, about: what it is called and where it comes from.
        operations: applied in this order to each view, drawn independently for each.
        size: side of the views, pixels.
        views: how many are made of each image.
        mean, std: per RGB channel, for pixels scaled to 0 … 1.
    """

    name: str
    about: str
    operations: tuple[Operation, ...]
    size: int = 224
    views: int = 2
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __str__(self) -> str:
        return f"{self.name} at {self.size} px: " + " > ".join(map(str, self.operations))


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="moco-v1",
            about="He et al. 2020, arXiv 1911.05722; main_moco.py without --aug-plus",
            operations=(
                RandomResizedCrop(scale=(0.2, 1.0)),
                Grayscale(p=0.2),
                ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4),
                HorizontalFlip(),
            ),
        ),
        Recipe(
            name="moco-v2",
            about="Chen et al. 2020, arXiv 2003.04297; main_moco.py with --aug-plus",
            operations=(
                RandomResizedCrop(scale=(0.2, 1.0)),
                ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
                Grayscale(p=0.2),
                GaussianBlur(sigma=(0.1, 2.0), p=0.5),
                HorizontalFlip(),
            ),
        ),
        Recipe(
            name="moco-small",
            about="moco-v2 for views of up to 64 px: without blur, as SimCLR's list for CIFAR (arXiv 2002.05709, B.9)",
            operations=(
                RandomResizedCrop(scale=(0.2, 1.0)),
                ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
                Grayscale(p=0.2),
                HorizontalFlip(),
            ),
            size=32,
        ),
        Recipe(
            name="moco-cifar",
            about="the MoCo authors' CIFAR-10 demo; no blur at 32 px",
            operations=(
                RandomResizedCrop(scale=(0.08, 1.0)),
                HorizontalFlip(),
                ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
                Grayscale(p=0.2),
            ),
            size=32,
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
        ),
    )
}


def load_recipe(name: str, *, size: int) -> Recipe:
    """The recipe of that name with views of `size` pixels.

    Raises:
        UserError: unknown name, or a size under 8 pixels.
    """
    if name not in RECIPES:
        raise UserError(f"--recipe {name!r} is not known: choose one of {', '.join(RECIPES)}")
    if size < 8:
        raise UserError(f"--size {size}: views are at least 8 pixels wide")
    return replace(RECIPES[name], size=size)


def evaluation(size: int, fraction: float = 0.875, *, like: Recipe | None = None) -> Recipe:
    """One deterministic view: the central `fraction` of the image at `size` pixels, normalised as `like` does."""
    mean, std = (like.mean, like.std) if like else (IMAGENET_MEAN, IMAGENET_STD)
    crop = CenterCrop(fraction=fraction)
    about = "features for kNN and probes: resize, then centre crop"
    return Recipe(name="evaluation", about=about, operations=(crop,), size=size, views=1, mean=mean, std=std)
