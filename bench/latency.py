"""Compiled kernels against the eager reference, interleaved in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import stc_cuda
from stc_cuda import reference
from stc_cuda.profiling import Timing, interleave, median_ratio, saved_bytes

from .cases import Inputs, Layer, make_inputs

Neuron = Callable[..., tuple[Tensor, ...]]
CONTESTANTS: dict[str, Neuron] = {"reference": reference.stc_lif, "ours": stc_cuda.stc_lif}
PASSES = ("forward", "forward+backward detached", "forward+backward attached")


@dataclass(frozen=True)
class Row:
    """One line of the table; milliseconds per sample and step."""

    layer: str
    firing_rate: float
    what: str
    reference_ms: float
    ours_ms: float
    ratio: float
    spread: float
    saved_bytes_reference: float | None = None
    saved_bytes_ours: float | None = None
    peak_bytes_reference: float | None = None  # of a whole call, beside its inputs; on a GPU
    peak_bytes_ours: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _call(neuron: Neuron, inputs: Inputs, gradient_detach: bool) -> tuple[Tensor, ...]:
    return neuron(*inputs.args, groups=inputs.groups, gradient_detach=gradient_detach, **inputs.norms, **inputs.state)


def _runner(neuron: Neuron, inputs: Inputs, what: str) -> Callable[[], None]:
    detach = what.endswith("detached")

    def forward() -> None:
        with torch.no_grad():
            _call(neuron, inputs, detach)

    def both() -> None:
        inputs.requires_grad_(True)
        spikes, _ = _call(neuron, inputs, detach)
        spikes.backward(torch.ones_like(spikes))

    return forward if what == "forward" else both


def check_parity(device: torch.device) -> None:
    """Refuses to time kernels that are wrong.

    Raises:
        RuntimeError: spikes differ from the reference's, or a gradient is off by more than 1e-10 relative in float64 or
            1e-4 in float32.
    """
    # Few neurons, so that none is likely to lie within float32's rounding of the threshold.
    checks = ((torch.float64, 32, 9, 1e-10), (torch.float32, 32, 16, 1e-4))
    for dtype, channels, size, tolerance in checks:
        inputs = make_inputs(Layer(3, 2, channels, size, groups=2, carried=True), 0.0, 0.2, device, dtype)
        results = []
        for neuron in CONTESTANTS.values():
            inputs.requires_grad_(True)
            spikes, v = _call(neuron, inputs, gradient_detach=False)
            (spikes.sum() + (v * v).sum()).backward()
            results.append((spikes.detach(), [x.grad for x in (inputs.args[0], *inputs.parameters)]))
        (spikes, grads), (our_spikes, our_grads) = results
        worst = max(float((a - b).norm() / a.norm()) for a, b in zip(grads, our_grads, strict=True))  # type: ignore[operator,union-attr]
        differ = int((spikes != our_spikes).sum())
        if differ or not worst < tolerance:
            raise RuntimeError(
                f"kernels differ from the reference in {dtype} ({differ} spikes, largest gradient error {worst:.1e}); "
                "not timing them"
            )


def interleave_on_gpu(contestants: Mapping[str, Callable[[], None]], rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """``profiling.interleave`` with CUDA events, and with none of the inputs left in the second-level cache."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    flush = torch.empty(4 * max(cache, 2**20), dtype=torch.uint8, device="cuda")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + rounds):
        for name, run in contestants.items():
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            if turn >= warmup:
                seconds[name].append(begin.elapsed_time(end) / 1e3)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def peak_bytes(run: Callable[[], None]) -> int:
    """The most bytes of GPU memory that ``run`` holds beside what there is before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(layer: Layer, current_bias: float, firing_rate: float, rounds: int, device: torch.device) -> list[Row]:
    """Rows for the three passes of one layer at one firing rate."""
    inputs = make_inputs(layer, current_bias, firing_rate, device)
    time = interleave_on_gpu if device.type == "cuda" else interleave
    inputs.requires_grad_(False)
    rate = float(_call(stc_cuda.stc_lif, inputs, gradient_detach=True)[0].mean())
    rows = []
    for what in PASSES:
        inputs.requires_grad_(False)
        runners = {name: _runner(f, inputs, what) for name, f in CONTESTANTS.items()}
        timings = time(runners, rounds)
        peak: dict[str, float | None] = dict.fromkeys(CONTESTANTS)
        if device.type == "cuda":
            peak |= {name: peak_bytes(run) / layer.neurons_and_steps for name, run in runners.items()}
        saved: dict[str, float | None] = dict.fromkeys(CONTESTANTS)
        if what != "forward":
            inputs.requires_grad_(True)
            detach = what.endswith("detached")
            for name, neuron in CONTESTANTS.items():
                kept = saved_bytes(partial(_call, neuron, inputs, detach), inputs.parameters)
                saved[name] = kept / layer.neurons_and_steps
        per_step = 1e3 / (layer.steps * layer.samples)
        rows.append(
            Row(
                layer=str(layer),
                firing_rate=rate,
                what=what,
                reference_ms=timings["reference"].median * per_step,
                ours_ms=timings["ours"].median * per_step,
                ratio=median_ratio(timings["reference"], timings["ours"]),
                spread=max(t.spread for t in timings.values()),
                saved_bytes_reference=saved["reference"],
                saved_bytes_ours=saved["ours"],
                peak_bytes_reference=peak["reference"],
                peak_bytes_ours=peak["ours"],
            )
        )
    return rows
