"""Downloads against a server of our own that breaks off, lies, refuses and stalls."""

from __future__ import annotations

import hashlib
import io
import pickle
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import UserError
from penstock.loaders import download as module
from penstock.loaders.download import Archive, DownloadFailed, download, fetch_set, unpack
from penstock.loaders.sources import open_source

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`, by ranges unless told otherwise; `breaks` holds after how many bytes each connection breaks."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.status = CONTENT, True, 0
        self.breaks: list[int] = []
        self.starts: list[int] = []  # where each request asked to begin
        self.url = f"http://127.0.0.1:{self.server_port}/set.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.server.starts.append(start)
        if self.server.status:
            return self.send_error(self.server.status)
        start = start if self.server.ranges else 0
        body = self.server.content[start:]
        if not body:
            return self.send_error(416)
        self.send_response(206 if self.server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks.pop(0)] if self.server.breaks else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "set.tar.gz"


def part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def test_a_whole_file_is_there_under_its_name_only(server: Server, file: Path) -> None:
    download(server.url, file, md5=MD5)
    assert file.read_bytes() == CONTENT and list(file.parent.iterdir()) == [file]
    download(server.url, file, md5=MD5)
    assert server.starts == [0]


def test_a_broken_connection_is_taken_up_where_it_ended(server: Server, file: Path) -> None:
    server.breaks = [100_000, 50_000]
    download(server.url, file, md5=MD5)
    assert file.read_bytes() == CONTENT and server.starts == [0, 100_000, 150_000]


def test_a_connection_that_brings_nothing_ends_it_and_the_next_run_goes_on(server: Server, file: Path) -> None:
    server.breaks = [100_000, 0]
    with pytest.raises(DownloadFailed, match="broke off after 100000 of 300000 bytes"):
        download(server.url, file, md5=MD5)
    assert part(file).read_bytes() == CONTENT[:100_000] and not file.exists()
    download(server.url, file, md5=MD5)
    assert file.read_bytes() == CONTENT and server.starts == [0, 100_000, 100_000]


def test_a_server_without_ranges_starts_over(server: Server, file: Path) -> None:
    server.ranges = False
    part(file).write_bytes(CONTENT[:1000])
    download(server.url, file, md5=MD5)
    assert file.read_bytes() == CONTENT


def test_a_part_that_is_whole_needs_no_more(server: Server, file: Path) -> None:
    part(file).write_bytes(CONTENT)
    download(server.url, file, md5=MD5)
    assert file.read_bytes() == CONTENT


def test_a_file_with_another_md5_is_removed(server: Server, file: Path) -> None:
    server.content = b"another"
    with pytest.raises(DownloadFailed, match=f"md5 {hashlib.md5(b'another').hexdigest()}, not {MD5}"):
        download(server.url, file, md5=MD5)
    assert list(file.parent.iterdir()) == []


def test_what_the_server_says_is_passed_on(server: Server, file: Path) -> None:
    server.status = 404
    with pytest.raises(DownloadFailed, match="404"):
        download(server.url, file, md5=MD5)
    assert server.starts == [0]


def test_a_refused_connection_fails_at_once(file: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(DownloadFailed, match="refused"):
            download(f"http://127.0.0.1:{closed.getsockname()[1]}/x", file, md5=MD5)
    assert time.monotonic() - began < 3


def test_a_silent_server_does_not_hang(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    silent = socket.create_server(("127.0.0.1", 0))  # accepts and says nothing
    with silent, pytest.raises(DownloadFailed, match="no answer within"):
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/x", file, md5=MD5)


def cifar_archive() -> bytes:
    meta = {"label_names": ["x"]}
    batch = {"data": np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8), "labels": [0, 0]}
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in [("batches.meta", meta)] + [(name, batch) for name in names]:
            data = pickle.dumps(content, protocol=4)
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def serve_cifar(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = cifar_archive()
    md5 = hashlib.md5(server.content).hexdigest()
    monkeypatch.setitem(module.ARCHIVES, "cifar10", Archive(url=server.url, md5=md5, inside="cifar-10-batches-py"))


def test_a_set_is_downloaded_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_cifar(server, monkeypatch)
    assert len(open_source("cifar10", cache=tmp_path)) == 10
    assert len(open_source("cifar10", "val", cache=tmp_path)) == 2 and server.starts == [0]
    assert not list(tmp_path.rglob("*.tar.gz")) and not list(tmp_path.rglob("*.part"))


def test_two_processes_download_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_cifar(server, monkeypatch)
    threads = [threading.Thread(target=fetch_set, args=("cifar10", tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.starts == [0] and (tmp_path / "cifar10").is_dir()


def test_a_failure_names_the_two_ways_on(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_cifar(server, monkeypatch)
    server.breaks = [100, 0]
    with pytest.raises(UserError) as caught:
        open_source("cifar10", cache=tmp_path)
    line = str(caught.value)
    assert (
        "\n" not in line and "--data cifar10:FOLDER" in line and "--data shapes" in line and "0.0 MB are kept" in line
    )
    assert len(open_source("cifar10", cache=tmp_path)) == 10 and server.starts[-1] == 100


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"file/downloads: cannot be written .*PENSTOCK_CACHE=FOLDER"):
        open_source("cifar10", cache=tmp_path / "file")


def test_unpacking_leaves_nothing_half_done(tmp_path: Path) -> None:
    archive = tmp_path / "set.tar.gz"
    archive.write_bytes(cifar_archive()[:-3000])
    with pytest.raises(EOFError):
        unpack(archive, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    archive.write_bytes(cifar_archive())
    unpack(archive, tmp_path / "set")
    assert len(list((tmp_path / "set" / "cifar-10-batches-py").iterdir())) == 7
