"""What the compiled kernels take of a GPU, found without one: `python -m penstock.augment.fused_gpu.report 90`.

Prints one JSON object: for each kernel its registers (of a thread), spills (bytes of a thread's stack) and shared
memory (bytes of a program).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.augment.fused_gpu import plan
from penstock.augment.fused_gpu.shape import TABLE_BLOCK, TABLE_OPTIONS, TILED, WHOLE

# Triton's types of what a kernel is launched with.
TYPES = {
    "words": "*i32",
    "first": "i32",
    "source": "*u8",
    "stored": "*i32",
    "kept": "*i32",
    "tables": "*u8",
    "constants": "*i32",
    "out": "*fp16",
    "size": "i32",
    "tiles": "i32",
} | {f"{what}_{channel}": "fp32" for what in ("slope", "offset") for channel in "rgb"}
ALIGNED = ("words", "source", "stored", "kept", "tables", "constants", "out", "size")  # divisible by 16

HEADS = {
    "crop": (TILED, plan.TRIANGLE),
    "crop-cubic": (TILED, plan.KEYS),
    "filter": (TILED, plan.FILTER),
    "clahe": (TILED, plan.EQUALIZE),
    "contrast": (TILED, plan.PLAIN),
    "view": (WHOLE, plan.TRIANGLE),
    "view-cubic": (WHOLE, plan.KEYS),
}
KERNELS = (*HEADS, *(f"{name}-rich" for name in HEADS), "clahe-tables")


def _compile(kernel: Any, constants: dict[str, Any], options: dict[str, Any], arch: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else TYPES[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED if name in names},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _use(compiled: Any) -> dict[str, int]:
    """Read a kernel's needs out of its machine code."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return {"registers": int(found[1]), "spills": int(found[2]), "shared": compiled.metadata.shared}


def _build(name: str, arch: int) -> Any:
    from penstock.augment.fused_gpu import kernels

    if name == "clahe-tables":
        return _compile(kernels.make_tables, {"BLOCK": TABLE_BLOCK}, TABLE_OPTIONS, arch)
    shape, head = HEADS[name.removesuffix("-rich")]
    return _compile(kernels.run_pass, shape.options(head, name.endswith("-rich")), shape.compiler, arch)


def measure(arch: int, names: Sequence[str] = KERNELS) -> dict[str, dict[str, int]]:
    """Compile kernels for an architecture, 80 or 90; TRITON_INTERPRET must not be set."""
    return {name: _use(_build(name, arch)) for name in names}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2:] or KERNELS)))
