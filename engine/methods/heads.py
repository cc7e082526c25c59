"""Projection heads and predictors: one multilayer perceptron, in the variants that the papers have.

| head       | is                                                                | of                          |
|------------|-------------------------------------------------------------------|-----------------------------|
| linear     | one layer                                                         | MoCo v1                     |
| mlp        | hidden layers with ReLU                                           | MoCo v2, SimCLR             |
| mlp-bn     | BatchNorm in front of each ReLU                                   | BYOL, SwAV, Barlow Twins    |
| mlp-bn-all | and one, without scale and shift, behind the last layer           | SimSiam                     |

D features, C dimensions of the projection.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

NORMS = {"linear": "none", "mlp": "none", "mlp-bn": "hidden", "mlp-bn-all": "all"}
HEADS = tuple(NORMS)


def build_head(features: int, *, layers: int, hidden: int, dim: int, norm: str = "none") -> nn.Sequential:
    """`layers` linear layers [N, features] -> [N, hidden] -> … -> [N, dim] with ReLU in between.

    Args:
        norm: where BatchNorm is: `none`, `hidden` (after all layers but the last), or `all` (after the last, too,
            without scale and shift). A layer in front of one needs no bias, and has none.
    """
    widths = [features, *[hidden] * (layers - 1), dim]
    modules: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(pairwise(widths), start=1):
        last = number == layers
        normalised = norm == "all" or (norm == "hidden" and not last)
        modules.append(nn.Linear(wide, narrow, bias=not normalised))
        if normalised:
            modules.append(nn.BatchNorm1d(narrow, affine=not last))
        if not last:
            modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules)
