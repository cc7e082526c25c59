"""The contact sheet: its rows and columns, what its captions say, where it finds differences, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from penstock.augment import Pixels, Recipe, draw, load_recipe, preview
from penstock.augment.executors import BACK_ENDS
from penstock.augment.operations import Albumentations, RandomResizedCrop
from penstock.augment.preview import Config, Strip, caption, compare, draw_sheet, levels, make_strips, read_image
from penstock.augment.recipe import View
from penstock.augment.recipes import dump_recipe
from penstock.augment.rows import PARAMETERS, Opcode, Rows
from penstock.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def row(*slots: tuple[Opcode, list[float]]) -> Rows:
    """One view of one image, with these slots."""
    values = [[*parameters, *[0.0] * (PARAMETERS - len(parameters))] for _, parameters in slots]
    return Rows(
        opcode=np.array([[[opcode for opcode, _ in slots]]], np.int32),
        parameters=np.array([[values]], np.float32),
        seed=np.zeros((1, 1, len(slots)), np.uint64),
    )


def strip(name: str, *views: np.ndarray) -> Strip:
    return Strip(name=name, views=list(views), routed=0)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(preview.landscape(48, 64)).save(path)
    return path


def sheet_of(recipe: Recipe, draws: int, *executors: str) -> Figure:
    image = preview.landscape(48, 64)
    pixels = Pixels.from_images([image] * draws)
    rows = draw(recipe, seed=0, epoch=0, index=np.arange(draws), height=pixels.height, width=pixels.width)
    strips, _ = make_strips(Config(executors=executors), pixels, rows, recipe)
    return draw_sheet(image, rows, recipe, strips)


def test_a_row_for_each_executor_and_a_column_for_each_view() -> None:
    figure = sheet_of(load_recipe("moco-v2", size=16), 2, "fused_cpu", "reference")
    assert len(figure.axes) == (1 + 2) * (2 * 2 + 1)
    grid = np.array(figure.axes).reshape(3, 5)
    assert [axes.get_title() for axes in grid[0, :-1]] == [
        f"draw {n}, view {v}: 16 px" for n in range(2) for v in range(2)
    ]
    assert [line[0].get_ylabel() for line in grid[1:]] == ["reference", "fused_cpu"]
    assert all("crop" in axes.get_xlabel() for axes in grid[0, :-1])
    assert not grid[1, -1].get_xlabel()
    assert grid[2, -1].get_xlabel().startswith("max ")


def test_views_of_all_sizes_are_shown() -> None:
    figure = sheet_of(load_recipe("multi-crop", size=32), 1, "reference")
    titles = [axes.get_title() for axes in figure.axes[:8]]
    assert [title.rsplit(" ", 2)[1] for title in titles] == ["32"] * 2 + ["14"] * 6


def test_the_interpreter_is_left_out_where_it_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(preview, "BACK_ENDS", ("reference", "fused_gpu"))
    recipe, image = load_recipe("moco-v2", size=16), preview.landscape(20, 20)
    pixels = Pixels.from_images([image])
    rows = draw(recipe, seed=0, epoch=0, index=np.arange(1), height=pixels.height, width=pixels.width)
    strips, absent = make_strips(Config(), pixels, rows, recipe)
    assert [each.name for each in strips] == ["reference"]
    assert "--executors fused_gpu" in absent["fused_gpu"]


def test_an_executor_that_cannot_run_is_named_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_strip = preview.make_strip

    def unless_fused(name: str, *rest: object) -> Strip:
        if name == "fused_cpu":
            raise UserError("broken here")
        return make_strip(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(preview, "make_strip", unless_fused)
    monkeypatch.setattr(preview, "BACK_ENDS", ("reference", "fused_cpu"))
    recipe, pixels = load_recipe("moco-v2", size=16), Pixels.from_images([preview.landscape(20, 20)])
    rows = draw(recipe, seed=0, epoch=0, index=np.arange(1), height=pixels.height, width=pixels.width)
    assert make_strips(Config(), pixels, rows, recipe)[1] == {"fused_cpu": "broken here"}
    with pytest.raises(UserError, match="--executors fused_cpu: broken here"):
        make_strips(Config(executors=("fused_cpu",)), pixels, rows, recipe)


def test_a_caption_says_what_was_drawn() -> None:
    rows = row(
        (Opcode.CROP, [33, 14, 98, 120]),
        (Opcode.BRIGHTNESS, [1.234]),
        (Opcode.HUE, [0.04]),
        (Opcode.GAUSSIAN_BLUR, [1.1, 4]),
        (Opcode.HORIZONTAL_FLIP, []),
        (Opcode.NONE, []),
    )
    said = caption(rows, 0, 0, load_recipe("moco-v2"))
    assert said == "crop 120×98+14+33 · bright ×1.23 · hue +.04 · blur σ1.1 · flip"


def test_every_operation_has_a_caption() -> None:
    assert set(preview.CAPTIONS) == set(Opcode) - {Opcode.NONE, Opcode.ALBUMENTATIONS}
    for opcode in preview.CAPTIONS:
        assert preview.CAPTIONS[opcode](np.ones(PARAMETERS, np.float32))
    rain = Albumentations(transform="RandomRain")
    recipe = Recipe(name="wet", about="", views=(View(operations=(RandomResizedCrop(), rain)),))
    assert caption(row((Opcode.ALBUMENTATIONS, [0])), 0, 0, recipe) == "RandomRain"


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0.04, "+", "+.04"), (-0.5, "", "-.5"), (1.0, "", "1"), (10.0, "", "10"), (1.204, "", "1.2"), (0.0, "+", "+0")],
)
def test_numbers_are_short(value: float, sign: str, text: str) -> None:
    assert preview.short(value, sign) == text


def test_lines_break_between_slots() -> None:
    lines = preview.wrapped("crop 120×98+14+33 · saturation ×1.23 · contrast ×.5").replace("\xa0", " ").split("\n")
    assert lines == ["crop 120×98+14+33 ·", "saturation ×1.23 ·", "contrast ×.5"]


def test_the_largest_difference_is_found() -> None:
    ours = [np.full((8, 8, 3), 100, np.uint8) for _ in range(3)]
    theirs = [view.copy() for view in ours]
    theirs[1][5, 2, 0] = 91
    theirs[2][0, 0, 2] = 103
    found = compare(strip("ours", *ours), strip("reference", *theirs))
    assert (found.column, found.y, found.x, found.largest) == (1, 5, 2, 9)
    assert found.mean == pytest.approx(12 / (3 * 8 * 8 * 3))
    assert found.picture.sum() == 9


def test_levels_are_what_was_normalised() -> None:
    recipe = load_recipe("moco-v2")
    pixels = torch.arange(256).expand(1, 1, 3, 1, 256)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    for dtype in (torch.float32, torch.float16):
        found = levels(((pixels / 255 - mean) / std).to(dtype), recipe)
        assert (found[0, 0, 0] == np.arange(256)[:, None]).all()


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (30, 20, 3)


def test_sixteen_bits_are_scaled_as_the_loaders_do_it(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30), 0x80FF, np.uint16)).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == 0x80).all()


def test_the_command_writes_a_picture(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "sheet.png"
    arguments = [str(photo), "--size", "16", "--draws", "1", "--executors", "fused_cpu", "--out", str(out)]
    assert preview.main(arguments) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    printed = capsys.readouterr().out
    assert "moco-v2: 2 views of 16 px" in printed
    assert str(out) in printed
    assert sorted(tmp_path.iterdir()) == sorted([photo, out])


def test_views_that_grow_are_shown_at_the_epochs_size(photo: Path, tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "growing.yaml"
    recipe.write_text(dump_recipe(load_recipe("multi-crop", size=24).growing(16, step=4).over(30)))
    for epoch, line in (("9", "2 views of 16 px"), ("10", "2 views of 20 px"), ("29", "2 views of 24 px")):
        arguments = ["--recipe", str(recipe), "--epoch", epoch, "--draws", "1", "--executors", "fused_cpu"]
        assert preview.main([str(photo), *arguments, "--out", str(tmp_path / "sheet.png")]) == 0
        assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jpg"], "No such file"),
        ([str(ROOT / "setup.py")], "is not an image"),
        (["--recipe", "moco-v9"], "moco-v9"),
        (["--executors", "fused"], ", ".join(BACK_ENDS)),
        (["--draws", "0"], "at least 1"),
        (["--seed", "-1"], "at least 0"),
        (["--seed", str(2**64)], "less than 2^64"),
        (["--fallback", "crop"], "--fallback"),
        (["--size", "4"], "--size 8"),
        (["--out", "sheet.jpg"], ".png"),
        (["--out", "nowhere/sheet.png"], "no folder"),
    ],
)
def test_what_cannot_work_is_one_line(arguments: list[str], says: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        preview.main(arguments)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_photograph_is_refused(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:400])
    with pytest.raises(UserError, match="cannot be read"):
        read_image(photo)


def test_it_runs_by_path_and_leaves_with_2() -> None:
    command = [sys.executable, "augment/preview.py", "nowhere.jpg"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_a_fallback_is_held_against_a_reference_without_one() -> None:
    """Else the rows that it touches would be compared with themselves."""
    recipe = load_recipe("albumentations-7", size=16)
    pixels = Pixels.from_images([preview.landscape(48, 64)] * 8)
    rows = draw(recipe, seed=0, epoch=0, index=np.arange(8), height=pixels.height, width=pixels.width)
    strips, _ = make_strips(Config(executors=("fused_cpu",), fallback="clahe,solarize"), pixels, rows, recipe)
    assert [(s.name, s.routed > 0) for s in strips] == [("reference", False), ("fused_cpu", True)]


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20000, 20000)).save(path)
    with pytest.raises(UserError, match="too large for an image"):
        read_image(path)
