"""Five published systems, R0 to R4, as tables of runs with the figures to expect; one file for each system."""

from __future__ import annotations

from penstock.engine.systems import (
    r0_better_augmentation,
    r1_augmentations,
    r2_moco_v2,
    r3_imagenette,
    r4_pool,
)
from penstock.engine.systems.table import Entry, Table

__all__ = ["TABLES", "Entry", "Table"]

SYSTEMS = (r0_better_augmentation, r1_augmentations, r2_moco_v2, r3_imagenette, r4_pool)
TABLES: dict[str, Table] = {table.name: table for system in SYSTEMS for table in system.TABLES}
