"""ONNX: the network as a graph that needs none of our code, for any number of images; ResNets' may be of any size."""

from __future__ import annotations

from pathlib import Path

import torch

from penstock.engine.export.format import Features, Format, Network
from penstock.errors import MissingExtra

FILE = "backbone.onnx"
LARGEST = 2**31  # bytes that one file of ONNX's may have
TRACED = 96  # side of the images that any size is traced with: features of a single pixel would be traced as such


def refusal(network: Network) -> str | None:
    size = sum(tensor.nbytes for tensor in network.backbone.state_dict().values())
    return f"{network.name} has {size / 1e9:.1f} GB, and a file of ONNX's ends at 2.1" if size > LARGEST else None


def require() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "onnx", "export") from None


def write(network: Network, path: Path) -> None:
    side, free = (TRACED, {2: "height", 3: "width"}) if network.is_resnet else (network.size, {})
    program = torch.onnx.export(
        network.backbone, (torch.zeros(2, 3, side, side),), input_names=["images"], output_names=["features"],
        dynamic_shapes=({0: "batch", **free},), dynamo=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(network.facts())
    program.save(path, external_data=False)


def read(network: Network, path: Path) -> Features:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


def usage(network: Network) -> str:
    side = network.size
    sizes = "any number of images of any size" if network.is_resnet else f"any number of images of {side} × {side}"
    lines = [
        "import numpy, onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{FILE}")',
        f"images = numpy.zeros((4, 3, {side}, {side}), numpy.float32)  # {sizes}",
        '(features,) = session.run(["features"], {"images": images})',
    ]
    return "\n".join(["```python", *lines, "```"])


ONNX = Format(
    file=FILE,
    about="ONNX",
    refusal=refusal,
    require=require,
    write=write,
    read=read,
    usage=usage,
)
