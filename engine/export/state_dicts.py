"""State dicts of torchvision and of timm, as safetensors: names and shapes are theirs, the classifier is left out.

A ResNet with a small stem is theirs too, once two of its layers are replaced; `usage` says how.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save
from torch import nn

from penstock.engine.backbones import STEMS, Stem
from penstock.engine.export.format import Features, Format, Network, other_width
from penstock.errors import MissingExtra

TORCHVISION_FILE, TIMM_FILE = "backbone-torchvision.safetensors", "backbone-timm.safetensors"


def write(network: Network, path: Path) -> None:
    path.write_bytes(save(network.state(), {"format": "pt", **network.facts()}))


def refused_by_torchvision(network: Network) -> str | None:
    if network.is_resnet:
        return other_width(network, "torchvision's")
    return f"this is timm's {network.name}, which torchvision does not build alike" if network.is_timm_s else None


def refused_by_timm(network: Network) -> str | None:
    if network.is_resnet:
        return other_width(network, "timm's")
    return None if network.is_timm_s else f"this is torchvision's {network.name}, which timm does not build alike"


def require_timm() -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        raise MissingExtra("timm", "timm") from None


def read_torchvision(network: Network, path: Path) -> Features:
    theirs: nn.Module = torchvision.models.get_model(network.name, weights=None)
    theirs.set_submodule(classifier_of(theirs), nn.Identity())
    return _filled(theirs, network, path)


def read_timm(network: Network, path: Path) -> Features:
    import timm

    return _filled(timm.create_model(network.name, num_classes=0), network, path)


def classifier_of(network: nn.Module) -> str:
    """The name of the last linear layer, which in torchvision's networks is the classifier."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def _filled(theirs: nn.Module, network: Network, path: Path) -> nn.Module:
    """A published network with this one's stem and the file's weights."""
    if stem := small_stem(network):
        theirs.conv1 = nn.Conv2d(3, 64, stem.kernel, stem.stride, stem.kernel // 2, bias=False)
        theirs.maxpool = nn.Identity()
    theirs.load_state_dict(load_file(path))
    return theirs.eval()


def small_stem(network: Network) -> Stem | None:
    """The stem to give to a published ResNet, if it is not its own."""
    return STEMS[network.stem] if network.is_resnet and network.stem != "imagenet" else None


def usage_of_torchvision(network: Network) -> str:
    with torch.device("meta"):
        classifier = classifier_of(torchvision.models.get_model(network.name, weights=None))
    place = re.sub(r"\.(\d+)", r"[\1]", classifier)  # classifier.2 is typed classifier[2]
    build = [f"network = torchvision.models.{network.name}()", f"network.{place} = torch.nn.Identity()"]
    return _usage(network, TORCHVISION_FILE, ["import torch", "import torchvision"], build)


def usage_of_timm(network: Network) -> str:
    imports = ["import timm", *(["import torch"] if small_stem(network) else [])]
    return _usage(network, TIMM_FILE, imports, [f'network = timm.create_model("{network.name}", num_classes=0)'])


def _usage(network: Network, file: str, imports: list[str], build: list[str]) -> str:
    lines = [*imports, "from safetensors.torch import load_file", "", *build]
    if stem := small_stem(network):
        kernel = f"3, 64, {stem.kernel}, stride={stem.stride}, padding={stem.kernel // 2}, bias=False"
        lines += [f"network.conv1 = torch.nn.Conv2d({kernel})", "network.maxpool = torch.nn.Identity()"]
    lines += [f'network.load_state_dict(load_file("{file}"))', "network.eval()"]
    return "\n".join(["```python", *lines, "```"])


TORCHVISION = Format(
    file=TORCHVISION_FILE,
    about="torchvision's state dict",
    refusal=refused_by_torchvision,
    require=lambda: None,
    write=write,
    read=read_torchvision,
    usage=usage_of_torchvision,
)
TIMM = Format(
    file=TIMM_FILE,
    about="timm's state dict",
    refusal=refused_by_timm,
    require=require_timm,
    write=write,
    read=read_timm,
    usage=usage_of_timm,
)
