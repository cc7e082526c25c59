"""`penstock doctor`: what this machine has, which loaders can run on it, and what to type for those that cannot."""

from __future__ import annotations

import sys
from collections import Counter

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penstock import __version__
from penstock.errors import UserError
from penstock.files import cache_folder
from penstock.loaders import LOADERS, missing
from penstock.machine import describe_machine, versions


def main(arguments: list[str] | None = None) -> int:
    """Print the report; the exit code is 0 even where optional parts are missing."""
    if arguments := sys.argv[1:] if arguments is None else arguments:
        if arguments[0] in ("-h", "--help"):
            print(__doc__)
            return 0
        raise UserError(f"doctor takes no options, got {' '.join(arguments)}")
    console = Console(highlight=False)
    console.print(_machine_table())
    console.print(_loader_table())
    return 0


def _machine_table() -> Table:
    machine = describe_machine()
    table = Table("", "", show_header=False, box=None, title=f"Penstock {__version__}", title_justify="left")
    table.add_row("CPU", f"{machine['cpu']}: {machine['cpus']} usable by this process")
    table.add_row("memory", f"{machine['memory_gb']} GB")
    table.add_row("GPU", ", ".join(machine["gpus"]) or f"none (torch is built for {_torch_build()})")
    table.add_row("system", machine["system"])
    table.add_row("cache", f"{escape(str(cache_folder()))} (another place: PENSTOCK_CACHE=FOLDER)")
    table.add_row("", _cached())
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in versions().items()))
    return table


def _torch_build() -> str:
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"


def _cached() -> str:
    """What the cache folder's parts take; the many folders of compiled code are one part."""
    folder, sizes = cache_folder(), Counter[str]()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            part = path.relative_to(folder).parts[0]
            sizes["numba-*" if part.startswith("numba-") else part] += path.stat().st_size
    if not sizes:
        return "empty"
    parts = ", ".join(f"{part} {size / 1e6:,.0f} MB" for part, size in sizes.most_common())
    return escape(f"{parts}: all of it can be removed, what is needed is made again")


def _loader_table() -> Table:
    table = Table("loader", "runs here", "what it is", box=None, title="\nLoaders", title_justify="left")
    for name, info in LOADERS.items():
        table.add_row(name, "no" if missing(name) else "yes", escape(missing(name) or info.about))
    return table
