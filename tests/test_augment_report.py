"""The augmentation benchmark's report: what is held against what, and how a batch is named."""

from __future__ import annotations

from typing import Any

from penstock.benchmarks.augment_chart import _title
from penstock.benchmarks.augment_report import aims


def row(executor: str, operation: str, *, size: int, views: int) -> dict[str, Any]:
    """Of a batch of 256 images on a GPU, 12 times as fast as Kornia."""
    return {
        "executor": executor, "operation": operation, "size": size, "batch": 256, "views_per_batch": 256 * views,
        "over_floor": 3.0, "times_as_fast_as": {"kornia": 12.0},
    }  # fmt: skip


def test_views_of_half_precision_meet_no_target_against_rivals_that_write_float32() -> None:
    rows = [row(name, "chain:moco-v2", size=224, views=2) for name in ("fused_gpu", "fused_gpu-bf16")]
    about = "chain:moco-v2, 256 × 2 views of 224 px"
    assert aims({"rows": rows}) == [
        f"fused_gpu, {about}: 3.0 × its floor (target: within 4 ×, met)",
        f"fused_gpu, {about}: 12.0 × as fast as kornia (target: 10 ×, met)",
        f"fused_gpu-bf16, {about}: 3.0 × its floor (target: within 4 ×, met)",
        f"fused_gpu-bf16, {about}: 12.0 × as fast as kornia, which writes float32",
    ]


def test_views_of_several_sizes_are_all_named() -> None:
    crops = row("fused_gpu", "chain:multi-crop", size=224, views=8)
    assert all("chain:multi-crop, 256 × 8 views of 2×224 and 6×96 px: " in line for line in aims({"rows": [crops]}))
    assert _title(crops) == "chain:multi-crop, 2×224 and 6×96 px, 256 × 8"
    assert _title(crops | {"batch": None}) == "chain:multi-crop, 2×224 and 6×96 px"
    assert _title(row("fused_gpu", "blur", size=224, views=1)) == "blur, 224 px, 256 × 1"
