"""Measuring what a differentiable call costs: seconds beside a rival, and bytes kept for backward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def saved_bytes(call: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that ``call`` keeps for its backward pass.

    Every storage handed to ``save_for_backward`` (by any node, PyTorch's own included) counts once and whole, inputs
    of the call too; those of the tensors in ``exclude`` (parameters, usually) do not.
    """
    excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            storages[storage.data_ptr()] = storage.nbytes()
        # Without its graph: a node that keeps its own output would keep itself alive for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()  # kept alive until the count: a freed storage's address could be used again
    total = sum(storages.values())
    del result
    return total


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range, in parts of the median."""
        if len(self.seconds) < 4:
            return 0.0
        quartiles = statistics.quantiles(self.seconds, n=4)
        return (quartiles[2] - quartiles[0]) / 2 / self.median


def interleave(contestants: Mapping[str, Callable[[], Any]], rounds: int = 7, warmup: int = 1) -> dict[str, Timing]:
    """Times the contestants in turn, ``rounds`` times each, so that a noisy machine disturbs all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def median_ratio(rival: Timing, ours: Timing) -> float:
    """How many times faster ``ours`` is: the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(rival.seconds, ours.seconds, strict=True))
