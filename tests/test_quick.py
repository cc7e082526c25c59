"""`--quick` of the benchmarks: other defaults, beside which all that is typed holds."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from penstock.benchmarks import augment, cost, methods, scale, throughput, time_to_accuracy, training
from penstock.errors import UserError


@pytest.mark.parametrize(
    ("benchmark", "typed"),
    [
        (throughput, {"repeats": 4, "peers": ("spdl",)}),
        (training, {"rounds": 4}),
        (augment, {"images": 8, "size": 16}),
        (cost, {"rounds": 4, "batches": (8, 16)}),
        (scale, {"repeats": 4, "samples": (200, 300)}),
        (methods, {"epochs": 4, "jobs": 1}),
        (time_to_accuracy, {"epochs": 4, "data": "cifar10"}),
    ],
)
def test_what_is_typed_beside_quick_holds(
    benchmark: ModuleType, typed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(config: Any) -> None:
        seen.append(config)
        raise UserError("seen")

    monkeypatch.setattr(benchmark, "check", stop)
    words = [f"--{name}={value}" for name, value in typed.items() if not isinstance(value, tuple)]
    lists = [word for name, value in typed.items() if isinstance(value, tuple) for word in (f"--{name}", *value)]
    for arguments in (["--quick"], ["--quick", *words, *map(str, lists)], []):
        with pytest.raises(UserError, match="seen"):
            benchmark.main(arguments)
    quick = benchmark.QUICK
    assert quick.quick and seen == [quick, replace(quick, **typed), benchmark.Config()]
    assert all(getattr(quick, name) != value for name, value in typed.items())
