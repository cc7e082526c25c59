"""Downloads: with a progress bar, resumed where they broke off, checked, unpacked under a temporary name.

A file grows as NAME.part in CACHE/downloads and goes on from there after a failure, in this run or the next. What is
unpacked appears under its name only when whole. A dead network is told within seconds, with the two ways on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from penstock import __version__
from penstock.errors import UserError
from penstock.loaders.lock import locked

CONNECT_SECONDS = 12.0  # for name look-up and every address together
READ_SECONDS = 15.0  # without a byte
CHUNK = 1 << 18
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A set's official archive.

    Attributes:
        inside: the folder that it unpacks to.
    """

    url: str
    md5: str
    inside: str


TORONTO = "https://www.cs.toronto.edu/~kriz"
FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas"
ARCHIVES = {
    "cifar10": Archive(
        url=f"{TORONTO}/cifar-10-python.tar.gz", md5="c58f30108f718f92721af3b95e74349a", inside="cifar-10-batches-py"
    ),
    "cifar100": Archive(
        url=f"{TORONTO}/cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85", inside="cifar-100-python"
    ),
    "stl10": Archive(
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        md5="91f7769df0f17e558f3565bffb0c7dfb",
        inside="stl10_binary",
    ),
    "imagenette": Archive(
        url=f"{FASTAI}/imagenette2-320.tgz", md5="3df6f0d01a2c9592104656642f5e78a3", inside="imagenette2-320"
    ),
    "imagenette-160": Archive(
        url=f"{FASTAI}/imagenette2-160.tgz", md5="e793b78cc4c9e9a4ccc0c1155377a412", inside="imagenette2-160"
    ),
}


class DownloadFailed(Exception):
    """Why a download did not come to its end; `fetch_set` makes it a line for the user."""


def fetch_set(name: str, cache: Path) -> Path:
    """The folder that holds a set of `ARCHIVES`, downloaded and unpacked on first use. Raises UserError."""
    archive, folder = ARCHIVES[name], cache / name
    file = cache / "downloads" / archive.url.rsplit("/", 1)[1]
    if folder.is_dir():
        return folder
    try:
        with locked(file):
            if not folder.is_dir():
                download(archive.url, file, md5=archive.md5)
                unpack(file, folder)
                file.unlink()
    except (DownloadFailed, OSError, tarfile.TarError) as error:
        size = _size(_part(file))
        kept = f" ({size / 1e6:.1f} MB are kept, the same command goes on from there)" if size else ""
        raise UserError(
            f"cannot download {name} from {archive.url}: {error}{kept}; name a folder that holds it (--data "
            f"{name}:FOLDER), or take the embedded images (--data shapes)"
        ) from error
    return folder


def download(url: str, file: Path, *, md5: str) -> None:
    """Bring `url` to `file`, going on with what FILE.part holds; a file that is there already is only checked.

    A connection that breaks is taken up again as long as each one brings something.

    Raises:
        DownloadFailed: no connection, no such file, or the content is another than `md5` says (it is removed then).
    """
    part = _part(file)
    if not file.exists():
        while True:
            before = _size(part)
            try:
                _go_on(url, part)
                break
            except (HTTPException, OSError) as error:
                if _size(part) <= before:
                    raise DownloadFailed(_reason(error)) from error
        os.replace(part, file)
    found = _md5(file)
    if found != md5:
        file.unlink()
        raise DownloadFailed(f"the file is damaged or another one (md5 {found}, not {md5}); it was removed")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive so that `folder` is there whole or not at all."""
    temporary = _part(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(temporary, filter="data")
    os.replace(temporary, folder)


def _go_on(url: str, part: Path) -> None:
    """One connection: append to `part` from where it ends. Raises OSError or HTTPException if it ends too early."""
    start = _size(part)
    headers = {"User-Agent": f"penstock/{__version__}", "Range": f"bytes={start}-"}
    try:
        response = _within(CONNECT_SECONDS, lambda: _open(urllib.request.Request(url, headers=headers)))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing lies beyond what we have
            return
        raise
    resumed = response.status == 206  # 200: a server that knows no ranges sends the whole
    length = response.headers["Content-Length"]
    total = int(length) + (start if resumed else 0) if length else None
    with response, part.open("ab" if resumed else "wb") as file, _progress() as progress:
        task = progress.add_task(part.stem, total=total, completed=file.tell())
        while chunk := response.read(CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection broke off after {_size(part)} of {total} bytes")


def _open(request: urllib.request.Request) -> HTTPResponse:
    return urllib.request.urlopen(request, timeout=READ_SECONDS)


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Name look-up heeds no timeout, and a socket's holds for each address anew: wait in a thread that can be left."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError as error:
        raise ConnectionError(f"no answer within {seconds:.0f} s") from error


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    return (getattr(error, "strerror", None) if isinstance(error, OSError) else None) or str(error) or repr(error)
