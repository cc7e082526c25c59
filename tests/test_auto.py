"""`auto`: what is taken for what was measured, what is kept of it, and that it measures what there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import load_recipe
from penstock.errors import BrokenImage, UserError
from penstock.loaders import LOADERS, Order, Views, auto, make_loader, open_source, trials
from penstock.loaders.auto import Trial, choose_loader, decide
from penstock.loaders.make import shard_path
from penstock.loaders.sources import ImageArrays

ROOT = Path(__file__).resolve().parents[1]
IMAGES, SIZE = 12, 16
LONG = 2 * auto.PATIENCE
OURS = {"folder", "ffcv", "resident", "dali"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(path)
    return open_source(str(folder))


@pytest.fixture
def choose(data, tmp_path):
    def call(source=data, **options):
        options = {"recipe": load_recipe("moco-v2", size=SIZE), "batch": 4, "workers": 2, "cache": tmp_path} | options
        return choose_loader(source, **options)

    return call


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the measurement: what each candidate is said to reach, and the candidates of each call."""
    said, calls = {}, []

    def measure(names, source, **options):
        calls.append(list(names))
        return {name: said.get(name, Trial(pairs_per_s=1.0, preparation_s=0.0)) for name in names}

    monkeypatch.setattr(auto, "measure", measure)
    return said, calls


@pytest.mark.parametrize(
    ("rates", "waits", "ready", "expected"),
    [
        ({"folder": 100, "resident": 200}, {}, (), ("resident", None)),
        ({"folder": 100, "ffcv": 200}, {"ffcv": auto.PATIENCE}, (), ("ffcv", None)),
        ({"folder": 100, "ffcv": 200}, {"ffcv": LONG}, (), ("folder", "ffcv")),
        ({"folder": 100, "ffcv": 200}, {"ffcv": LONG}, {"ffcv"}, ("ffcv", None)),
        ({"folder": 100, "ffcv": 104}, {"ffcv": LONG}, (), ("folder", None)),  # not worth a word
        ({"folder": 100, "ffcv": 104}, {"ffcv": 1.0}, (), ("folder", None)),  # nor a second
        ({"folder": 100, "dali": 104}, {}, (), ("dali", None)),
        ({"folder": 100, "dali": 150, "ffcv": 180}, {"ffcv": LONG}, (), ("dali", "ffcv")),
    ],
)
def test_the_fastest_is_taken_unless_it_must_be_waited_for(rates, waits, ready, expected):
    tried = {name: Trial(pairs_per_s=rate, preparation_s=waits.get(name, 0.0)) for name, rate in rates.items()}
    assert decide(tried, set(ready)) == expected


def test_what_failed_is_not_taken():
    failed = Trial(failure="a.jpg: broken")
    assert decide({"folder": Trial(pairs_per_s=1.0), "dali": failed}, {"dali"}) == ("folder", None)
    with pytest.raises(UserError, match=r"a\.jpg: broken"):
        decide({"folder": failed, "ffcv": Trial(pairs_per_s=9.0, preparation_s=LONG)}, set())


def test_it_says_what_it_took_and_why(choose, measured, capsys):
    said, _ = measured
    said |= {"folder": Trial(pairs_per_s=1000), "ffcv": Trial(pairs_per_s=1500, preparation_s=720.0)}
    said |= {"resident": Trial(failure="no room")}
    choice = choose()
    assert (choice.name, choice.faster, choice.preparation_s) == ("folder", "ffcv", 720.0)
    text = capsys.readouterr().err
    assert "auto takes folder: 1,000 images/s (ffcv 1,500" in text
    assert "ffcv would be 1.5× as fast, after preparing the set for about 12 min: --loader ffcv" in text
    assert "resident is left out: no room" in text
    choose(speaks=False)
    assert not capsys.readouterr().err


def test_a_shard_that_is_there_needs_no_waiting(choose, measured, data, tmp_path):
    measured[0]["ffcv"] = Trial(pairs_per_s=9.0, preparation_s=LONG)
    assert choose().name != "ffcv"
    shard = shard_path(data, "ffcv", cache=tmp_path)
    shard.parent.mkdir()
    shard.touch()
    assert choose().name == "ffcv"
    assert len(measured[1]) == 1  # and nothing to be measured anew


def test_what_was_measured_is_kept(choose, measured):
    _, calls = measured
    first, second = choose(), choose()
    assert (first.from_cache, second.from_cache, len(calls)) == (False, True, 1)
    assert first.name == second.name and first.pairs_per_s == second.pairs_per_s


def test_views_that_grow_are_measured_at_their_last_size(choose, measured):
    choose()
    assert choose(recipe=load_recipe("moco-v2", size=SIZE).growing(8)).from_cache
    assert not choose(recipe=load_recipe("moco-v2", size=2 * SIZE)).from_cache


@pytest.mark.parametrize(
    "other", [{"batch": 6}, {"workers": 1}, {"dtype": torch.float16}, {"recipe": load_recipe("simclr", size=SIZE)},
              {"executor": "fused_cpu"}, {"on_error": "skip"}], ids=str,
)  # fmt: skip
def test_another_way_of_loading_is_measured_anew(choose, measured, other):
    choose()
    assert not choose(**other).from_cache


def test_other_images_and_other_machines_are_measured_anew(choose, measured, monkeypatch):
    choose()
    pixels = np.zeros((IMAGES, 8, 8, 3), np.uint8)
    assert not choose(ImageArrays(pixels, [0] * IMAGES, ["a"], "arrays")).from_cache
    assert choose().from_cache
    monkeypatch.setattr(auto, "describe_machine", lambda: {"cpu": "another"})
    assert not choose().from_cache


@pytest.mark.parametrize("change", ["cut", "empty", "list", "no trials", "a text for a rate", "no rate", "binary"])
def test_a_damaged_file_is_measured_anew(choose, measured, change):
    file = choose().file
    kept = json.loads(file.read_text())
    match change:
        case "cut":
            file.write_text(file.read_text()[:-20])
        case "empty":
            file.write_text("")
        case "list":
            file.write_text("[]")
        case "no trials":
            file.write_text(json.dumps(kept | {"trials": {}}))
        case "a text for a rate":
            kept["trials"]["folder"]["pairs_per_s"] = "fast"
            file.write_text(json.dumps(kept))
        case "no rate":
            kept["trials"]["folder"]["pairs_per_s"] = 0
            file.write_text(json.dumps(kept))
        case "binary":
            file.write_bytes(b"\xff\x00")
    assert not choose().from_cache
    assert choose().from_cache


def test_only_loaders_that_give_the_same_views_are_tried(choose, measured):
    choose()
    assert {"folder", "ffcv", "resident"} <= set(measured[1][0]) <= OURS


def test_resident_is_left_out_where_the_set_does_not_fit(choose, measured):
    decoded = IMAGES * 24 * 32 * 3
    choice = choose(budget=decoded - 1)
    assert "resident" not in measured[1][0] and "27.6 kB" in choice.left_out["resident"]
    choose(budget=2 * decoded)
    assert "resident" in measured[1][1]


def test_arrays_in_memory_need_no_budget(choose, measured):
    pixels = np.zeros((IMAGES, 8, 8, 3), np.uint8)
    choose(ImageArrays(pixels, [0] * IMAGES, ["a"], "arrays"), budget=1)
    assert "resident" in measured[1][0]


def test_a_loader_that_is_not_installed_is_left_out(choose, measured, monkeypatch):
    monkeypatch.setattr(auto, "missing", lambda name: "not here" if name == "dali" else None)
    assert choose().left_out["dali"] == "not here"
    assert "dali" not in measured[1][0]


def test_it_measures_the_loaders_that_are_here(choose, tmp_path):
    choice = choose(seconds=0.05)
    assert {"folder", "ffcv", "resident"} <= set(choice.pairs_per_s) <= OURS and not choice.from_cache
    assert all(rate > 0 for rate in choice.pairs_per_s.values())
    assert choose().from_cache
    assert [path.name for path in tmp_path.iterdir()] == ["choices"]  # the shards of the sample are gone


def test_a_loader_that_fails_is_left_out(choose, monkeypatch):
    def make(name, source, **options):
        if name != "folder":
            raise RuntimeError(f"{name} has no codec\nand more")
        return make_loader(name, source, **options)

    monkeypatch.setattr(trials, "make_loader", make)
    choice = choose(seconds=0.05)
    assert choice.name == "folder" and choice.left_out["ffcv"] == "ffcv has no codec"


def test_where_all_fail_it_is_folders_error(choose, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(BrokenImage, match=r"a\.jpg"):
        choose(open_source(str(folder)), batch=1)
    assert not list(tmp_path.glob("choices/*.json"))


def test_a_broken_image_is_skipped_where_that_is_asked_for(choose, data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(data.encoded(i))
    (folder / "3.jpg").write_bytes(b"\xff\xd8\xff")
    choice = choose(open_source(str(folder)), on_error="skip", seconds=0.01)
    assert {"folder", "ffcv"} <= set(choice.pairs_per_s)


def test_the_rate_counts_whole_batches_after_the_first(monkeypatch):
    """By a clock that only the batches move: the first ones take a second, the others a tenth."""
    clock = [0.0]

    class Fake:
        options = type("Options", (), {"device": torch.device("cpu")})

        def epoch(self, epoch):
            for step in range(100):
                clock[0] += 1.0 if step < trials.STARTING else 0.1
                yield Views(groups=[], index=torch.arange(4), label=torch.arange(4))

    monkeypatch.setattr(trials, "perf_counter", lambda: clock[0])
    assert trials.rate(Fake(), 0.95) == pytest.approx(40.0)
    assert trials.rate(Fake(), 0.0) == pytest.approx(40.0)


def test_the_small_sample_is_walked_without_an_end():
    order, unending = Order(10, 4), trials._Unending(10, 4)
    for step in range(6):
        np.testing.assert_array_equal(unending.indices(0, step), order.indices(step // 2, step % 2))


def test_large_images_are_tried_in_small_batches():
    options = {"recipe": load_recipe("moco-v2", size=224), "workers": 4}
    assert trials.tried_batch(256, 12e6, options) == 4
    assert trials.tried_batch(256, 32 * 32, options | {"recipe": load_recipe("moco-v2", size=32)}) == 256


@pytest.mark.parametrize("length", [1, 5, 256, 1000])
def test_the_sample_is_spread_over_the_set(length):
    positions = trials.spread(length, 256)
    assert len(positions) == len(set(positions.tolist())) == min(length, 256)
    assert (positions[0], positions[-1]) == (0, length - 1)


def test_of_two_processes_one_measures(data, tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from penstock.augment import load_recipe
from penstock.loaders import auto, open_source

def measure(names, source, **options):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("measured\\n")
    time.sleep(1)
    return {{name: auto.Trial(pairs_per_s=1.0) for name in names}}

auto.measure = measure
source = open_source({str(data.root)!r})
print("ready", flush=True)
sys.stdin.readline()
choice = auto.choose_loader(source, recipe=load_recipe("moco-v2", size=16), batch=4, cache=Path({str(tmp_path)!r}))
print(choice.name, choice.from_cache)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = sorted(process.communicate()[0].split() for process in processes)
    assert said[0][0] == said[1][0] and [from_cache for _, from_cache in said] == ["False", "True"]
    assert (tmp_path / "log").read_text() == "measured\n"


def test_auto_gives_what_the_others_give(data, tmp_path, measured):
    measured[0]["ffcv"] = Trial(pairs_per_s=9.0)
    options = {"recipe": load_recipe("moco-v2", size=SIZE), "batch": 4, "workers": 2, "cache": tmp_path}
    with make_loader("auto", data, **options) as taken, make_loader("folder", data, **options) as folder:
        for ours, theirs in zip(taken, folder, strict=True):
            assert torch.equal(ours.groups[0], theirs.groups[0]) and torch.equal(ours.index, theirs.index)
    assert shard_path(data, "ffcv", cache=tmp_path).exists()


def test_auto_is_a_loader_like_the_others():
    assert "auto" in LOADERS
