"""The console command: quick, lazy, and one line for a wrong word."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import pytest

from penstock import __version__, cli
from penstock.errors import UserError
from penstock.options import read_options

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "penstock", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("words", "commands"), [([], cli.COMMANDS), (["benchmark"], cli.BENCHMARKS)])
def test_help_names_every_command(words: list[str], commands: cli.Commands) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0
    assert f"usage: {' '.join(['penstock', *words])} COMMAND" in done.stdout
    assert all(f"\n  {name} " in done.stdout for name in commands)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from penstock import cli; cli.main(['--help']); cli.main(['benchmark']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "tyro", "rich"} & set(done.stdout.splitlines()[-1].split())


def test_a_script_beside_a_clone_finds_the_package_and_not_the_clones_root(tmp_path: Path) -> None:
    (tmp_path / "penstock").mkdir()  # as a clone lies there: a folder without __init__.py
    code = "import penstock, penstock.errors as found; print(penstock.__version__, found.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    if not any(distribution.files for distribution in distributions(name="penstock")):
        pytest.skip("penstock is not installed here")
    assert done.stdout.split() == [__version__, str(ROOT / "penstock/errors.py")], done.stderr


def test_no_command_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert capsys.readouterr().out == cli.usage("penstock", cli.COMMANDS) + "\n"
    assert cli.main(["benchmark"]) == 0
    assert capsys.readouterr().out == cli.usage("penstock benchmark", cli.BENCHMARKS) + "\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_command_is_one_line() -> None:
    done = run("trian")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "trian" in done.stderr
    assert "train" in done.stderr


def test_an_unknown_benchmark_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no `penstock benchmark thruput`; there are throughput, .*time-to-accuracy"):
        cli.main(["benchmark", "thruput", "--quick"])


def test_every_benchmark_that_runs_by_path_is_a_command() -> None:
    by_path = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "run_command(main)" in path.read_text()}
    assert {f"penstock.benchmarks.{name}" for name in by_path} == {module for module, _ in cli.BENCHMARKS.values()}


def test_the_rest_of_the_line_reaches_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "doctor", ("penstock.doctor", ""))
    with pytest.raises(UserError, match="--nonsense"):
        cli.main(["doctor", "--nonsense"])


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 80


@pytest.mark.parametrize("name", cli.BENCHMARKS)
def test_every_benchmark_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["penstock"])
    with pytest.raises(SystemExit) as left:
        cli.main(["benchmark", name, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: penstock benchmark {name} ")


def test_doctor_names_the_extra_of_a_missing_loader(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from penstock.loaders import make

    monkeypatch.setattr(make, "find_spec", lambda name: None)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "make install" in printed
    assert "torchvision" in printed


def test_doctor_says_what_the_caches_folders_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cache = tmp_path / "[old]"
    monkeypatch.setenv("PENSTOCK_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.main(["doctor"]) == 0
    assert "empty" in capsys.readouterr().out
    for file, megabytes in (("shards/a.tar", 3), ("numba-1/a.nbc", 1), ("numba-2/b.nbc", 1)):
        (cache / file).parent.mkdir(parents=True)
        (cache / file).write_bytes(bytes(megabytes * 10**6))
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert str(cache) in printed
    assert "shards 3 MB, numba-* 2 MB: all of it can be removed" in printed


@dataclass(frozen=True, kw_only=True)
class Base:
    size: int | None = None
    """Side of the views in pixels;
    default: the recipe's."""


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    seed: int = 0
    """Of everything."""
    probe: Base = Base()
    """How to probe."""


def test_help_breaks_where_the_terminal_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        read_options(Config, "What it\ndoes.\n\n    python a.py\n    python b.py", ["--help"])
    text = capsys.readouterr().out
    assert text.count("Side of the views in pixels; default: the recipe's. ") == 2
    assert "Of everything. (default: 0)" in text
    assert "(default: None)" not in text
    assert "What it does." in text and "    python a.py\n    python b.py" in text
    assert read_options(Config, None, ["--seed", "3"]) == Config(seed=3)
