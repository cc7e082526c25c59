"""Backbones: torchvision's networks and timm's, without their classifier, and ResNets of any width with a small stem.

>>> backbone, features = build_backbone("resnet18", width=16, stem="cifar", size=32)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision
from torch import nn

from penstock.errors import MissingExtra, UserError


@dataclass(frozen=True, kw_only=True)
class Stem:
    """What a ResNet does to the image before its first block."""

    kernel: int
    stride: int
    max_pool: bool


STEMS = {
    "imagenet": Stem(kernel=7, stride=2, max_pool=True),
    "half": Stem(kernel=3, stride=2, max_pool=False),  # for 64 to 128 px: the first block sees half the resolution
    "cifar": Stem(kernel=3, stride=1, max_pool=False),  # as the MoCo authors' CIFAR-10 demo
}


def choose_stem(stem: str, size: int) -> str:
    """The stem for views of `size` pixels, where `auto` was asked for: 32-px views would leave ImageNet's as 8×8."""
    return stem if stem != "auto" else "cifar" if size <= 64 else "imagenet"


def takes_width(arch: str) -> bool:
    """Whether an architecture is one of torchvision's ResNets, which are built at any width."""
    return arch.startswith(("resnet", "resnext", "wide_resnet"))


class ScaledResNet(torchvision.models.ResNet):
    """torchvision's ResNet with stages of width, 2·width, 4·width and 8·width channels, and a stem of its own.

    Parameters keep torchvision's names, so at width 64 with the `imagenet` stem its weights load.
    """

    def __init__(self, template: torchvision.models.ResNet, *, width: int, stem: Stem) -> None:
        self.width = width  # read by _make_layer, which the next line calls
        stages = (template.layer1, template.layer2, template.layer3, template.layer4)
        super().__init__(
            type(template.layer1[0]),
            [len(stage) for stage in stages],
            groups=template.groups,
            width_per_group=template.base_width,
        )
        self.conv1 = nn.Conv2d(3, width, stem.kernel, stem.stride, stem.kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(template.fc.in_features * width // 64, 1)
        if not stem.max_pool:
            self.maxpool = nn.Identity()

    def _make_layer(
        self, block: type, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        if planes == 64:  # the first stage: torchvision set out with a stem of 64 channels
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, blocks, stride, dilate)


def build_backbone(arch: str, *, width: int = 64, stem: str = "auto", size: int = 224) -> tuple[nn.Module, int]:
    """A network [N, 3, S, S] -> [N, features], freshly initialised, and its number of features.

    Args:
        arch: a name of torchvision's (`resnet18`, `convnext_tiny`, …) or `timm:NAME`.
        width: channels of a ResNet's first stage; 64 is the published network.
        stem: a name in STEMS, or `auto`; for ResNets.
        size: side of the views, which decides `auto`, and which the network is tried on.

    Raises:
        UserError: unknown name, a width or stem asked of a network that is no ResNet, or views that it cannot take.
        MissingExtra: a timm name where timm is not installed.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if arch.startswith("timm:"):
        _only_resnets(arch, width, stem)
        backbone = _timm_backbone(arch.removeprefix("timm:"))
    elif arch not in names:
        raise UserError(
            f"--arch {arch!r} is not known: torchvision has {_resembling(arch, names)}; timm's are timm:NAME"
        )
    elif takes_width(arch):
        backbone = _resnet(arch, width, choose_stem(stem, size))
    else:
        _only_resnets(arch, width, stem)
        backbone = _torchvision_backbone(arch)
    return backbone, count_features(backbone, arch, size)


@torch.no_grad()
def count_features(backbone: nn.Module, arch: str, size: int) -> int:
    """How many features a network makes of a view of `size` pixels.

    Raises:
        UserError: it cannot take such a view: many are built for one size, or for a least one.
    """
    device = next(backbone.parameters()).device
    was_training = backbone.training
    try:
        features: torch.Tensor = backbone.eval()(torch.zeros(1, 3, size, size, device=device))
    except Exception as error:  # each network says it in its own way
        reason = str(error).strip().partition("\n")[0].rstrip(".!")
        raise UserError(
            f"--arch {arch} cannot take views of {size} px ({reason}): choose views of another size, or another --arch"
        ) from None
    finally:
        backbone.train(was_training)
    return features.shape[1]


def _only_resnets(arch: str, width: int, stem: str) -> None:
    if width != 64 or stem != "auto":
        raise UserError(f"--arch {arch} has no --width or --stem: they are for torchvision's ResNets; leave them out")


def _resembling(arch: str, names: list[str]) -> str:
    family = [name for name in names if name[:3] == arch[:3]] or ["resnet18", "resnet50", "convnext_tiny", "vit_b_16"]
    return ", ".join(family[:8])


def _timm_backbone(name: str) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise MissingExtra("timm", "timm") from None
    if not timm.is_model(name):
        known = ", ".join(timm.list_models(f"{name[:6]}*")[:8]) or "resnet18, convnext_atto, vit_tiny_patch16_224, …"
        raise UserError(f"--arch timm:{name} is not known: timm has {known}")
    return timm.create_model(name, num_classes=0)


def _resnet(arch: str, width: int, stem: str) -> nn.Module:
    if width < 8 or width % 8:
        raise UserError(f"--width {width}: a ResNet's width is a multiple of 8; the published networks have 64")
    with torch.device("meta"):  # only its shape is of interest
        template = torchvision.models.get_model(arch, weights=None)
    return _without_classifier(ScaledResNet(template, width=width, stem=STEMS[stem]), arch)


def _torchvision_backbone(arch: str) -> nn.Module:
    # In training these two would also give what their auxiliary classifiers say.
    options = {"aux_logits": False, "init_weights": True} if arch in ("googlenet", "inception_v3") else {}
    return _without_classifier(torchvision.models.get_model(arch, weights=None, **options), arch)


def _without_classifier(network: nn.Module, arch: str) -> nn.Module:
    """Put the identity in the place of the last linear layer, which in torchvision's networks is the classifier."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"--arch {arch} has no linear classifier, below which its features would lie: choose another")
    parent, _, attribute = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return network
