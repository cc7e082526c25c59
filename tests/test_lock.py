"""What locks do where they cannot be had."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from penstock.errors import NotWritten
from penstock.loaders.lock import locked


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_will_do(reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(reason, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "new" / "shard"):
        assert (tmp_path / "new").is_dir()


def test_what_fails_under_the_lock_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="by itself"), locked(tmp_path / "shard"):
        raise OSError("by itself")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotWritten, match=r"file/shards: cannot be written .*PENSTOCK_CACHE=FOLDER"),
        locked(tmp_path / "file" / "shards" / "a"),
    ):
        pass
