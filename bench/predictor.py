"""``python -m bench predictor``: the authors' video predictor at the paper's width, whole, beside eager PyTorch.

Eager is the same predictor with ``nn.Conv2d`` in place of ``SpikeConv2d`` and the reference in place of the kernels.
One sample at a time, untrained weights. The share of the feed-forward convolutions is that of their operators' time in
this library's run, by torch's profiler.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from stc_cuda.models import SpikingPredictor
from stc_cuda.profiling import interleave, median_ratio

from .environment import environment
from .latency import check_parity
from .timing import quiet_stderr

GIVEN, PREDICTED = 10, 10
CONVOLUTIONS = (
    "stc_cuda::spike_conv",
    "stc_cuda::spike_conv_weight_gradient",
    "aten::convolution",  # of the first layer's frames, and the read-out
    "aten::convolution_backward",
)


def eager_of(model: SpikingPredictor) -> SpikingPredictor:
    """The same weights in plain PyTorch."""
    eager = copy.deepcopy(model)
    for cell in eager.cell_list:
        cell.config = type(cell.config)(**{**vars(cell.config), "backend": "reference"})  # type: ignore[arg-type]
        ours: nn.Conv2d = cell.conv_x[0]  # type: ignore[index]
        conv = nn.Conv2d(ours.in_channels, ours.out_channels, ours.kernel_size, padding=ours.padding, bias=False)  # type: ignore[arg-type]
        conv.weight = ours.weight
        cell.conv_x[0] = conv  # type: ignore[index]
    return eager


def training_step(model: SpikingPredictor, frames: Tensor) -> None:
    model.zero_grad()
    F.mse_loss(model(frames), frames[:, 1:]).backward()


def inference(model: SpikingPredictor, frames: Tensor) -> None:
    model.predict(frames[:, :GIVEN], PREDICTED)


def _is_inside_one(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None and parent.name not in CONVOLUTIONS:
        parent = parent.cpu_parent
    return parent is not None


def share_of_convolutions(run: Callable[[], None]) -> float:
    """Of the time of all operators."""
    with quiet_stderr(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = profiler.events()
    total = sum(event.self_cpu_time_total for event in events)
    # Of operators that call one another the outermost counts.
    outermost = (event for event in events if event.name in CONVOLUTIONS and not _is_inside_one(event))
    return sum(event.cpu_time_total for event in outermost) / total


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench predictor", description=__doc__)
    parser.add_argument("--neuron", default="stclif", help="see stc_cuda.models.SpikingPredictor (default stclif)")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256, 256], help="channels (default the paper's)")
    parser.add_argument("--size", type=int, default=64, help="of a frame, pixels (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each (default 7)")
    options = parser.parse_args(arguments)
    check_parity(torch.device("cpu"))
    torch.manual_seed(0)
    shape = (GIVEN, 1, options.size, options.size)
    model = SpikingPredictor(options.neuron, shape, PREDICTED, options.hidden)
    eager = eager_of(model)
    frames = torch.rand(1, GIVEN + PREDICTED, *shape[1:])
    print(", ".join(f"{name} {value}" for name, value in environment().items()))
    rates: list[float] = []
    handles = [
        cell.register_forward_hook(lambda _, __, spikes: rates.append(float(spikes.mean()))) for cell in model.cell_list
    ]
    with torch.no_grad():
        model(frames)
    for handle in handles:
        handle.remove()
    fired = sum(rates) / len(rates)
    print(
        f"\n{options.neuron}, {GIVEN} frames of {options.size}x{options.size} given, {PREDICTED} predicted, layers "
        f"{options.hidden}, {fired:.0%} firing; milliseconds per step of the sequence\n"
    )
    print("| what | eager | stc_cuda | stc_cuda is faster | of it the feed-forward convolutions |")
    print("|---|---|---|---|---|")
    steps = GIVEN + PREDICTED - 1
    for what, run in (("training step", training_step), ("inference", inference)):
        contestants = {"eager": partial(run, eager, frames), "ours": partial(run, model, frames)}
        timings = interleave(contestants, rounds=options.rounds, warmup=1)
        share = share_of_convolutions(contestants["ours"])
        eager_ms, ours_ms = (1e3 * timings[name].median / steps for name in contestants)
        ratio = median_ratio(timings["eager"], timings["ours"])
        print(f"| {what} | {eager_ms:.3g} | {ours_ms:.3g} | {ratio:.2f}x | {share:.0%} |", flush=True)
