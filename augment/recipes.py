"""The recipes that come with Penstock, by name, and recipes read from YAML.

    python engine/train.py --recipe simclr
    python engine/train.py --recipe mine.yaml

A YAML recipe is written as `dump_recipe` writes the built-in ones:

    name: mine
    about: where it comes from
    views:
      - size: 224
        count: 2
        operations:
          - RandomResizedCrop: {scale: [0.2, 1.0]}
          - ColorJitter: {p: 0.8}
          - HorizontalFlip
          - Albumentations: {transform: RandomRain, arguments: {drop_length: 20}, p: 0.1}
    growth: {sizes: [[0, 160], [60, 192], [75, 224]], of: 90}  # if views are to grow: from epoch 75 of 90 on, 224 px
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from penstock.augment.operations import (
    CLAHE,
    OPERATIONS,
    Albumentations,
    Blur,
    ByEpoch,
    ChannelShuffle,
    CoarseDropout,
    ColorJitter,
    Flip,
    GaussianBlur,
    GaussNoise,
    Grayscale,
    HorizontalFlip,
    HueSaturationValue,
    Operation,
    RandomBrightnessContrast,
    RandomChoice,
    RandomResizedCrop,
    Sharpen,
    Solarize,
    VerticalFlip,
    hashable,
)
from penstock.augment.recipe import Growth, Recipe, View
from penstock.augment.rows import Interpolation
from penstock.errors import UserError

CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
IMAGENETTE = {"mean": (0.4661, 0.4581, 0.4292), "std": (0.2382, 0.2315, 0.2394)}

MOCO_CROP = RandomResizedCrop(scale=(0.2, 1.0))
JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)
GRAY, BLUR, FLIP = Grayscale(p=0.2), GaussianBlur(sigma=(0.1, 2.0), p=0.5), HorizontalFlip(p=0.5)
SOLARIZE, EQUALIZE, CONTRAST = Solarize(p=0.2), CLAHE(p=0.2), RandomBrightnessContrast(p=0.2)


def _strength(s: float, base: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)) -> ColorJitter:
    """SimCLR's colour distortion at strength s."""
    return ColorJitter(brightness=s * base[0], contrast=s * base[1], saturation=s * base[2], hue=s * base[3], p=0.8)


def _gradual() -> ByEpoch:
    """Jitter that grows every quarter of 200 epochs."""
    stages = ((0, 0.4, 0.1), (50, 0.6, 0.15), (100, 0.8, 0.2), (150, 1.0, 0.25))
    jitters = (ColorJitter(brightness=x, contrast=x, saturation=x, hue=hue, p=0.8) for _, x, hue in stages)
    return ByEpoch(stages=tuple(zip((start for start, _, _ in stages), jitters, strict=True)), of=200)


def _pair(name: str, about: str, *operations: Operation, size: int = 224, **normalisation: Any) -> Recipe:
    """Two views by the same list."""
    return Recipe(name=name, about=about, views=(View(operations=operations, size=size, count=2),), **normalisation)


def _subset(letters: str) -> Recipe:
    """What augmentation does to contrastive learning on CIFAR-10: a crop, b blur, c gray, d jitter, e flip."""
    by_letter: dict[str, Operation] = {
        "a": RandomResizedCrop(scale=(0.08, 1.0)), "e": FLIP, "d": JITTER, "c": GRAY,
        "b": GaussianBlur(sigma=(0.1, 2.0), kernel=(3, 3), p=0.5),
    }  # fmt: skip
    operations = (operation for letter, operation in by_letter.items() if letter in letters)
    return _pair(
        letters, f"CIFAR-10 subset {letters} of: a crop, b blur, c gray, d jitter, e flip", *operations, size=32
    )


def _colour(strength: float, label: str) -> Recipe:
    about = f"CIFAR-10 colour study: crop and SimCLR's jitter at strength {label}"
    return _pair(f"color-{label}", about, RandomResizedCrop(scale=(0.08, 1.0)), _strength(strength), size=32)


def _albumentations(name: str, about: str, jitter: Operation, *more: Operation) -> Recipe:
    """The MoCo demo's operations as Albumentations has them, cv2's cubic crop included, and more behind them."""
    crop = RandomResizedCrop(scale=(0.08, 1.0), interpolation=Interpolation.BICUBIC, antialias=False)
    return _pair(name, about, crop, jitter, FLIP, GRAY, *more, size=32, **CIFAR)


def _pool_14() -> Recipe:
    """Ranges are Albumentations' defaults of early 2022; Cutout is CoarseDropout since, Flip is ours."""
    p = 0.6
    pool: tuple[Operation | None, ...] = (
        Blur(radius=(1, 3), p=p),
        GaussianBlur(sigma=None, kernel=(3, 7), p=p),
        ChannelShuffle(p=p),
        ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, p=p),
        CoarseDropout(holes=(8, 8), height=(8, 8), width=(8, 8), p=p),
        CoarseDropout(holes=(8, 8), height=(8, 8), width=(8, 8), p=p),  # Cutout
        GaussNoise(variance=(0.0, 1.0), p=p),
        Flip(p=p),
        HueSaturationValue(hue=1.0, saturation=1.0, value=1.0, p=p),
        RandomBrightnessContrast(brightness=0.2, contrast=0.2, p=p),
        Albumentations(transform="RandomFog", arguments={"fog_coef_range": (0.3, 1.0), "alpha_coef": 0.08}, p=p),
        Albumentations(
            transform="RandomRain",
            arguments={"slant_range": (-10, 10), "drop_length": 20, "drop_width": 1, "drop_color": (200, 200, 200),
                       "blur_value": 7, "brightness_coefficient": 0.7, "rain_type": "default"},
            p=p,
        ),
        VerticalFlip(p=p),
        Sharpen(alpha=(0.2, 0.5), lightness=(0.5, 1.0), p=p),
        None,
    )  # fmt: skip
    about = "MoCo on Imagenette with a pool of 14 operations, of which each view draws two"
    return _pair("pool-14", about, MOCO_CROP, RandomChoice(operations=pool, times=2), size=112, **IMAGENETTE)


def _byol() -> Recipe:
    crop = RandomResizedCrop(scale=(0.08, 1.0), interpolation=Interpolation.BICUBIC)
    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8)
    first = (crop, FLIP, jitter, GRAY, replace(BLUR, p=1.0))
    second = (crop, FLIP, jitter, GRAY, replace(BLUR, p=0.1), SOLARIZE)
    about = "Grill et al. 2020, arXiv 2006.07733, table 6: views that differ in blur and solarisation"
    return Recipe(name="byol", about=about, views=(View(operations=first), View(operations=second)))


def _multi_crop() -> Recipe:
    rest = (FLIP, _strength(1.0), GRAY, BLUR)
    large = View(operations=(RandomResizedCrop(scale=(0.14, 1.0)), *rest), size=224, count=2)
    small = View(operations=(RandomResizedCrop(scale=(0.05, 0.14)), *rest), size=96, count=6)
    return Recipe(
        name="multi-crop", about="Caron et al. 2020 (SwAV), arXiv 2006.09882: 2×224 + 6×96", views=(large, small)
    )


CIFAR_CROP = RandomResizedCrop(scale=(0.08, 1.0))
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _pair(
            "moco-v1", "He et al. 2020, arXiv 1911.05722; main_moco.py without --aug-plus",
            MOCO_CROP, GRAY, ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4), FLIP,
        ),
        _pair(
            "moco-v2", "Chen et al. 2020, arXiv 2003.04297; main_moco.py with --aug-plus",
            MOCO_CROP, JITTER, GRAY, BLUR, FLIP,
        ),
        _pair(
            "moco-small", "moco-v2 for views of up to 64 px: no blur, as SimCLR's list for CIFAR (2002.05709, B.9)",
            MOCO_CROP, JITTER, GRAY, FLIP, size=32,
        ),
        _pair(
            "moco-cifar", "the MoCo authors' CIFAR-10 demo; no blur at 32 px",
            CIFAR_CROP, FLIP, JITTER, GRAY, size=32, **CIFAR,
        ),
        _pair("gradual", "moco-cifar with jitter that grows", CIFAR_CROP, FLIP, _gradual(), GRAY, size=32, **CIFAR),
        _albumentations("albumentations-solarize", "moco-cifar, cubic crop, solarize", JITTER, SOLARIZE),
        _albumentations("albumentations-clahe", "moco-cifar, cubic crop, CLAHE", JITTER, EQUALIZE),
        _albumentations("albumentations-6", "moco-cifar, cubic crop, solarize, CLAHE", JITTER, SOLARIZE, EQUALIZE),
        _albumentations(
            "albumentations-7", "moco-cifar, cubic crop, solarize, CLAHE, brightness-contrast",
            JITTER, SOLARIZE, EQUALIZE, CONTRAST,
        ),
        _albumentations(
            "albumentations-7-gradual", "albumentations-7 with jitter that grows",
            _gradual(), SOLARIZE, EQUALIZE, CONTRAST,
        ),
        _pair(
            "simclr", "Chen et al. 2020, arXiv 2002.05709, appendix A",
            RandomResizedCrop(scale=(0.08, 1.0)), FLIP, _strength(1.0), GRAY, BLUR,
        ),
        *map(_subset, ("abcde", "abcd", "abc", "ab", "a")),
        *(_colour(s, label) for s, label in ((1.0, "1"), (0.5, "1/2"), (0.25, "1/4"), (0.125, "1/8"))),
        _pool_14(),
        _byol(),
        _multi_crop(),
        Recipe(
            name="probe", about="one view for linear probes: RandomResizedCrop and flip",
            views=(View(operations=(RandomResizedCrop(scale=(0.08, 1.0)), FLIP)),),
        ),
    )
}  # fmt: skip


def load_recipe(name: str, *, size: int | None = None) -> Recipe:
    """The recipe of that name, or of that YAML file, with first views of `size` pixels (None: its own).

    Raises:
        UserError: unknown name, a size under 8 pixels, or a file that holds no recipe.
    """
    if _is_file(name):
        recipe = _read(Path(name))
    elif name in RECIPES:
        recipe = RECIPES[name]
    else:
        raise UserError(f"--recipe {name!r} is not known: choose one of {', '.join(RECIPES)}, or a file NAME.yaml")
    return recipe if size is None else recipe.resized(size)


def written_size(name: str) -> int | None:
    """The size that a recipe's file gives its first views; None where it gives none, or for a built-in recipe.

    Raises:
        UserError: as `load_recipe`.
    """
    if not _is_file(name):
        return None
    recipe = load_recipe(name)
    first = yaml.safe_load(Path(name).read_text())["views"][0]
    return recipe.size if "size" in first else None


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")


def _read(path: Path) -> Recipe:
    try:
        return parse_recipe(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_recipe(values: Any) -> Recipe:
    """A recipe from what YAML holds: mappings, lists, numbers and strings.

    Raises:
        UserError: says which part is not understood and what could stand there.
    """
    if isinstance(values, dict):
        values = {"name": "unnamed", "about": "", "views": None} | values
    values = _mapping(values, "a recipe", Recipe)
    if not isinstance(views := values.get("views"), list):
        raise UserError("a recipe needs views: a list of {operations: […], size: …, count: …}")
    growth = values.get("growth")
    growth = None if growth is None else Growth(**_mapping(growth, "growth", Growth))
    return Recipe(**values | {"views": tuple(map(_parse_view, views)), "growth": growth})


def _parse_view(values: Any) -> View:
    values = _mapping(values, "a view", View)
    return View(**values | {"operations": _parse_operations("a view", values["operations"])})


def _parse_operations(what: str, entries: Any) -> tuple[Any, ...]:
    if not isinstance(entries, list):
        raise UserError(f"{what} needs operations: a list such as [RandomResizedCrop, {{ColorJitter: {{p: 0.8}}}}]")
    return tuple(map(_parse_operation, entries))


def _parse_stages(entries: Any) -> tuple[tuple[int, Any], ...]:
    pairs: list[Any] = entries if isinstance(entries, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int) for pair in pairs):
        raise UserError("ByEpoch: stages are written as a list of [first epoch, operation]")
    return tuple((start, _parse_operation(stage)) for start, stage in pairs)


def _parse_operation(entry: Any) -> Any:
    """`Name`, `{Name: {field: value}}`, or None."""
    if entry is None or entry == "None":
        return None
    name, values = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
    if not isinstance(name, str):
        raise UserError(f"an operation is written as NAME or {{NAME: {{field: value}}}}, not {entry!r}")
    if name not in OPERATIONS:
        raise UserError(
            f"unknown operation {name!r}: choose one of {', '.join(OPERATIONS)}; or another of Albumentations' as"
            " Albumentations: {transform: NAME}"
        )
    values = _mapping(values or {}, name, OPERATIONS[name])
    if "interpolation" in values:
        values["interpolation"] = _interpolation(values["interpolation"])
    if "operations" in values:
        values["operations"] = _parse_operations(name, values["operations"])
    if "stages" in values:
        values["stages"] = _parse_stages(values["stages"])
    return OPERATIONS[name](**values)


def _interpolation(name: Any) -> Interpolation:
    known = {how.name.lower(): how for how in Interpolation}
    if not isinstance(name, str) or name not in known:
        raise UserError(f"interpolation {name!r} is not known: choose one of {', '.join(known)}")
    return known[name]


def _mapping(values: Any, what: str, made: type[Any]) -> dict[str, Any]:
    """The values, lists as tuples. Raises UserError for anything but a mapping with the fields of what is made."""
    if not isinstance(values, dict):
        raise UserError(f"{what} is written as a mapping of fields to values, not {values!r}")
    known = {f.name: f for f in dataclasses.fields(made)}
    if unknown := [name for name in values if name not in known]:
        raise UserError(f"{what}: unknown field {unknown[0]!r}: choose one of {', '.join(known)}")
    defaults = {name: f.default for name, f in known.items()}
    if absent := [name for name, default in defaults.items() if default is dataclasses.MISSING and name not in values]:
        raise UserError(f"{what} needs {absent[0]}")
    nested = ("operations", "stages", "views", "arguments")
    return {name: value if name in nested else hashable(value) for name, value in values.items()}


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back as an equal recipe."""
    views = [vars(view) | {"operations": list(map(_plain_operation, view.operations))} for view in recipe.views]
    values: dict[str, Any] = {
        "name": recipe.name,
        "about": recipe.about,
        "mean": list(recipe.mean),
        "std": list(recipe.std),
    }
    if recipe.growth:
        values["growth"] = {"sizes": list(map(list, recipe.growth.sizes)), "of": recipe.growth.of}
    return yaml.safe_dump(values | {"views": views}, sort_keys=False, default_flow_style=None, width=120)


def _plain_operation(operation: Operation | None) -> Any:
    if operation is None:
        return None
    values = {name: _plain(name, value) for name, value in vars(operation).items()}
    return {type(operation).__name__: values}


def _plain(name: str, value: Any) -> Any:
    match name:
        case "interpolation":
            return value.name.lower()
        case "operations":
            return [_plain_operation(operation) for operation in value]
        case "stages":
            return [[start, _plain_operation(stage)] for start, stage in value]
        case "arguments":
            return {key: _plain("", argument) for key, argument in value}
    return [_plain("", item) for item in value] if isinstance(value, tuple) else value
