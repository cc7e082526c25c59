"""`python engine/train.py` from its arguments to its report: wrong inputs, resuming, signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from penstock.augment import RECIPES, draw, load_recipe
from penstock.augment.recipes import dump_recipe, parse_recipe
from penstock.augment.rows import Opcode
from penstock.engine.checkpoint import load_checkpoint, save_checkpoint
from penstock.engine.csv_log import read_csv
from penstock.engine.methods.moco import MoCo
from penstock.engine.train import main
from penstock.errors import UserError
from penstock.loaders import LOADERS, missing

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
STEPS = 20  # in an epoch
TINY = [
    "--loader", "folder", "--width", "8", "--size", "16", "--batch", "16", "--queue", "64", "--epochs", "2",
    "--lr", "0.03", "--momentum", "0.9", "--log-every", "5", "--checkpoint-steps", "3", "--workers", "2",
    "--knn-k", "20",
]  # fmt: skip

# Jitter takes the ffcv package half a minute to compile; tests/test_loader_contract.py has its groups and stages.
TRAINED = [
    (loader, recipe)
    for loader in LOADERS
    for recipe in ("pool-14", "albumentations-7", "gradual", "multi-crop", "byol")
    if loader != "ffcv-package" or recipe == "pool-14"
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 16 to 23 px, in train/ and val/."""
    root, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", STEPS * 16), ("val", 20)):
        for i in range(count):
            pixels = noise.integers(0, 256, (16 + i % 8, 20, 3), np.uint8) // (1 + i % 2)
            path = root / split / "ab"[i % 2] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*TINY, "--data", str(images), "--out", str(out)]) == 0
    return out


def tensors(state: Any, name: str = "") -> dict[str, Any]:
    """Every value in a nest of dictionaries and lists, by its path."""
    if isinstance(state, dict):
        state = list(state.items())
    elif isinstance(state, list):
        state = list(enumerate(state))
    else:
        return {name: state}
    return {path: leaf for key, value in state for path, leaf in tensors(value, f"{name}/{key}").items()}


def assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = (load_checkpoint(out / "last.pt") for out in (one, other))
    for part in ("position", "method", "optimizer"):
        expected = tensors(theirs[part])
        for path, value in tensors(ours[part]).items():
            same = torch.equal(value, expected[path]) if isinstance(value, torch.Tensor) else value == expected[path]
            assert same, f"{part}{path} differs"


def test_a_run_leaves_logs_a_checkpoint_and_a_report(whole: Path) -> None:
    epochs, steps = read_csv(whole / "epochs.csv"), read_csv(whole / "steps.csv")
    assert [row["epoch"] for row in epochs] == [0, 1, 2]
    assert [row["step"] for row in steps if row["step"] % 5 == 0] == list(range(5, 2 * STEPS + 1, 5))
    assert all(0 <= row["knn"] <= 100 for row in epochs)
    assert all(row["images_per_s"] > 0 and 0 <= row["wait_share"] <= 1 for row in steps)
    assert epochs[1]["loss"] == pytest.approx(
        np.mean([r["loss"] for r in _weighted(steps) if r["epoch"] == 0]), rel=1e-4
    )
    page = (whole / "report.html").read_text()
    assert page.count("<svg") >= 6 and "data:image/png;base64," in page and "before the first epoch" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing beside the file
    assert list((whole / "tensorboard").glob("events.*"))
    assert load_checkpoint(whole / "last.pt")["position"] == {"epoch": 2, "consumed": 0, "step": 2 * STEPS}


def _weighted(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Each row as often as it has steps."""
    before = [0.0, *(row["step"] for row in rows)]
    return [row for row, last in zip(rows, before, strict=False) for _ in range(int(row["step"] - last))]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_interrupted_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    number: signal.Signals, images: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "engine/train.py"), *TINY, "--data", str(images), "--out", str(out)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (out / "last.pt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGUSR2)  # Slurm's notice, which changes nothing
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
    assert number == signal.SIGKILL or f"--resume {out / 'last.pt'}" in said
    stopped = load_checkpoint(out / "last.pt")["position"]
    assert 0 < stopped["consumed"] < STEPS * 16  # in mid-epoch
    assert main(["--resume", str(out / "last.pt")]) == 0
    assert_same_end(out, whole)
    steps = [row["step"] for row in read_csv(out / "steps.csv")]
    assert steps == sorted(set(steps)) and {5.0, 2.0 * STEPS} <= set(steps)
    assert [row["epoch"] for row in read_csv(out / "epochs.csv")] == [0, 1, 2]


@pytest.mark.parametrize(("loader", "recipe"), TRAINED)
def test_every_loader_trains_with_every_kind_of_recipe(loader: str, recipe: str, images: Path, tmp_path: Path) -> None:
    if reason := missing(loader):
        pytest.skip(reason)
    short = ["--subset", "48", "--size", "24", "--knn-every", "0", "--loader", loader, "--recipe", recipe]
    out = tmp_path / "run"
    assert main([*TINY, "--data", str(images), "--out", str(out), *short]) == 0
    about = json.loads((out / "config.json").read_text())
    assert about["recipe"].startswith(f"{recipe}: ")
    assert load_recipe(str(out / "recipe.yaml")) == load_recipe(recipe, size=24)
    epochs = read_csv(out / "epochs.csv")
    assert len(epochs) == 2 and all(np.isfinite(row["loss"]) for row in epochs)
    if LOADERS[loader].own_augmentation:
        assert about["executor"] is None and "routed" not in epochs[0]
    else:
        assert about["executor"] == "fused_cpu"
        assert 0 < epochs[0]["routed"] < 1 if recipe == "pool-14" else epochs[0]["routed"] <= 1


def test_what_falls_back_is_logged(images: Path, tmp_path: Path) -> None:
    out, count = tmp_path / "run", 48
    given = ["--subset", str(count), "--log-every", "1", "--knn-every", "0", "--recipe", "moco-cifar"]
    chosen = ["--executor", "reference", "--fallback", "HorizontalFlip, gray"]
    assert main([*TINY, "--data", str(images), "--out", str(out), *given, *chosen]) == 0
    side = np.full(count, 16)
    for epoch, row in enumerate(read_csv(out / "epochs.csv")):
        rows = draw(RECIPES["moco-cifar"], seed=0, epoch=epoch, index=np.arange(count), height=side, width=side)
        share = np.isin(rows.opcode, [Opcode.HORIZONTAL_FLIP, Opcode.GRAY]).any(axis=-1).mean()
        assert row["routed"] == pytest.approx(share)
    page = (out / "report.html").read_text()
    assert re.search(r"finished by Albumentations</td><td>[56]\d\.\d % of the views", page)
    assert "views made by <b>reference</b>" in page


def test_a_resumed_run_keeps_its_recipe(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where the file that it was read from has changed; and its stages follow the run's new length."""
    file, out = tmp_path / "mine.yaml", tmp_path / "run"
    file.write_text(dump_recipe(replace(load_recipe("gradual"), name="mine")))
    given = ["--subset", "48", "--knn-every", "0", "--recipe", str(file)]
    assert main([*TINY, "--data", str(images), "--out", str(out), *given, "--epochs", "1"]) == 0
    last = out / "last.pt"
    saved = load_checkpoint(last)["recipe"]
    assert saved == (out / "recipe.yaml").read_text()
    assert main(["--resume", str(last), "--epochs", "2"]) == 0
    assert "has changed" not in capsys.readouterr().out
    file.write_text(dump_recipe(load_recipe("a")))
    assert main(["--resume", str(last), "--epochs", "4"]) == 0
    assert f"{file} has changed: this run keeps {out / 'recipe.yaml'}" in capsys.readouterr().out
    assert load_checkpoint(last)["recipe"] == (out / "recipe.yaml").read_text() == saved
    assert "from 3: ColorJitter" in json.loads((out / "config.json").read_text())["recipe"]


def test_data_without_labels_train_without_knn(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat, out = tmp_path / "flat", tmp_path / "run"
    flat.mkdir()
    for path in list((images / "train" / "a").iterdir())[:32]:
        (flat / path.name).write_bytes(path.read_bytes())
    options = "--method moco-v1 --symmetric --optimizer adam --amp bf16 --epochs 1 --save-every 1"
    assert main([*TINY, "--data", str(flat), "--out", str(out), *options.split()]) == 0
    assert "no kNN" in capsys.readouterr().out
    assert "knn" not in read_csv(out / "epochs.csv")[0]
    assert (out / "epoch-0001.pt").exists()


def signalled(*lines: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a process that runs these lines; in them `send` gives it signals, by their names."""
    program = """
        import os, signal
        from penstock.engine.signals import Interrupts
        def send(*names):
            for name in names:
                os.kill(os.getpid(), signal.Signals[name])
    """
    given = [sys.executable, "-c", "\n".join([textwrap.dedent(program), *lines])]
    return subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("names", ["SIGINT SIGINT", "SIGTERM SIGINT SIGINT", "SIGINT SIGTERM SIGINT"])
def test_a_second_interrupt_leaves_at_once(names: str) -> None:
    done = signalled("stop = Interrupts().__enter__()", *(f"send('{name}')" for name in names.split()))
    assert done.returncode == 130 and done.stderr.endswith("penstock: left without saving\n")
    assert done.stderr.count("to save; Ctrl-C again: leave at once\n") == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("SIGTERM SIGTERM SIGTERM", ["to save"]),  # of Slurm, and of whoever started the training
        ("SIGINT SIGTERM SIGTERM", ["to save; Ctrl-C again: leave at once"]),
        ("SIGTERM SIGINT SIGTERM", ["to save", "to save; Ctrl-C again: leave at once"]),
    ],
)
def test_sigterm_never_leaves_unsaved_however_often_it_comes(names: str, said: list[str]) -> None:
    first, *others = names.split()
    done = signalled(
        "with Interrupts() as stop:",
        f"    send({first!r})",
        f"    assert stop.received == signal.{first}",
        f"    send(*{others!r})",
        f"    print('saved', stop.received == signal.{first})",
    )
    assert done.returncode == 0 and done.stdout == "saved True\n"
    assert [line.partition("step, ")[2] for line in done.stderr.split("\n") if line] == said


def test_a_rank_has_its_ctrl_c_twice_from_the_terminal_and_from_torchrun() -> None:
    done = signalled("with Interrupts(alone=False):", "    send('SIGINT', 'SIGINT', 'SIGINT')")
    assert done.returncode == 0 and done.stderr == "\npenstock: stopping after this step, to save\n"


def test_slurm_s_notice_is_ignored_while_training_and_no_longer() -> None:
    done = signalled("with Interrupts() as stop:", "    send('SIGUSR2', 'SIGUSR2')", "print(stop.received)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    done = signalled("with Interrupts(): pass", "print('trained', flush=True)", "send('SIGUSR2')")
    assert (done.returncode, done.stdout) == (-signal.SIGUSR2, "trained\n")


def test_a_handler_in_c_of_the_other_user_signal_stays() -> None:
    registered = "import faulthandler; faulthandler.register(signal.SIGUSR1)"
    done = signalled(registered, "with Interrupts(): send('SIGUSR1')", "send('SIGUSR1')")
    assert done.returncode == 0 and done.stderr.count("most recent call first") == 2


def test_a_caller_s_own_handler_of_the_notice_stays() -> None:
    mine = "signal.signal(signal.SIGUSR2, lambda *_: print('requeued'))"
    assert signalled(mine, "with Interrupts(): send('SIGUSR2')").stdout == "requeued\n"


def test_processes_that_a_training_starts_ignore_the_notice_too() -> None:
    """A loader's workers, and a sweep's trainings before they can handle them: a step's processes all get them."""
    started = "subprocess.run(['sh', '-c', 'kill -USR2 $$; echo alive'], check=True)"
    assert signalled("import subprocess", f"with Interrupts(): {started}").stdout == "alive\n"


def test_resume_auto_starts_where_there_is_nothing_and_goes_on_where_there_is(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*TINY, "--data", str(images), "--out", str(out), "--resume", "auto", "--knn-every", "0"]
    assert main([*arguments, "--epochs", "1"]) == 0
    assert main([*arguments, "--epochs", "2"]) == 0
    assert load_checkpoint(out / "last.pt")["position"]["step"] == 2 * STEPS
    assert [row["epoch"] for row in read_csv(out / "epochs.csv")] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--loader nvidia", "'nvidia' is not known: choose one of"),
        ("--method simclr-9", "'simclr-9' is not known: choose one of moco-v1, moco-v2"),
        ("--recipe none", "--recipe 'none' is not known"),
        ("--arch resnet1", "--arch 'resnet1' is not known"),
        ("--batch 4096 --queue 4096", r"--batch 4096 is larger than the data \(320 images\)"),
        ("--queue 65", "--queue 65 is not a multiple"),
        ("--bn-splits 5", "--bn-splits 5 does not divide"),
        ("--subset 1", "^1 image to train on, where a step compares 2 or more: use a larger --subset"),
        ("--arch densenet121 --width 64 --size 64 --recipe multi-crop", "densenet121 cannot take views of 27 px"),
        ("--recipe probe", "--recipe probe begins with 1 view of 16 px, and moco-v2 compares two"),
        ("--executor fused", "--executor 'fused' is not known: choose one of auto, reference, fused_cpu"),
        ("--executor fused_gpu --device cpu", "fused_gpu needs a GPU: .* use --executor fused_cpu"),
        ("--fallback clahee", "--fallback 'clahee' is not an operation"),
        ("--loader torchvision --executor fused_cpu", "--executor: the torchvision loader brings its own"),
        ("--loader synthetic --fallback clahe", "--fallback: the synthetic loader brings its own"),
        ("--resume nowhere.pt", "nowhere.pt: there is no such file"),
        ("--resume auto", "give --out too"),
    ],
)
def test_wrong_inputs_are_one_line(arguments: str, message: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        out = [] if "auto" in arguments else ["--out", str(tmp_path / "out")]
        main([*TINY, "--data", str(images), *out, *arguments.split()])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_s_name_is_looked_up_before_the_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--recipe 'none' is not known"):
        main(["--data", str(tmp_path / "nowhere"), "--recipe", "none"])


def test_a_run_that_is_refused_late_leaves_no_folder(images: Path, tmp_path: Path) -> None:
    """Other classes to validate on than to train on are seen when all else is built."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "c").symlink_to(images / "train" / "a")
    with pytest.raises(UserError, match="the classes to validate on"):
        main([*TINY, "--data", str(images), "--val-data", str(other), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be written \(Not a directory\): choose another --out"):
        main([*TINY, "--data", str(images), "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(UserError, match=r"/proc.* cannot be (made|written) \(.*\): choose another --out"):
        main([*TINY, "--data", str(images), "--out", "/proc/run"])  # where root, too, can make nothing


def test_a_checkpoint_of_another_run_is_refused_naming_both(whole: Path, tmp_path: Path) -> None:
    checkpoint = str(whole / "last.pt")
    with pytest.raises(UserError, match="--arch resnet18, not resnet50"):
        main(["--resume", checkpoint, "--arch", "resnet50"])
    with pytest.raises(UserError, match="--width 8, not 16"):
        main(["--resume", checkpoint, "--width", "16"])
    text = tmp_path / "text.pt"
    text.write_text("no checkpoint")
    with pytest.raises(UserError, match="this is no checkpoint"):
        main(["--resume", str(text)])
    save_checkpoint(tmp_path / "finetune-last.pt", {"network": {}})
    with pytest.raises(UserError, match="this is no checkpoint of a pre-training run"):
        main(["--resume", str(tmp_path / "finetune-last.pt")])


def test_a_resumed_run_needs_no_more_what_it_began_with(images: Path, whole: Path, tmp_path: Path) -> None:
    begun, out = tmp_path / "begun", tmp_path / "run"
    begun.mkdir()
    weights = shutil.copy(whole / "last.pt", begun / "last.pt")
    given = ["--subset", "48", "--knn-every", "0", "--epochs", "1", "--init", str(weights)]
    assert main([*TINY, "--data", str(images), "--out", str(out), *given]) == 0
    assert main(["--resume", str(out), "--epochs", "1", "--init", str(begun)]) == 0, "by another name"
    weights.unlink()
    assert main(["--resume", str(out), "--epochs", "2"]) == 0
    with pytest.raises(UserError, match=f"trained with --init {weights}, not {whole}"):
        main(["--resume", str(out), "--epochs", "3", "--init", str(whole)])


def test_a_finished_run_goes_on_by_its_folder_but_not_backwards(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="has 2 epochs behind it, --epochs 1 is fewer"):
        main(["--resume", str(whole), "--epochs", "1"])
    shutil.copytree(whole, tmp_path / "copy")
    assert main(["--resume", str(tmp_path / "copy")]) == 0
    assert "finished already, after epoch 2 of 2" in capsys.readouterr().out
    assert main(["--resume", str(tmp_path / "copy"), "--stem", "auto", "--epochs", "3"]) == 0
    assert f"goes on from epoch 3 of 3, step {2 * STEPS}" in capsys.readouterr().out
    assert ", last fed by the loader" in (tmp_path / "copy" / "report.html").read_text()
    assert [row["epoch"] for row in read_csv(tmp_path / "copy" / "epochs.csv")] == [0, 1, 2, 3]


def test_views_grow_from_the_first_size_to_the_last(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    grown = ["--size", "32", "--first-size", "12", "--subset", "48", "--knn-every", "0", "--epochs", "3"]
    assert main([*TINY, "--data", str(images), "--out", str(out), *grown]) == 0
    saved = parse_recipe(yaml.safe_load((out / "recipe.yaml").read_text()))
    assert [saved.over(3).at(epoch).size for epoch in range(3)] == [12, 16, 32]


def test_a_finished_run_is_not_written_over(images: Path, whole: Path) -> None:
    with pytest.raises(UserError, match="a run lies there already"):
        main([*TINY, "--data", str(images), "--out", str(whole)])


def test_a_wrong_input_is_exit_code_2_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "engine/train.py"), "--loader", "nvidia"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"penstock: --loader 'nvidia' is not known: .*\n", done.stderr)


def test_a_loss_that_is_no_number_stops_the_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [*TINY, "--data", str(images), "--out", str(out), "--knn-every", "0", "--lr", "1e30"]
    assert main(arguments) == 1
    assert "the loss is nan" in capsys.readouterr().err
    assert not (out / "last.pt").exists()


def test_weights_that_are_no_numbers_are_not_written_over_good_ones(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step that spoils them is still a number: it was computed before."""
    plain = MoCo.after_step

    def spoil(method: MoCo) -> None:
        plain(method)
        if method.steps == 6:  # a checkpoint is written after steps 3 and 6
            next(method.encoder.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(MoCo, "after_step", spoil)
    out = tmp_path / "run"
    assert main([*TINY, "--data", str(images), "--out", str(out), "--knn-every", "0"]) == 1
    assert "weights are no numbers any more by step 6" in capsys.readouterr().err
    saved = load_checkpoint(out / "last.pt")
    assert saved["position"]["step"] == 3
    assert all(torch.isfinite(value).all() for value in saved["method"].values() if torch.is_tensor(value))
