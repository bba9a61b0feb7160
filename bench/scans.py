"""``python -m bench.scans``: the element-wise scan beside a copy of the same bytes.

Both run in one process, in turn. The scan makes its output, as every call does; the copy has one. What the system takes
to give new pages is part of the first comparison and not of the second.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import stc_cuda
from stc_cuda.profiling import interleave, median_ratio

from .environment import environment
from .files import write_whole

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
    if arguments.json:
        write_whole(arguments.json, json.dumps({"environment": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
