"""Checkpoints that are written while training goes on: of the moment they were asked for, in order, and none lost."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from penstock.engine import checkpoint
from penstock.engine.checkpoint import (
    CheckpointWriter,
    NotSaved,
    check_same_run,
    load_checkpoint,
    on_host,
    save_checkpoint,
)
from penstock.engine.config import TrainConfig
from penstock.errors import UserError


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that takes what is written once this is set."""
    is_ready, fsync = threading.Event(), os.fsync

    def wait(file: int) -> None:
        assert is_ready.wait(30)
        fsync(file)

    monkeypatch.setattr(checkpoint.os, "fsync", wait)
    return is_ready


def test_training_goes_on_and_the_checkpoint_is_of_the_moment(tmp_path: Path, disk: threading.Event) -> None:
    writer, weights = CheckpointWriter(), torch.zeros(3)
    writer.save([tmp_path / "last.pt"], {"method": {"weights": weights}})
    weights += 1  # the next step, while the disk is busy
    assert not (tmp_path / "last.pt").exists()
    disk.set()
    writer.wait()
    assert load_checkpoint(tmp_path / "last.pt")["method"]["weights"].tolist() == [0, 0, 0]
    writer.close()


def test_the_second_waits_for_the_first(tmp_path: Path, disk: threading.Event) -> None:
    writer = CheckpointWriter()
    writer.save([tmp_path / "best.pt", tmp_path / "last.pt"], {"step": 1})
    threading.Timer(0.05, disk.set).start()
    writer.save([tmp_path / "last.pt"], {"step": 2})
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 1, "the first is on the disk by now"
    writer.close()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2, "closing waits, too"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A disk that is full while the list holds True."""
    is_full, fsync = [True], os.fsync

    def refuse(file: int) -> None:
        if is_full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(checkpoint.os, "fsync", refuse)
    return is_full


def test_a_full_disk_is_said_once_and_the_one_before_is_whole(tmp_path: Path, full: list[bool]) -> None:
    writer, path = CheckpointWriter(), tmp_path / "last.pt"
    full[0] = False
    save_checkpoint(path, {"step": 1})
    full[0] = True
    writer.save([path], {"step": 2})
    with pytest.raises(NotSaved, match=r"cannot be written \(No space left on device\); the one before it is whole$"):
        writer.wait()
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    writer.wait()
    writer.close()


def test_where_there_was_none_before_none_is_said_to_be_whole(tmp_path: Path, full: list[bool]) -> None:
    with pytest.raises(NotSaved, match=r"cannot be written \(No space left on device\)$"):
        save_checkpoint(tmp_path / "last.pt", {})


def test_the_next_one_makes_good(tmp_path: Path, full: list[bool], capsys: pytest.CaptureFixture[str]) -> None:
    writer, path = CheckpointWriter(), tmp_path / "last.pt"
    writer.save([path], {"step": 1})
    wait([writer._writing])
    full[0] = False
    writer.save([path], {"step": 2})
    assert load_checkpoint(path)["step"] == 2
    assert (
        "last.pt: the checkpoint cannot be written (No space left on device); now it could" in capsys.readouterr().err
    )
    writer.close()


def test_two_that_fail_stop_the_training(tmp_path: Path, full: list[bool]) -> None:
    writer = CheckpointWriter()
    writer.save([tmp_path / "last.pt"], {"step": 1})
    with pytest.raises(NotSaved):
        writer.save([tmp_path / "last.pt"], {"step": 2})
    writer.close()


def test_closing_says_what_nobody_has_asked_for(
    tmp_path: Path, full: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    writer = CheckpointWriter()
    writer.save([tmp_path / "last.pt"], {"step": 1})
    writer.close()
    assert "cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_disk_that_is_full_in_mid_tensor_is_called_so(tmp_path: Path) -> None:
    """torch then raises an error of its own over the system's."""
    folder = tmp_path / "last.pt.partial"
    folder.symlink_to("/dev/full")
    with pytest.raises(NotSaved, match=r"\(No space left on device\)$"):
        save_checkpoint(tmp_path / "last.pt", {"method": torch.zeros(1 << 20)})
    assert not list(tmp_path.iterdir())


def test_a_damaged_tensor_is_no_checkpoint(tmp_path: Path) -> None:
    """torch itself reads past the checksums."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"method": {"weights": torch.zeros(1 << 12)}})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["method"]["weights"].count_nonzero() == 1
    with pytest.raises(UserError, match=r"^--resume .*last.pt: this is no checkpoint, or a damaged one$"):
        load_checkpoint(path)


def test_a_setting_that_a_run_began_without_is_not_said_to_be_none() -> None:
    saved = TrainConfig()
    with pytest.raises(UserError, match=r"trained with no --init, not new\.pth: leave --init out to go on as it was"):
        check_same_run(Path("last.pt"), saved, replace(saved, init=Path("new.pth")))


def test_a_copy_loads_as_the_state_itself() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.8, 0.9))
    network(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    held = on_host({"method": network.state_dict(), "optimizer": optimizer.state_dict(), "position": {"epoch": 3}})
    assert held["method"]._metadata == network.state_dict()._metadata
    assert held["optimizer"]["param_groups"][0]["betas"] == (0.8, 0.9)
    assert held["position"] == {"epoch": 3}
    for name, tensor in network.state_dict().items():
        assert torch.equal(held["method"][name], tensor)
        assert held["method"][name].stride() == tensor.stride()
        assert held["method"][name].data_ptr() != tensor.data_ptr()
    optimizer.load_state_dict(held["optimizer"])
