"""Projection heads and predictors against what the papers describe, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from penstock.engine.methods.heads import NORMS, build_head


def described(head: nn.Sequential) -> str:
    words = {nn.Linear: "linear", nn.BatchNorm1d: "bn", nn.ReLU: "relu"}
    return " ".join(
        f"{layer.in_features}-{layer.out_features}{'' if layer.bias is None else '+b'}"
        if isinstance(layer, nn.Linear)
        else words[type(layer)] + ("*" if getattr(layer, "affine", False) else "")
        for layer in head
    )


@pytest.mark.parametrize(
    ("head", "layers", "expected"),
    [
        ("linear", 1, "8-3+b"),
        ("mlp", 2, "8-6+b relu 6-3+b"),
        ("mlp-bn", 2, "8-6 bn* relu 6-3+b"),
        ("mlp-bn", 3, "8-6 bn* relu 6-6 bn* relu 6-3+b"),
        ("mlp-bn-all", 3, "8-6 bn* relu 6-6 bn* relu 6-3 bn"),
    ],
)
def test_heads_are_those_of_the_papers(head: str, layers: int, expected: str) -> None:
    built = build_head(8, layers=layers, hidden=6, dim=3, norm=NORMS[head])
    assert described(built) == expected
    assert built(torch.randn(4, 8)).shape == (4, 3)
