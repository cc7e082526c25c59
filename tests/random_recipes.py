"""Random recipes for property tests: every operation, any values within its limits."""

from __future__ import annotations

from hypothesis import strategies as st

from penstock.augment.operations import (
    CLAHE,
    Blur,
    ByEpoch,
    CenterCrop,
    ChannelShuffle,
    CoarseDropout,
    ColorJitter,
    Flip,
    GaussianBlur,
    GaussNoise,
    Grayscale,
    HorizontalFlip,
    HueSaturationValue,
    RandomBrightnessContrast,
    RandomChoice,
    RandomResizedCrop,
    Sharpen,
    Solarize,
    VerticalFlip,
)
from penstock.augment.recipe import Growth, Recipe, View
from penstock.augment.rows import Interpolation

P = st.sampled_from([0.0, 0.5, 1.0])


def ranges(low, high, numbers=st.floats):
    """Two numbers within the limits, the lower first."""
    return st.tuples(numbers(low, high), numbers(low, high)).map(sorted).map(tuple)


HOW = {"interpolation": st.sampled_from(Interpolation), "antialias": st.booleans()}
CROPS = st.one_of(
    st.builds(RandomResizedCrop, scale=ranges(0.01, 1.0), ratio=ranges(0.2, 5.0), **HOW),
    st.builds(CenterCrop, fraction=st.floats(0.05, 1.0), **HOW),
)
STEPS = st.one_of(
    *(st.builds(kind, p=P) for kind in (HorizontalFlip, VerticalFlip, Flip, Grayscale, ChannelShuffle)),
    st.builds(
        ColorJitter, brightness=st.floats(0, 2), contrast=st.floats(0, 2), saturation=st.floats(0, 2),
        hue=st.floats(0, 0.5), p=P,
    ),
    st.builds(GaussianBlur, sigma=ranges(0.01, 20.0), kernel=st.none() | ranges(1, 9, st.integers), p=P),
    st.builds(GaussianBlur, sigma=st.none(), kernel=ranges(1, 9, st.integers), p=P),
    st.builds(Solarize, threshold=st.floats(0, 256), p=P),
    st.builds(RandomBrightnessContrast, brightness=st.floats(0, 1), contrast=st.floats(0, 1), p=P),
    st.builds(CLAHE, clip_limit=ranges(1.0, 50.0), tiles=st.integers(1, 10), p=P),
    st.builds(Blur, radius=ranges(1, 20, st.integers), p=P),
    st.builds(Sharpen, alpha=ranges(0.0, 1.0), lightness=ranges(0.0, 2.0), p=P),
    st.builds(
        HueSaturationValue, hue=st.floats(0, 180), saturation=st.floats(0, 255), value=st.floats(0, 255), p=P
    ),
    st.builds(
        CoarseDropout, holes=ranges(1, 9, st.integers), height=ranges(1, 40, st.integers),
        width=ranges(1, 40, st.integers), fill=st.floats(0, 255), p=P,
    ),
    st.builds(GaussNoise, variance=ranges(0.0, 1000.0), p=P),
)  # fmt: skip
CHOICES = st.builds(
    RandomChoice, operations=st.lists(STEPS | st.none(), min_size=1, max_size=4).map(tuple), times=st.integers(1, 3)
)
SCHEDULES = st.builds(lambda early, late: ByEpoch(stages=((0, early), (2, late)), of=4), STEPS, STEPS)


@st.composite
def recipes(draw):
    """One to three kinds of view, each a crop and up to five steps."""
    steps = st.lists(STEPS | CHOICES | SCHEDULES, max_size=5)
    views = draw(
        st.lists(
            st.builds(
                lambda crop, rest, size, count: View(operations=(crop, *rest), size=size, count=count),
                CROPS, steps, st.integers(8, 40), st.integers(1, 2),
            ),
            min_size=1, max_size=3,
        )
    )  # fmt: skip
    return Recipe(name="random", about="a property test", views=tuple(views))


@st.composite
def growing_recipes(draw):
    """Such a recipe, or its first kind of view alone, that grows over three epochs to 64 px."""
    first, *others = draw(recipes()).resized(64).views
    largest = [view for view in others if view.size > 20 and abs(view.size - 64) > 20]  # they must not become equal
    sides = draw(st.sets(st.integers(32, 63), min_size=2, max_size=2))
    growth = Growth(sizes=tuple(enumerate([*sorted(sides), 64])), of=3)
    return Recipe(name="random", about="a property test", views=(first, *largest), growth=growth)
