"""``python -m bench``: a table, and JSON with ``--json``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import stc_cuda

from .cases import Layer
from .latency import Row, check_parity, measure

# Firing rates: the bias of the current's norm that gives them, and the number itself.
RATES = {"5%": (-0.65, 0.05), "18%": (0.0, 0.18), "50%": (0.75, 0.5), "95%": (3.5, 0.95)}
LAYERS = {
    "paper": Layer(4, 2, 256, 32),
    "small": Layer(10, 4, 128, 16),
    "step": Layer(1, 2, 256, 32, carried=True),
}


def _commit() -> str:
    try:
        root = Path(__file__).parent
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
        )
        return commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def header() -> dict[str, Any]:
    """The machine, versions and commit that every table carries."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "stc_cuda": stc_cuda.__version__,
        "cpu_kernel": stc_cuda.build_info()["cpu_kernel"],
        "commit": _commit(),
    }


def _print_row(row: Row) -> None:
    bytes_column = (
        f"{row.saved_bytes_reference:6.1f} -> {row.saved_bytes_ours:5.2f}" if row.saved_bytes_ours is not None else ""
    )
    print(
        f"| {row.what:26} | {row.firing_rate:4.0%} | {row.reference_ms:7.2f} | {row.ours_ms:6.2f} "
        f"| {row.ratio:5.2f}x | {row.spread:4.0%} | {bytes_column:16} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--rates", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each contestant (default 7)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()

    check_parity()
    about = header()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("milliseconds per sample and step, medians of interleaved rounds; bytes saved per neuron and step\n")
    rows: list[Row] = []
    for name in options.layers:
        print(f"{name}: {LAYERS[name]}\n")
        print("| pass                       | rate | eager   | ours   | ratio  | +-   | bytes saved      |")
        print("|---|---|---|---|---|---|---|")
        for rate in options.rates:
            for row in measure(LAYERS[name], *RATES[rate], options.rounds):
                rows.append(row)
                _print_row(row)
        print()
    if options.json:
        text = json.dumps({"about": about, "rows": [row.as_dict() for row in rows]}, indent=1)
        temporary = options.json.with_name(options.json.name + ".part")
        temporary.write_text(text)
        temporary.replace(options.json)


if __name__ == "__main__":
    main()
