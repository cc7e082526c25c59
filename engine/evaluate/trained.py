"""A trained network as evaluation takes it: a checkpoint of ours, or weights of torchvision, timm or the MoCo authors.

>>> load_trained(Path("runs/NAME"), Said(), device).about
'resnet18 of width 16, imagenet stem: moco-v2 on shapes, 40 epochs'
>>> load_trained(Path("moco_v2_800ep_pretrain.pth.tar"), Said(arch="resnet50"), device).about
'resnet50 of width 64, imagenet stem: weights in moco_v2_800ep_pretrain.pth.tar'
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from penstock.augment import Recipe, load_recipe
from penstock.augment.recipes import parse_recipe
from penstock.engine.backbones import build_backbone, choose_stem, takes_width
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.config import CompleteConfig, flag, from_dict
from penstock.engine.defaults import METHODS, complete
from penstock.engine.method import Encoder
from penstock.engine.methods import build_encoder
from penstock.engine.weights import load_weights
from penstock.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the user says of a network: needed for weights that do not tell, held against a checkpoint that does."""

    arch: str | None = None
    width: int | None = None
    stem: str | None = None
    method: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network, and what is known of how it came to be.

    Attributes:
        encoder: in evaluation mode. Weights from elsewhere have no head: the identity stands there.
        build: makes the same network anew, freshly initialised: with the weights that a run's training began with,
            if that was without --init.
        run: the settings of the run that trained it; None for weights from elsewhere.
        recipe: the views it was trained on; None for weights from elsewhere.
        about: one line.
    """

    encoder: Encoder
    build: Callable[[], Encoder]
    run: CompleteConfig | None = None
    recipe: Recipe | None = None
    about: str


def load_trained(path: Path, said: Said, device: torch.device, *, size: int | None = None) -> Trained:
    """The network in a file, or in the `last.pt` of a run's folder.

    Args:
        size: side of the views that it will see, for networks that are built for one; None: the checkpoint's, or 224.

    Raises:
        UserError: no such file, nothing of the kind in it, or a network other than the one that was said.
    """
    file = path / "last.pt" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UserError(f"{path}: this folder is no run's, which would have a last.pt: name a run's folder, or a file")
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; name a run's folder, its last.pt, or a file of weights")
    try:
        state = load_checkpoint(file)
    except UserError:
        if said.arch is None:
            raise UserError(
                f"{file}: this is no checkpoint of a run; if it holds weights from elsewhere (torchvision, timm, MoCo),"
                " say of which network: --arch resnet50"
            ) from None
        return _from_elsewhere(file, said, device, size or 224)
    return _of_a_run(file, state, said, device)


def _of_a_run(file: Path, state: dict[str, Any], said: Said, device: torch.device) -> Trained:
    if "method" not in state or "config" not in state:
        raise UserError(f"{file}: this is no checkpoint of a pre-training run: name a run's folder, or its last.pt")
    run = _settings(file, state)
    _hold(file, run, said)

    def build() -> Encoder:
        return build_encoder(replace(run, init=None), device).eval()

    prefix = "encoder."
    found = {name.removeprefix(prefix): x for name, x in state["method"].items() if name.startswith(prefix)}
    recipe = parse_recipe(yaml.safe_load(state["recipe"])) if "recipe" in state else load_recipe(run.recipe)
    network, epoch = describe(run.arch, run.width, run.stem), state["position"]["epoch"]
    return Trained(
        encoder=_fill(build(), found, file),
        build=build,
        run=run,
        recipe=recipe.resized(run.size),
        about=f"{network}: {run.method} on {run.data}, {epoch} epoch{'s' * (epoch != 1)}",
    )


def _settings(file: Path, state: dict[str, Any]) -> CompleteConfig:
    """The run's; what an older version's run had no setting for is filled in as it was then: by default.

    Raises:
        UserError: a method that this version does not have.
    """
    saved = from_dict(state["config"])
    if saved.method not in METHODS:
        raise UserError(
            f"{file} was trained with --method {saved.method}, which this version does not know: it has"
            f" {', '.join(METHODS)}; evaluate it with the version that trained it"
        )
    return complete(saved, source=f"{saved.data.partition(':')[0]}-train", length=state["samples"], world=1)


def _hold(file: Path, run: CompleteConfig, said: Said) -> None:
    """Raises UserError where the checkpoint is of another network or method than was said."""
    for field, told in vars(said).items():
        was = getattr(run, field)
        same = told == was or (field == "stem" and told is not None and choose_stem(told, run.size) == was)
        if told is not None and not same:
            raise UserError(
                f"{file} was trained with {flag(field)} {was}, not {told}: leave {flag(field)} out to evaluate it, or"
                " name another checkpoint"
            )


def _fill(encoder: Encoder, found: Mapping[str, torch.Tensor], file: Path) -> Encoder:
    """Put the checkpoint's tensors into the network that its settings describe.

    Raises:
        UserError: one is missing, of another shape, or has no place: settings and tensors are of two networks.
    """
    own = encoder.state_dict()
    wrong = [f"it has no {name}" for name in own if name not in found]
    wrong += [f"it holds {name}, which has no place there" for name in found if name not in own]
    wrong += [
        f"{name} is {list(found[name].shape)} in it and {list(x.shape)} there"
        for name, x in own.items()
        if name in found and found[name].shape != x.shape
    ]
    if wrong:
        raise UserError(
            f"{file}: its tensors are not of the network that its settings describe ({wrong[0]}): take another"
            " checkpoint of the run, or one that this version wrote"
        )
    encoder.load_state_dict(dict(found))
    return encoder


def _from_elsewhere(file: Path, said: Said, device: torch.device, size: int) -> Trained:
    arch = said.arch or ""
    if said.method is not None:
        raise UserError(f"{file} holds weights alone, so that --method {said.method} cannot be held: leave it out")
    resnet = takes_width(arch)
    width, stem = said.width or 64, said.stem or ("imagenet" if resnet else "auto")

    def build() -> Encoder:
        torch.manual_seed(0)
        backbone, _ = build_backbone(arch, width=width, stem=stem, size=size)
        return Encoder(backbone, nn.Identity()).to(device).to(memory_format=torch.channels_last).eval()

    encoder = build()
    try:
        load_weights(encoder.backbone, file, arch)
    except UserError as error:
        raise UserError(str(error).removeprefix("--init ")) from None  # it is called so in training
    return Trained(
        encoder=encoder, build=build, about=f"{describe(arch, width, choose_stem(stem, size))}: weights in {file.name}"
    )


def describe(arch: str, width: int, stem: str) -> str:
    return f"{arch} of width {width}, {stem} stem" if takes_width(arch) else arch


def digest(network: nn.Module) -> str:
    """Of all parameters and buffers, whatever their device and memory format."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        dense = tensor.detach().cpu().contiguous().flatten()
        found.update(name.encode() + dense.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
