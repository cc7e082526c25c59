"""Augmentation: a recipe (data), a draw (a pure function to rows), executors (code that moves the pixels)."""

from penstock.augment.draw import draw
from penstock.augment.pixels import Pixels
from penstock.augment.recipe import Recipe, evaluation
from penstock.augment.recipes import RECIPES, load_recipe
from penstock.augment.rows import Rows

__all__ = ["RECIPES", "Pixels", "Recipe", "Rows", "draw", "evaluation", "load_recipe"]
