"""Files that are whole or not there, and what a disk that is full does to a command."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from penstock.errors import NotWritten, UserError, run_command
from penstock.files import write_whole

FULL = OSError(errno.ENOSPC, "No space left on device")


def raising(error: OSError):
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("folder", [".", "/"])
def test_a_folder_is_no_name_for_a_file(folder: str) -> None:
    with pytest.raises(UserError, match=r"is a folder; name a file"):
        write_whole(Path(folder), Path.touch)


def test_a_full_disk_is_not_the_fault_of_what_was_typed(tmp_path: Path) -> None:
    with pytest.raises(NotWritten, match=r"cannot be written \(No space left on device\)") as raised:
        write_whole(tmp_path / "a.json", raising(FULL))
    assert raised.value.exit_code == 1


def test_a_full_disk_ends_a_command_with_one_line(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        run_command(raising(FULL))
    assert left.value.code == 1
    assert capsys.readouterr().err == "penstock: [Errno 28] No space left on device\n"


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    with pytest.raises(PermissionError):
        run_command(raising(PermissionError(errno.EACCES, "Permission denied")))
