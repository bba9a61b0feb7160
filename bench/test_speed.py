"""This library's calls under pytest-benchmark, to find what a change made slower.

``make bench-baseline`` stores a run in bench/baseline, ``make bench-compare`` names what is slower by a tenth. No test
of the suite: pytest collects it only where it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from .cases import LAYER_NAMES, USUAL_RATE, Case, layer_cases, neuron_cases
from .contestants import OURS, make_problem, preparation
from .latency import check_parity

ROUNDS = 31


def passes() -> Iterator[tuple[str, tuple[str, Case, str]]]:
    """By a name that a baseline knows them by."""
    for device in ("cpu", "cuda"):
        for case in (*layer_cases(device, list(LAYER_NAMES), [USUAL_RATE]), *neuron_cases(device)):
            for what in case.passes:
                name = f"{device} {case.name} T={case.layer.steps} N={case.layer.samples} {what}"
                yield name, (device, case, what)


PASSES = dict(passes())


@cache
def right(device: torch.device) -> None:
    check_parity(device)


@pytest.mark.parametrize("name", PASSES)
def test_speed(benchmark: Any, name: str) -> None:
    device, case, what = PASSES[name]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    where = torch.device(device)
    right(where)
    problem = make_problem(case, where, {OURS})
    prepare = preparation(problem.contestants[OURS], what, problem.leaves)

    def setup() -> tuple[tuple[Callable[[], object]], dict[str, Any]]:
        run = prepare()
        if where.type == "cuda":
            torch.cuda.synchronize()
        return (run,), {}

    def timed(run: Callable[[], object]) -> None:
        run()
        if where.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(timed, setup=setup, rounds=ROUNDS, warmup_rounds=2)
