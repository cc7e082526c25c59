"""How kernels are cut for views of one size, and the options that they are compiled with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The cut of a kernel.

    Attributes:
        whole: one program holds a whole view.
        tile_x, tile_y: sides of a program's tile, pixels.
        chunk_x, chunk_y: sides of the block of source pixels that it takes at once.
        warps: of a program. Triton deals the rows [x] of a turned tile to them 16 at a time (the tensor core's), and
            more warps than tile_x / 16 would repeat each other's work.
    """

    whole: bool
    tile_x: int
    tile_y: int
    chunk_x: int
    chunk_y: int
    warps: int

    def options(self, head: int, rich: bool) -> dict[str, Any]:
        """The compile-time arguments of `kernels.run_pass`."""
        return {
            "HEAD": head,
            "RICH": rich,
            "WHOLE": self.whole,
            "TILE_X": self.tile_x,
            "TILE_Y": self.tile_y,
            "CHUNK_X": self.chunk_x,
            "CHUNK_Y": self.chunk_y,
        }

    @property
    def compiler(self) -> dict[str, Any]:
        """What the compiler is told. Fused multiply-adds round otherwise than torchvision, which moves whole levels."""
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": False}


# Chosen by compiling: of those tried, these take the fewest instructions for a MoCo v2 view and spill no registers.
WHOLE = Shape(whole=True, tile_x=32, tile_y=32, chunk_x=32, chunk_y=16, warps=2)
TILED = Shape(whole=False, tile_x=32, tile_y=16, chunk_x=32, chunk_y=32, warps=2)
TABLE_BLOCK, TABLE_OPTIONS = 1024, {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}


def shape_for(size: int) -> Shape:
    """The shape for views of `size` pixels."""
    return WHOLE if size <= WHOLE.tile_x else TILED
