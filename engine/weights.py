"""`--init`: start a backbone from weights of another run, of torchvision, timm or the MoCo authors' code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.engine.checkpoint import read_torch
from penstock.errors import UserError

WRAPPERS = re.compile(r"^(module\.|encoder_q\.|encoder\.|backbone\.|base_encoder\.)+")  # of DDP, ours, MoCo v1 to v3
OTHER_NETWORK = ("key_encoder.", "module.encoder_k.", "encoder_k.", "momentum_encoder.", "module.momentum_encoder.")


def load_weights(backbone: nn.Module, path: Path, arch: str) -> None:
    """Copy the weights in a file into a backbone; a head or classifier that the file also holds is left out.

    Raises:
        UserError: no such file, not a file of weights, or weights of another architecture.
    """
    found = {
        WRAPPERS.sub("", name): tensor
        for name, tensor in _read(path).items()
        if isinstance(tensor, torch.Tensor) and not name.startswith(OTHER_NETWORK)
    }
    if found.keys() == {"weight", "bias"}:
        raise UserError(f"--init {path} holds a linear layer alone, no backbone: name the run that it was trained on")
    for name, own in backbone.state_dict().items():
        if name not in found:
            if name.endswith("num_batches_tracked"):  # older files lack it, and nothing reads it
                found[name] = own
                continue
            raise UserError(
                f"--init {path} is not of --arch {arch}: it has no {name}; choose the --arch it was trained with"
            )
        if found[name].shape != own.shape:
            raise UserError(
                f"--init {path} is not of this {arch}: {name} is {list(found[name].shape)} there and {list(own.shape)}"
                " here; choose the --arch, --width and --stem it was trained with"
            )
    backbone.load_state_dict({name: found[name] for name in backbone.state_dict()})


def _read(path: Path) -> dict[str, Any]:
    path = path / "last.pt" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"--init {path}: there is no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"--init {path}: not a readable safetensors file ({error})") from None
    state = read_torch(path, otherwise=f"--init {path}: not a readable file of weights")
    if not isinstance(state, dict):
        raise UserError(f"--init {path}: holds a {type(state).__name__}, not named weights")
    for nested in ("method", "network", "state_dict", "model"):  # ours; the MoCo authors' and most others'; timm's
        if isinstance(state.get(nested), dict):
            return state[nested]
    return state
