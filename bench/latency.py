"""Compiled kernels against the eager reference, interleaved in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import stc_cuda
from stc_cuda import reference
from stc_cuda.profiling import interleave, median_ratio, saved_bytes

from .cases import Inputs, Layer, make_inputs

Neuron = Callable[..., tuple[Tensor, ...]]
CONTESTANTS: dict[str, Neuron] = {"reference": reference.stc_lif, "cpu": stc_cuda.stc_lif}
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


def check_parity() -> None:
    """Refuses to time kernels that are wrong: float64 results must equal the reference's.

    Raises:
        RuntimeError: spikes differ, or a gradient is off by more than 1e-10 relative.
    """
    inputs = make_inputs(Layer(3, 2, 32, 9, groups=2, carried=True), 0.0, 0.2, torch.float64)
    results = []
    for neuron in CONTESTANTS.values():
        inputs.requires_grad_(True)
        spikes, v = _call(neuron, inputs, gradient_detach=False)
        (spikes.sum() + (v * v).sum()).backward()
        results.append((spikes.detach(), [x.grad for x in (inputs.args[0], *inputs.parameters)]))
    (spikes, grads), (our_spikes, our_grads) = results
    worst = max(float((a - b).norm() / a.norm()) for a, b in zip(grads, our_grads, strict=True))  # type: ignore[operator,union-attr]
    if not torch.equal(spikes, our_spikes) or not worst < 1e-10:
        raise RuntimeError(f"kernels differ from the reference (largest gradient error {worst:.1e}); not timing them")


def measure(layer: Layer, current_bias: float, firing_rate: float, rounds: int) -> list[Row]:
    """Rows for the three passes of one layer at one firing rate."""
    inputs = make_inputs(layer, current_bias, firing_rate)
    inputs.requires_grad_(False)
    rate = float(_call(stc_cuda.stc_lif, inputs, gradient_detach=True)[0].mean())
    rows = []
    for what in PASSES:
        inputs.requires_grad_(False)
        timings = interleave({name: _runner(f, inputs, what) for name, f in CONTESTANTS.items()}, rounds)
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
                ours_ms=timings["cpu"].median * per_step,
                ratio=median_ratio(timings["reference"], timings["cpu"]),
                spread=max(t.spread for t in timings.values()),
                saved_bytes_reference=saved["reference"],
                saved_bytes_ours=saved["cpu"],
            )
        )
    return rows
