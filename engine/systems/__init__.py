"""Five published systems, R0 to R4, as tables of runs with the figures to expect; one file for each system."""

from __future__ import annotations

from penstock.engine.systems import r1_augmentations
from penstock.engine.systems.table import Entry, Table

__all__ = ["TABLES", "Entry", "Table"]

TABLES: dict[str, Table] = {table.name: table for module in (r1_augmentations,) for table in module.TABLES}
