"""``python -m bench memory``: bytes that a whole layer keeps for backward and holds at most, by mode.

A layer is the feed-forward convolution of spikes, its norm, and the circuit. Bytes per neuron and step, parameters
excluded; the peak is that of torch's allocators beside the input. Milliseconds are of a training step (of a forward
pass for inference), per sample and step of the sequence, the modes in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import stc_cuda
from stc_cuda.profiling import interleave, saved_bytes

from . import authors
from .cases import Layer
from .environment import environment
from .timing import peak_bytes

RATE = 0.18


@dataclass(frozen=True)
class Mode:
    """One way to run a layer.

    Attributes:
        layer: from spikes to spikes.
        conv: its feed-forward convolution alone.
        context: around both.
        learns: whether it runs forward and backward, or forward alone.
    """

    name: str
    layer: Callable[[Tensor], Tensor]
    conv: Callable[[Tensor], Tensor]
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    learns: bool = True


def modes(layer: stc_cuda.STCLIF, device: torch.device) -> list[Mode]:
    """The authors' layer and ours, with the same weights."""

    def ours(**options: object) -> Callable[[Tensor], Tensor]:
        made = stc_cuda.STCLIF(layer.in_channels, layer.channels, Layer.kernel, Layer.groups, **options)  # type: ignore[arg-type]
        for part in ("conv_x", "conv_h", "conv_v"):  # shared, so that they count as the same parameters
            setattr(made, part, getattr(layer, part))

        def run(x: Tensor) -> Tensor:
            made.reset()
            return made(x)

        return run

    def dense(x: Tensor) -> Tensor:
        current = F.conv2d(x.flatten(0, 1), layer.conv_x[0].weight, padding=Layer.kernel // 2)  # type: ignore[arg-type]
        return current.unflatten(0, x.shape[:2])

    def theirs(x: Tensor) -> Tensor:
        pair = {
            name: (conv[1].weight, conv[1].bias)
            for name, conv in (
                ("current_norm", layer.conv_x),
                ("temporal_norm", layer.conv_h),
                ("spatial_norm", layer.conv_v),
            )
        }
        weights = (layer.conv_h[0].weight, layer.conv_v[0].weight)
        return authors.stc_lif(dense(x), *weights, groups=Layer.groups, gradient_detach=False, **pair)[0]

    def conv(x: Tensor) -> Tensor:
        return layer.conv_x[0](x.flatten(0, 1))

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16)

    return [
        Mode("authors' layer", theirs, dense),
        Mode("stc_cuda", ours(), conv),
        *(Mode(f"stc_cuda, recompute_every={every}", ours(recompute_every=every), conv) for every in (8, 4)),
        Mode("stc_cuda, bfloat16 autocast", ours(), conv, autocast),
        Mode("stc_cuda, bfloat16 autocast, recompute_every=8", ours(recompute_every=8), conv, autocast),
        Mode("stc_cuda, inference", ours(), conv, torch.no_grad, learns=False),
    ]


def step_of(mode: Mode, x: Tensor, parameters: list[Tensor], device: torch.device) -> Callable[[], None]:
    """Forward, and backward where the mode learns."""

    def step() -> None:
        with mode.context():
            spikes = mode.layer(x)
        if mode.learns:
            spikes.backward(torch.ones_like(spikes))
            for parameter in parameters:
                parameter.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def kept(run: Callable[[Tensor], Tensor], mode: Mode, x: Tensor, parameters: list[Tensor]) -> int:
    """Bytes for backward."""

    def call() -> Tensor:
        with mode.context():
            return run(x)

    return saved_bytes(call, parameters)


def count(parser: argparse.ArgumentParser, name: str, default: int, what: str) -> None:
    parser.add_argument(name, type=int, default=default, help=f"{what} (default {default})")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench memory", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    count(parser, "--steps", 16, "T")
    count(parser, "--samples", 1, "N")
    count(parser, "--channels", 256, "C, below and in the layer")
    count(parser, "--size", 32, "of the map")
    count(parser, "--rounds", 7, "timed rounds")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    shape = Layer(options.steps, options.samples, options.channels, options.size)
    torch.manual_seed(0)
    layer = stc_cuda.STCLIF(options.channels, options.channels, shape.kernel, shape.groups).to(device)
    parameters = list(layer.parameters())
    sizes = (options.steps, options.samples, options.channels, options.size, options.size)
    x = (torch.rand(sizes) < RATE).float().to(device)
    print(", ".join(f"{name} {value}" for name, value in environment().items()))
    print(f"\n{shape}, input of {options.channels} channels, {RATE:.0%} firing; bytes per neuron and step\n")
    print("| mode | kept: the convolution's input | current and state | together | at the peak | ms a step |")
    print("|---|---|---|---|---|---|")
    found = modes(layer, device)
    steps = {mode.name: step_of(mode, x, parameters, device) for mode in found}
    timings = interleave(steps, rounds=options.rounds, warmup=2)
    for mode in found:
        total, conv = (kept(run, mode, x, parameters) for run in (mode.layer, mode.conv))
        peak = peak_bytes(lambda mode=mode: steps[mode.name], device)  # type: ignore[misc]
        figures = (size / shape.neurons_and_steps for size in (conv, total - conv, total, peak))
        milliseconds = 1e3 * timings[mode.name].median / (options.steps * options.samples)
        print(f"| {mode.name} | {' | '.join(f'{figure:.2f}' for figure in figures)} | {milliseconds:.3g} |", flush=True)
