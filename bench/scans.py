"""``python -m bench.scans``: the element-wise scan beside a copy of the same bytes, and beside SpikingJelly's LIF.

All run in one process, the contestants in turn. The scan makes its output, as every call does; the copy has one. What
the system takes to give new pages is part of the first comparison and not of the second. SpikingJelly is compared where
it is installed (``pip install --no-deps spikingjelly==2.0.0`` and what it imports).
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stc_cuda
from stc_cuda.profiling import interleave, median_ratio, saved_bytes

from .environment import environment

STEPS = 10
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


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


def keep_freed_memory() -> None:
    """Lets malloc hand out again what was freed, instead of returning it to the system and asking for new pages."""
    libc = ctypes.CDLL(None)
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        if not libc.mallopt(option, value):
            raise OSError("mallopt failed; this comparison needs glibc")


def beside_copy(neurons: int, rounds: int, memory: str) -> dict[str, Any]:
    """LIF without gradients, and ``copy_`` into memory that is there already."""
    x = torch.randn(STEPS, 1, neurons)
    out = torch.empty_like(x)

    def scan() -> None:
        with torch.no_grad():
            stc_cuda.lif(x)

    contestants = {"copy_": lambda: out.copy_(x), "scan": scan}
    return _report(f"forward, {neurons:,} neurons, T = {STEPS}, output in {memory} memory", contestants, rounds)


def beside_spikingjelly(neurons: int, rounds: int) -> dict[str, Any]:
    """LIF forward and backward, SpikingJelly's in ``step_mode="m"`` with its torch backend."""
    from spikingjelly.activation_based import neuron, surrogate

    x = torch.randn(STEPS, 1, neurons, requires_grad=True)
    grad = torch.randn(STEPS, 1, neurons)
    node = neuron.LIFNode(v_reset=None, step_mode="m", surrogate_function=surrogate.Sigmoid())

    def theirs() -> Tensor:
        node.reset()
        x.grad = None
        node(x).backward(grad)
        return x.grad  # type: ignore[return-value]

    def ours() -> Tensor:
        x.grad = None
        stc_cuda.lif(x)[0].backward(grad)
        return x.grad  # type: ignore[return-value]

    torch.testing.assert_close(ours().clone(), theirs())
    row = _report(
        f"forward and backward, {neurons:,} neurons, T = {STEPS}", {"SpikingJelly": theirs, "scan": ours}, rounds
    )
    row["saved bytes per neuron and step"] = saved_bytes(lambda: stc_cuda.lif(x)) / (STEPS * neurons)
    print(f"  saved for backward: {row['saved bytes per neuron and step']:.1f} bytes per neuron and step")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scans", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each contestant (default 15)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows = [beside_copy(4 * 2**20, arguments.rounds, "new")]
    keep_freed_memory()
    rows.append(beside_copy(4 * 2**20, arguments.rounds, "used"))
    if importlib.util.find_spec("spikingjelly"):
        rows.append(beside_spikingjelly(2**16, arguments.rounds))
    else:
        print("SpikingJelly is not installed; not compared")
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
