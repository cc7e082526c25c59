"""Penstock: a data-loading-first trainer for self-supervised vision models."""

from pathlib import Path

__version__ = "0.1.0"

# An editable install finds the package through a link (setup.py). Its modules have one path all the same, by which
# numba knows what it has compiled.
__path__ = [str(Path(__file__).resolve().parent)]
