"""What is exported, and what a format is to the command.

N images, H and W their sides, S the side of the views in training, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

RESNETS = {  # torchvision's, which timm has by the same names and with the same tensors: their depth
    "resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152, "resnext50_32x4d": 50,
    "resnext101_32x8d": 101, "resnext101_64x4d": 101, "wide_resnet50_2": 50, "wide_resnet101_2": 101,
}  # fmt: skip

Features = Callable[[torch.Tensor], torch.Tensor]  # images [N, 3, H, W], normalised -> [N, D]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone, and what others must know to build it and to feed it.

    Attributes:
        backbone: [N, 3, S, S] -> [N, D], float32, on the CPU, in evaluation mode.
        arch: a name of torchvision's, or `timm:NAME`.
        width: channels of a ResNet's first stage.
        stem: a name in `backbones.STEMS`; of ResNets.
        size: S.
        mean, std: of each RGB channel, for pixels scaled to 0 … 1.
        about: what it is and how it was trained, by name; files carry it along.
    """

    backbone: nn.Module
    arch: str
    width: int
    stem: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: Mapping[str, str]

    @property
    def name(self) -> str:
        """The architecture's, as torchvision or timm calls it."""
        return self.arch.removeprefix("timm:")

    @property
    def is_timm_s(self) -> bool:
        """Whether it is timm's code."""
        return self.arch.startswith("timm:")

    @property
    def is_resnet(self) -> bool:
        """Whether it is one of torchvision's ResNets, which take images of any size."""
        return self.name in RESNETS

    def state(self) -> dict[str, torch.Tensor]:
        """Its tensors by their names, each in a memory of its own."""
        plain = torch.contiguous_format  # they are channels-last
        return {name: tensor.clone(memory_format=plain) for name, tensor in self.backbone.state_dict().items()}

    def facts(self) -> dict[str, str]:
        """What a file carries along with the weights."""
        mean, std = (" ".join(map(str, values)) for values in (self.mean, self.std))
        return {**self.about, "size": str(self.size), "mean": mean, "std": std}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A layout of weights.

    Attributes:
        file: what it is called in the folder.
        about: what it is, in a few words.
        refusal: why it cannot hold a network; None where it can.
        require: raises MissingExtra where a package is not installed that writing or reading it takes.
        write: into a file.
        read: a file as its users do, to what makes features; of the network it needs the architecture alone.
        usage: how it is loaded, as Markdown.
    """

    file: str
    about: str
    refusal: Callable[[Network], str | None]
    require: Callable[[], None]
    write: Callable[[Network, Path], None]
    read: Callable[[Network, Path], Features]
    usage: Callable[[Network], str]


def other_width(network: Network, whose: str) -> str | None:
    """Why someone's ResNet of the published width cannot be this one, if so."""
    if network.width == 64:
        return None
    return f"{whose} {network.name} has 64 channels in its first stage, and this one {network.width}"
