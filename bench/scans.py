"""``python -m bench.scans``: the element-wise scan beside a copy of the same bytes, and beside SpikingJelly's LIF.

All in one process, in turn. The copy has an output that is there already. The scan makes its own, as every call does:
in memory that was kept from the call before (:mod:`stc_cuda.memory`), and once more with that emptied before each call,
so that the system gives new pages.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stc_cuda
from stc_cuda.profiling import interleave, median_ratio

from .environment import environment
from .files import write_whole

STEPS = 10


def _report(name: str, contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    rival, ours = contestants
    timings = interleave(contestants, rounds=rounds, warmup=2)
    row = {
        "what": name,
        **{f"{who} ms": 1e3 * timings[who].median for who in contestants},
        f"{rival} / {ours}": median_ratio(timings[rival], timings[ours]),
        "spread": max(timing.spread for timing in timings.values()),
    }
    print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)
    return row


def beside_copy(neurons: int, rounds: int, kept: bool) -> dict[str, Any]:
    """LIF without gradients, and ``copy_`` into memory that is there already."""
    x = torch.randn(STEPS, 1, neurons)
    out = torch.empty_like(x)

    def scan() -> None:
        if not kept:
            stc_cuda.memory.empty_cache()
        with torch.no_grad():
            stc_cuda.lif(x)

    contestants = {"copy_": lambda: out.copy_(x), "scan": scan}
    memory = "kept" if kept else "new"
    return _report(f"forward, {neurons:,} neurons, T = {STEPS}, output in {memory} memory", contestants, rounds)


def beside_spikingjelly(neurons: int, rounds: int) -> list[dict[str, Any]]:
    """A training step of LIF with the same options; the loss is a sum, or another layer's gradient comes back."""
    from spikingjelly.activation_based import neuron, surrogate

    x = torch.randn(STEPS, 1, neurons, requires_grad=True)
    node = neuron.LIFNode(tau=2.0, v_reset=None, surrogate_function=surrogate.Sigmoid(4.0), step_mode="m")

    def theirs() -> Tensor:
        node.reset()
        return node(x)

    def ours() -> Tensor:
        return stc_cuda.lif(x)[0]

    def step(forward: Callable[[], Tensor], summed: bool) -> Callable[[], None]:
        def run() -> None:
            x.grad = None
            spikes = forward()
            spikes.sum().backward() if summed else spikes.backward(torch.ones_like(spikes))

        return run

    return [
        _report(
            f"training step, {neurons:,} neurons, T = {STEPS}, {'a sum' if summed else 'a gradient for each spike'}",
            {"SpikingJelly": step(theirs, summed), "scan": step(ours, summed)},
            rounds,
        )
        for summed in (False, True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scans", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each contestant (default 15)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows = [beside_copy(4 * 2**20, arguments.rounds, kept) for kept in (True, False)]
    if importlib.util.find_spec("spikingjelly"):
        rows += beside_spikingjelly(64 * 2**10, 10 * arguments.rounds)
    else:
        print("SpikingJelly is not installed: no training step beside it")
    if arguments.json:
        write_whole(arguments.json, json.dumps({"environment": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
