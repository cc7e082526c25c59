"""Checkpoints that are written while training goes on: of the moment they were asked for, in order, and none lost."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from penstock.engine import checkpoint
from penstock.engine.checkpoint import CheckpointWriter, load_checkpoint, on_host, save_checkpoint
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


def test_a_full_disk_is_said_once_and_the_one_before_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer, path = CheckpointWriter(), tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    writer.save([path], {"step": 2})
    with pytest.raises(UserError, match=r"last.pt: the checkpoint cannot be written \(No space left on device\)"):
        writer.wait()
    assert load_checkpoint(path)["step"] == 1
    writer.wait()
    writer.close()


def test_a_disk_that_is_full_in_mid_tensor_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: object, file: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nand a trace")

    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"\(PytorchStreamWriter failed writing file data/0: file write failed\)"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


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
