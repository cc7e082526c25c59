"""What others feed a two-view training loop with, each written as its users write it: rows of the throughput benchmark.

Every peer makes the same list of operations out of a recipe, as far as its package goes; where it differs, its note
says so. Each decodes an image once for all views, shuffles, drops the last batch, and runs with the number of workers
at which it is fastest on the machine. The ffcv package is a peer, too; it lies in `loaders/ffcv_package.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from penstock.augment import Recipe
from penstock.benchmarks.augment_rivals import Lacks
from penstock.benchmarks.peers.peer import Peer
from penstock.errors import MissingExtra, UserError
from penstock.loaders import LOADERS, Source


@dataclass(frozen=True, kw_only=True)
class PeerInfo:
    """What a peer is, reads and needs.

    Attributes:
        storages: what it is measured on; a row each.
        note: where it does another thing than the baseline.
        module, extra: the package that it imports, and our extra that brings it; None where torchvision is enough.
        processes: whether its workers are DataLoader's, which hand over their batches in bursts.
        ready: at most so many batches lie ready while it waits, where its workers are threads.
        tuned: whether it is worth to try other numbers of workers than there are CPUs.
    """

    storages: tuple[str, ...] = ("files",)
    note: str
    module: str | None = None
    extra: str = "peers"
    processes: bool = False
    ready: int = 4
    tuned: bool = True


PEERS: dict[str, PeerInfo] = {
    "torchvision-v2": PeerInfo(
        note="torchvision's decode_image and its v2 transforms on uint8 tensors in a DataLoader", processes=True
    ),
    "albumentations": PeerInfo(
        note="cv2.imread and Albumentations in a DataLoader; its crop does not antialias",
        module="albumentations",
        extra="albumentations",
        processes=True,
    ),
    "webdataset": PeerInfo(
        storages=("webdataset",),
        note="the webdataset package in its WebLoader: PIL, torchvision's transforms; draws samples with replacement",
        module="webdataset",
        processes=True,
    ),
    "spdl": PeerInfo(
        note="SPDL decodes (FFmpeg) and Albumentations augments in its threads; the crop does not antialias",
        module="spdl.io",
        ready=12,  # seen: each stage of its pipeline has a queue
    ),
    "dali-native": PeerInfo(
        note="DALI's reader, decoder and operators in one graph; its jitter has one order, its hue is another function",
        module="nvidia.dali",
        extra=LOADERS["dali"].extra or "",
    ),
    "ffcv-package": PeerInfo(
        storages=("jpeg", "raw"),
        note="no grey, no blur, no hue: it lacks them; decodes once for each view, by the fast DCT",
        module="ffcv",
        extra="ffcv",
        ready=6,
        tuned=False,  # compiled code in as many threads as there are CPUs; each number costs half a minute of compiling
    ),
}


def missing(name: str) -> str | None:
    """None where the peer can run here, else one line that names the extra to install."""
    info = PEERS[name]
    try:
        found = info.module is None or find_spec(info.module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is absent
        found = False
    return None if found else str(MissingExtra(f"{name}'s package {info.module}", info.extra))


def make_peer(name: str, source: Source, recipe: Recipe, *, batch: int, workers: int) -> Peer:
    """A peer's loader. Raises UserError where its package lacks an operation of the recipe."""
    try:
        return peer_class(name)(source, recipe, batch=batch, workers=workers)
    except Lacks as lacking:
        raise UserError(f"{lacking}: no row for {name} with this recipe") from lacking


def peer_class(name: str) -> type[Peer]:
    """Import a peer only when it is asked for: its file imports its package."""
    match name:
        case "torchvision-v2":
            from penstock.benchmarks.peers.torchvision_v2 import TorchvisionV2

            return TorchvisionV2
        case "albumentations":
            from penstock.benchmarks.peers.albumentations import AlbumentationsInDataLoader

            return AlbumentationsInDataLoader
        case "webdataset":
            from penstock.benchmarks.peers.webdataset import WebDatasetPackage

            return WebDatasetPackage
        case "spdl":
            from penstock.benchmarks.peers.spdl import SPDL

            return SPDL
        case "dali-native":
            from penstock.benchmarks.peers.dali_native import DALINative

            return DALINative
    raise ValueError(name)
