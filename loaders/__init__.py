"""Loaders: sources in, augmented views out. `make_loader` is the door; each loader is one file.

from penstock.augment import load_recipe
from penstock.loaders import make_loader, open_source

source = open_source("path/to/images")
with make_loader("ffcv", source, recipe=load_recipe("moco-v2", size=224), batch=256) as loader:
    for views in loader:  # one epoch; the next `for` is the next epoch
        query, key = views.groups[0].chunk(2)  # each [N, 3, S, S]
"""

from penstock.loaders.contract import Loader, LoaderState, Options, Views
from penstock.loaders.make import LOADERS, LoaderInfo, make_loader, missing
from penstock.loaders.order import Order
from penstock.loaders.sources import open_source
from penstock.loaders.sources.base import Source, Subset

__all__ = [
    "LOADERS",
    "Loader",
    "LoaderInfo",
    "LoaderState",
    "Options",
    "Order",
    "Source",
    "Subset",
    "Views",
    "make_loader",
    "missing",
    "open_source",
]
