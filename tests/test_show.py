"""The recipes as the command `penstock recipe` prints them: a line each, or YAML that is read back equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.augment import RECIPES, load_recipe
from penstock.augment.recipe import Growth
from penstock.augment.recipes import dump_recipe
from penstock.augment.show import main
from penstock.errors import UserError


def test_a_line_about_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    *lines, empty, hint = capsys.readouterr().out.splitlines()
    assert not empty and hint.endswith("penstock recipe NAME > mine.yaml")
    assert [line.split(maxsplit=1) for line in lines] == [[name, recipe.about] for name, recipe in RECIPES.items()]


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_printed_is_read_back_equal(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(capsys.readouterr().out)
    assert load_recipe(str(mine)) == RECIPES[name]


def test_a_file_that_grows_with_the_epoch_is_printed_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    growing = replace(load_recipe("gradual"), growth=Growth(sizes=((0, 16), (50, 32)), of=200))
    mine = tmp_path / "mine.yaml"
    mine.write_text(dump_recipe(growing))
    assert main([str(mine)]) == 0
    mine.write_text(capsys.readouterr().out)
    assert load_recipe(str(mine)) == growing


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'moco-v9' is not known: choose one of moco-v1, .*probe, or a file"):
        main(["moco-v9"])
