"""A MoCo step as it is usually written, from the papers, and what turns it into Penstock's, part by part.

Algorithm 1 of He et al. 2020 (arXiv 1911.05722), with the shuffled keys of its section 3.3; v2's head and temperature
(Chen et al. 2020, arXiv 2003.04297) come with the arguments. Views and weights are float32 in the usual layout (NCHW),
the key encoder follows parameter by parameter, the optimizer is torch's as it comes, and the loss and both accuracies
are read after each step, to be printed. Where BatchNorm treats parts of a batch apart, it does so in the form of the
authors' CIFAR-10 demo.

N images in a batch, C the embedding's dimensions, K keys in the queue, S the views' side.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.meters import Meter
from penstock.engine.methods.momentum import Follower
from penstock.engine.precision import Precision
from penstock.engine.split_bn import SplitBatchNorm2d
from penstock.loaders import Views


class DemoSplitBatchNorm2d(SplitBatchNorm2d):
    """Ours with the parts of a batch side by side, as channels of one call: image i is in part i mod `splits`.

    Input [N, C, H, W] in the usual layout: no other can be seen so without a copy.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        means, variances = self.running_mean.repeat(self.splits), self.running_var.repeat(self.splits)
        weight, bias = self.weight.repeat(self.splits), self.bias.repeat(self.splits)  # [splits·C], like those above
        parts = x.view(-1, self.splits * x.shape[1], *x.shape[2:])  # [N / splits, splits·C, H, W]
        y = functional.batch_norm(parts, means, variances, weight, bias, True, self.momentum, self.eps)
        self.running_mean.copy_(means.view(self.splits, -1).mean(0))
        self.running_var.copy_(variances.view(self.splits, -1).mean(0))
        return y.view(x.shape)


def split_as_demo(network: nn.Module) -> nn.Module:
    """Give every split BatchNorm of a network the demo's form, in place; parameters stay the same objects."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SplitBatchNorm2d):
                demo = DemoSplitBatchNorm2d(
                    child.num_features, splits=child.splits, eps=child.eps, momentum=child.momentum
                ).to(child.weight.device)
                demo.load_state_dict(child.state_dict())
                demo.weight, demo.bias = child.weight, child.bias
                setattr(parent, name, demo)
    return network


class OfficialStep:
    """The usual step.

    Args:
        encoder: f_q, on its device; f_k starts as a copy.
        optimizer: of f_q.
        queue: [C, K], the first keys, normalised.
        momentum, temperature: m and t.
    """

    layout = torch.contiguous_format

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        queue: torch.Tensor,
        momentum: float,
        temperature: float,
    ) -> None:
        self.f_q, self.f_k = encoder, copy.deepcopy(encoder)
        for parameter in self.f_k.parameters():
            parameter.requires_grad = False
        self.optimizer, self.criterion = optimizer, nn.CrossEntropyLoss()
        self.queue, self.pointer = queue, 0
        self.m, self.t = momentum, temperature
        self.steps = 0
        self.sums = {"loss": 0.0, "top-1": 0.0, "top-5": 0.0}

    def __call__(self, views: Views) -> torch.Tensor:
        """Take a step on two views of each image; returns the loss."""
        # No copies, except of what torchvision's views are on a GPU: channels-last, in its memory.
        x_q, x_k = (view.contiguous(memory_format=self.layout) for view in views.split())  # [N, 3, S, S]
        loss, logits, k = self.forward(x_q, x_k)
        self.update(loss)
        self.follow()
        self.enqueue(k)
        self.read(loss, logits)
        self.steps += 1
        return loss.detach()

    def forward(self, x_q: torch.Tensor, x_k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss, the logits [N, 1 + K] whose first column is the right one, and the keys [N, C]."""
        q = functional.normalize(self.f_q(x_q), dim=1)  # [N, C]
        with torch.no_grad():
            shuffled = torch.randperm(len(x_k), device=x_k.device)
            k = functional.normalize(self.f_k(x_k[shuffled]), dim=1)[shuffled.argsort()]  # [N, C]
        positive = torch.bmm(q.unsqueeze(1), k.unsqueeze(2)).squeeze(2)  # [N, 1]
        negative = torch.mm(q, self.queue)  # [N, K]
        logits = torch.cat([positive, negative], dim=1) / self.t
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return self.criterion(logits, labels), logits, k

    def update(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
            slow.data = slow.data * self.m + fast.data * (1.0 - self.m)

    def enqueue(self, k: torch.Tensor) -> None:
        """Replace the oldest keys; K is a multiple of N."""
        self.queue[:, self.pointer : self.pointer + len(k)] = k.T
        self.pointer = (self.pointer + len(k)) % self.queue.shape[1]

    def read(self, loss: torch.Tensor, logits: torch.Tensor) -> None:
        """Add to what the script prints. The host waits for the device here."""
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == 0  # [N, 5]
        self.sums["loss"] += loss.item()
        self.sums["top-1"] += right[:, 0].float().mean().item()
        self.sums["top-5"] += right.any(1).float().mean().item()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What separates the usual step from Penstock's, in the order in which the benchmark's table adds it.

    Attributes:
        channels_last: views and weights with channels innermost (NHWC), and split BatchNorm in the form for that.
        autocast: the networks compute in the precision that `--amp auto` takes here.
        fused: the optimizer in one kernel.
        foreach: the key encoder follows in one call.
        late: the loss and accuracy stay on the device, to be read once for many steps.
    """

    channels_last: bool = False
    autocast: bool = False
    fused: bool = False
    foreach: bool = False
    late: bool = False


class PartStep(OfficialStep):
    """The usual step with some of what makes Penstock's faster; the optimizer and the encoder come as `parts` say."""

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        parts: Parts,
        precision: Precision,
        queue: torch.Tensor,
        momentum: float,
        temperature: float,
    ) -> None:
        super().__init__(encoder, optimizer, queue=queue, momentum=momentum, temperature=temperature)
        self.parts, self.precision, self.scaler = parts, precision, precision.scaler()
        self.layout = torch.channels_last if parts.channels_last else torch.contiguous_format
        self.follower = Follower(self.f_k, self.f_q)
        self.meter = Meter(("loss", "accuracy"), queue.device)

    def forward(self, x_q: torch.Tensor, x_k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with self.precision.autocast():
            return super().forward(x_q, x_k)

    def update(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def follow(self) -> None:
        if self.parts.foreach:
            self.follower.follow(self.m)
        else:
            super().follow()

    def read(self, loss: torch.Tensor, logits: torch.Tensor) -> None:
        if self.parts.late:
            self.meter.add(loss, {"accuracy": (logits.argmax(1) == 0).float().mean()})
        else:
            super().read(loss, logits)
