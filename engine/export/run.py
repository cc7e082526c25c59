"""Export a trained backbone for other programs, with a model card.

    python engine/export/run.py runs/NAME                            # every format that can hold the network
    python engine/export/run.py runs/NAME/best.pt --to torchvision timm
    python engine/export/run.py moco_v2_800ep_pretrain.pth.tar --arch resnet50 --to detectron2

    OUT/backbone-torchvision.safetensors   torchvision's names; also for engine/train.py --init
    OUT/backbone-timm.safetensors          timm's
    OUT/backbone-detectron2.pkl            detectron2's ResNet, for its DetectionCheckpointer
    OUT/backbone.onnx                      a graph that needs none of our code
    OUT/README.md                          the model card: what it is, how good, how each file is loaded

Each file is read back as its users will, and must give the checkpoint's features, or it is not left there. It holds the
network that is trained (MoCo's query encoder) without its projection head, in float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tyro.conf import Positional

from penstock.augment.recipe import IMAGENET_MEAN, IMAGENET_STD
from penstock.engine.backbones import choose_stem
from penstock.engine.evaluate.trained import Said, load_trained
from penstock.engine.export.card import Origin, about, card, origin_of
from penstock.engine.export.detectron2 import DETECTRON2
from penstock.engine.export.format import Features, Format, Network
from penstock.engine.export.onnx import ONNX
from penstock.engine.export.state_dicts import TIMM, TORCHVISION
from penstock.errors import MissingExtra, UserError, run_command
from penstock.files import write_whole
from penstock.options import read_options

FORMATS = {"torchvision": TORCHVISION, "timm": TIMM, "detectron2": DETECTRON2, "onnx": ONNX}
ROUNDING = 1e-4  # of the largest feature: float32, summed in another order

Probes = list[tuple[torch.Tensor, torch.Tensor]]  # images [N, 3, H, W] and their features [N, D]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is exported, and to where."""

    checkpoint: Positional[Path]
    """A run's folder, a checkpoint in it, or weights of torchvision, timm or the MoCo authors (with --arch)."""
    to: tuple[str, ...] = ()
    """Formats: torchvision, timm, detectron2, onnx; default: all that can hold the network."""
    out: Path | None = None
    """Where files go; default: the folder `export` beside the checkpoint."""
    arch: str | None = None
    """Network of weights from elsewhere: a name of torchvision's, or timm:NAME. A checkpoint knows its own."""
    width: int | None = None
    """Channels of its first stage; default: 64."""
    stem: str | None = None
    """Its stem: imagenet (default), half or cifar."""


def main(arguments: list[str] | None = None) -> int:
    config = read_options(Config, __doc__, arguments)
    check_names(config.to)
    said = Said(arch=config.arch, width=config.width, stem=config.stem)
    trained = load_trained(config.checkpoint, said, torch.device("cpu"))
    file = config.checkpoint / "last.pt" if config.checkpoint.is_dir() else config.checkpoint
    origin = origin_of(file, trained)
    network = network_of(origin, said)
    names, left_out = choose(config.to, network)
    formats, probes = [FORMATS[name] for name in names], probes_of(network)
    out = make_folder(config.out or file.parent / "export")
    print(trained.about)
    for form in formats:
        apart, path = export(form, network, probes, out), out / form.file
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; read back, {said_of(apart)}", flush=True)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    text = card(network, origin, formats)
    write_whole(out / "README.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(f"model card: {out / 'README.md'}")
    return 0


def check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in FORMATS:
            raise UserError(f"--to {name!r} is not known: choose from {', '.join(FORMATS)}")


def network_of(origin: Origin, said: Said) -> Network:
    """The backbone and what is known of it. Weights from elsewhere are taken to be for 224 px and ImageNet's pixels."""
    run, recipe = origin.run, origin.trained.recipe
    size = run.size if run else 224
    built: dict[str, Any] = {
        "arch": run.arch if run else said.arch,
        "width": run.width if run else said.width or 64,
        "stem": choose_stem(run.stem if run else said.stem or "imagenet", size),
    }
    return Network(
        backbone=origin.trained.encoder.backbone,
        size=size,
        mean=recipe.mean if recipe else IMAGENET_MEAN,
        std=recipe.std if recipe else IMAGENET_STD,
        about=about(origin, **built),
        **built,
    )


def choose(asked: Sequence[str], network: Network) -> tuple[list[str], dict[str, str]]:
    """The formats to write, and why the others are left out.

    Raises:
        UserError: one was asked for that cannot hold the network.
        MissingExtra: one was asked for that takes a package that is not here.
    """
    reasons = {name: reason for name, form in FORMATS.items() if (reason := form.refusal(network))}
    able = [name for name in FORMATS if name not in reasons]
    for name in asked:
        if name in reasons:
            raise UserError(f"--to {name}: {reasons[name]}; it can be exported with --to {' '.join(able)}")
        FORMATS[name].require()
    if asked:
        return list(dict.fromkeys(asked)), {}
    for name in able:
        try:
            FORMATS[name].require()
        except MissingExtra as missing:
            reasons[name] = str(missing)
    return [name for name in able if name not in reasons], reasons


def make_folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}): choose another --out") from None
    return out


def export(form: Format, network: Network, probes: Probes, out: Path) -> float:
    """Write a file, and put it in place if what is read from it gives the network's features.

    Returns:
        The largest difference between two features, as a share of the largest feature.

    Raises:
        UserError: they differ by more than rounding, or it cannot be written.
    """
    apart = torch.nan

    def write_and_compare(path: Path) -> None:
        nonlocal apart
        form.write(network, path)
        apart = difference(form.read(network, path), probes)
        if not apart <= ROUNDING:  # nor if it is no number
            path.unlink()
            raise UserError(
                f"{out / form.file}: not kept: read back, {said_of(apart)}, and rounding makes {ROUNDING:g}; leave"
                f" {form.about} out with --to, and report it with what `penstock doctor` says"
            )

    write_whole(out / form.file, write_and_compare)
    return apart


@torch.inference_mode()
def probes_of(network: Network) -> Probes:
    """Two batches of noise and their features; of two sizes where the network takes any.

    Raises:
        UserError: its features are no numbers.
    """
    noise, side = torch.Generator().manual_seed(0), network.size
    second = (3, 3, side + 32, side + 64) if network.is_resnet else (3, 3, side, side)
    batches = [torch.randn(shape, generator=noise) for shape in ((2, 3, side, side), second)]
    probes = [(images, network.backbone(images)) for images in batches]
    if not all(features.isfinite().all() for _, features in probes):
        raise UserError("the network's features are not finite numbers: take an earlier checkpoint of the run")
    return probes


@torch.inference_mode()
def difference(theirs: Features, probes: Probes) -> float:
    """The largest between two features of the same image, as a share of the batch's largest feature."""
    shares = [(theirs(images) - features).abs().max() / features.abs().max() for images, features in probes]
    return torch.stack(shares).max().item()  # a NaN stays one


def said_of(apart: float) -> str:
    return f"its features differ by {apart:.1g} of the largest" if apart else "its features are the same"


if __name__ == "__main__":
    run_command(main)
