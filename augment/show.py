"""The built-in recipes: a line about each, or one as YAML, to begin your own with.

    python augment/show.py                        # lists them
    python augment/show.py moco-v2 > mine.yaml    # change it, then: python engine/train.py --recipe mine.yaml

A file of yours is printed with all that it leaves to the defaults.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from tyro.conf import Positional

from penstock.augment.recipes import RECIPES, dump_recipe, load_recipe
from penstock.errors import UserError, run_command
from penstock.options import read_options


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str | None] = None
    """A recipe's name, or a file NAME.yaml; none: list the built-in ones."""


def main(arguments: list[str] | None = None) -> int:
    name = read_options(Config, __doc__, arguments).recipe
    if name is None:
        print("\n".join(f"{recipe.name:<26}{recipe.about}" for recipe in RECIPES.values()))
        print("\none as YAML, to begin your own with: penstock recipe NAME > mine.yaml")
    else:
        try:
            print(dump_recipe(load_recipe(name)), end="")
        except UserError as error:  # which speaks of training's option
            raise UserError(str(error).removeprefix("--recipe ")) from None
    return 0


if __name__ == "__main__":
    run_command(main)
