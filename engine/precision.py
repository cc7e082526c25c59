"""Which numbers the networks compute in.

Measured on 2 cores of a Xeon with AMX, ResNet-18 and ResNet-50, channels-last: bf16 takes 0.4 to 0.6 of fp32's time
a step with AMX, and 1.2 to 1.3 of it with AVX-512's bf16 instructions alone. So on a CPU `auto` looks for AMX only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from penstock.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The type that autocast computes in on a device; None where it is off."""

    device: torch.device
    dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16 gradients from vanishing; passes everything through in other types."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        return "fp32" if self.dtype is None else str(self.dtype).removeprefix("torch.")


def choose_precision(amp: str, device: torch.device) -> Precision:
    """The precision for `--amp` auto, off, bf16 or fp16.

    Raises:
        UserError: fp16 on a CPU.
    """
    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU: use --amp auto, which takes bf16 where the CPU is fast at it")
    if amp == "auto":
        amp = _fastest(device)
    return Precision(device=device, dtype={"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    # The function is new in torch; an older one trains in fp32.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") else "off"


def check_precision(precision: Precision, amp: str, backbone: nn.Module, size: int) -> Precision:
    """The precision, or fp32 where `--amp auto` would run into a fault of torch's on CPUs.

    In bf16 with AMX, a convolution with a stride and a kernel of more than a pixel whose input is a single pixel gets
    gradients of whatever lies in memory (seen in torch 2.15, at the last stage of a ResNet with ImageNet's stem for
    views of 16 pixels).

    Args:
        size: side of the smallest views, pixels.

    Raises:
        UserError: `--amp bf16` for such a network and such views.
    """
    if precision.device.type != "cpu" or precision.dtype is None or not strides_over_a_pixel(backbone, size):
        return precision
    if amp != "auto":
        raise UserError(
            f"--amp {amp}: on a CPU, bf16 gives wrong gradients where views of {size} px shrink to a pixel before the"
            " last stage: use --amp off, a --stem for small views, or a larger --size"
        )
    return Precision(device=precision.device, dtype=None)


@torch.no_grad()
def strides_over_a_pixel(backbone: nn.Module, size: int) -> bool:
    """Whether an image of `size` pixels has shrunk to one before a convolution with a stride and a larger kernel."""
    found = []

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0].shape[2:].numel() == 1)

    strided = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1 < max(m.kernel_size)]
    hooks = [layer.register_forward_pre_hook(look) for layer in strided]
    was_training = backbone.training
    try:
        backbone.eval()(torch.zeros(1, 3, size, size))
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
    return any(found)
