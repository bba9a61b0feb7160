"""``python -m bench.spike_conv``: the feed-forward convolution of spikes beside PyTorch's, by firing rate.

Forward and weight gradient of one layer's convolution, in one process, the contestants in turn. The rival is
``torch.nn.functional.conv2d`` and its gradient (oneDNN's on a CPU); ours counts and packs the spikes in every call.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stc_cuda.profiling import interleave, median_ratio

from .environment import environment

RATES = (0.0, 0.01, 0.05, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0)
PATHS = ("events", "dense")


def _their_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    padding = [weight.shape[-1] // 2] * 2
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]


def measure(
    size: tuple[int, int, int, int], out_channels: int, kernel: int, rate: float, path: str, rounds: int
) -> list[dict[str, Any]]:
    """Both passes at one firing rate; ``size`` is [N, C, H, W]."""
    random = torch.Generator().manual_seed(1)
    x = (torch.rand(size, generator=random) < rate).float()
    weight = torch.randn(out_channels, size[1], kernel, kernel, generator=random) / (size[1] * kernel**2) ** 0.5
    grad = torch.randn(size[0], out_channels, *size[2:], generator=random)
    ours = torch.ops.stc_cuda
    _, bits, forward = ours.spike_conv(x, weight, None, False, path)
    _, backward = ours.spike_conv_weight_gradient(grad, bits, size[1], kernel, path)
    timings = interleave(
        {
            "their forward": lambda: torch.nn.functional.conv2d(x, weight, padding=kernel // 2),
            "our forward": lambda: ours.spike_conv(x, weight, None, False, path),
            "their weight gradient": lambda: _their_gradient(grad, x, weight),
            "our weight gradient": lambda: ours.spike_conv_weight_gradient(grad, bits, size[1], kernel, path),
        },
        rounds=rounds,
        warmup=2,
    )
    rows = []
    for name, report in (("forward", forward), ("weight gradient", backward)):
        rival, our = timings[f"their {name}"], timings[f"our {name}"]
        rows.append(
            {
                "pass": name,
                "rate": rate,
                "path": PATHS[int(report[0])],
                "torch ms": 1e3 * rival.median,
                "ours ms": 1e3 * our.median,
                "ratio": median_ratio(rival, our),
                "spread": max(rival.spread, our.spread),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.spike_conv", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each contestant (default 9)")
    parser.add_argument("--size", type=int, nargs=4, default=(2, 256, 32, 32), metavar=("N", "C", "H", "W"))
    parser.add_argument("--out-channels", type=int, default=256)
    parser.add_argument("--kernel", type=int, default=5, help="K, odd (default 5)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="firing rates")
    parser.add_argument("--path", choices=("auto", *PATHS), default="auto", help="what ours runs (default auto)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print("| pass | rate | path | torch, ms | ours, ms | ratio | +- |\n|---|---|---|---|---|---|---|")
    rows = []
    for rate in arguments.rates:
        for row in measure(
            tuple(arguments.size), arguments.out_channels, arguments.kernel, rate, arguments.path, arguments.rounds
        ):
            rows.append(row)
            print(
                f"| {row['pass']} | {row['rate']:.0%} | {row['path']} | {row['torch ms']:.2f} | {row['ours ms']:.2f} | "
                f"{row['ratio']:.2f}x | {row['spread']:.0%} |",
                flush=True,
            )
    if arguments.json:
        part = arguments.json.with_suffix(".part")
        part.write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")
        part.replace(arguments.json)


if __name__ == "__main__":
    main()
