"""``python -m bench``: a table, and JSON with ``--json``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import stc_cuda

from .cases import Layer
from .environment import environment
from .latency import Row, check_parity, measure

# Firing rates: the bias of the current's norm that gives them, and the number itself.
RATES = {"5%": (-0.65, 0.05), "18%": (0.0, 0.18), "50%": (0.75, 0.5), "95%": (3.5, 0.95)}
LAYERS = {
    "paper": Layer(4, 2, 256, 32),
    "small": Layer(10, 4, 128, 16),
    "step": Layer(1, 2, 256, 32, carried=True),
}


def header(device: str) -> dict[str, Any]:
    """The machine, versions and commit that every table carries."""
    build = stc_cuda.build_info()
    kernels = {"cpu_kernel": build["cpu_kernel"]} if device == "cpu" else {"built_for": build["cuda_architectures"]}
    return {**environment(), "stc_cuda": stc_cuda.__version__, **kernels}


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _print_row(row: Row) -> None:
    def change(before: float | None, after: float | None) -> str:
        return "" if before is None else f"{before:6.1f} -> {after:5.2f}"

    columns = [change(row.saved_bytes_reference, row.saved_bytes_ours)]
    if row.peak_bytes_ours is not None:
        columns.append(change(row.peak_bytes_reference, row.peak_bytes_ours))
    bytes_columns = " | ".join(f"{column:16}" for column in columns)
    print(
        f"| {row.what:26} | {row.firing_rate:4.0%} | {_milliseconds(row.reference_ms):>7} "
        f"| {_milliseconds(row.ours_ms):>6} "
        f"| {row.ratio:5.2f}x | {row.spread:4.0%} | {bytes_columns} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to time (default cpu)")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--rates", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each contestant (default 7)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()

    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error(f"--device cuda: torch {torch.__version__} sees no GPU; expected a machine that has one")
        # The rival rounds as our kernels do; PyTorch's default of TF32 flips spikes.
        torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    check_parity(device)
    about = header(options.device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("milliseconds per sample and step, medians of interleaved rounds; bytes per neuron and step\n")
    columns = [f"{title:16}" for title in ("bytes saved", *(["bytes at the peak"] if options.device == "cuda" else []))]
    rows: list[Row] = []
    for name in options.layers:
        print(f"{name}: {LAYERS[name]}\n")
        print(f"| pass                       | rate | eager   | ours   | ratio  | +-   | {' | '.join(columns)} |")
        print("|---|---|---|---|---|---" + "|---" * len(columns) + "|")
        for rate in options.rates:
            for row in measure(LAYERS[name], *RATES[rate], options.rounds, device):
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
