"""Rows of figures: every contestant of a case, pass by pass, beside this library and beside the machine's limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from stc_cuda.profiling import Timing, median_ratio, saved_bytes

from .cases import FORWARD, RATES, ROLLOUT, TRAINING, Case, Layer, make_inputs
from .contestants import (
    CIRCUITS,
    COMPILE_SECONDS,
    EAGER,
    OURS,
    Contestant,
    Problem,
    call_circuit,
    make_problem,
    preparation,
    takes_part,
)
from .limits import Ceilings, Work, circuit_work, neuron_work
from .timing import Deadline, OverTimeError, peak_bytes, race, recover, said


@dataclass(frozen=True)
class Row:
    """One contestant in one pass.

    Attributes:
        ratio: how many times faster this library is: the median of the ratios of the rounds.
        ms: of the whole call, median.
        ms_per_step: per sample and step.
        spread: half the interquartile range, in parts of the median.
        bytes_per_s: of the least that the pass has to move, whatever this contestant moves.
        flop_per_s: of the dense convolutions' operations, whatever this contestant does.
        limit: the least time by the measured ceilings, in parts of the time taken. Above 1 where zeros are skipped or
            caches serve.
        limited_by: ``"memory"`` or ``"arithmetic"``.
        saved_bytes: kept for backward, per neuron and step, parameters excluded.
        peak_bytes: held at most beside the inputs, per neuron and step.
        error: what it said instead of a time.
    """

    section: str
    case: str
    value: float | None
    layer: str
    steps: int
    samples: int
    channels: int
    size: int
    firing_rate: float
    what: str
    contestant: str
    ratio: float | None = None
    ms: float | None = None
    ms_per_step: float | None = None
    spread: float | None = None
    rounds: int = 0
    bytes_per_s: float | None = None
    flop_per_s: float | None = None
    limit: float | None = None
    limited_by: str | None = None
    saved_bytes: float | None = None
    peak_bytes: float | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def pass_of_case(self) -> tuple[str, str, float | None, float, str]:
        return self.section, self.case, self.value, self.firing_rate, self.what


@dataclass(frozen=True)
class Effort:
    """How long to measure: timed rounds, and seconds for those of one pass."""

    rounds: int
    seconds: float


def check_parity(device: torch.device) -> None:
    """Refuses to time kernels that are wrong.

    Raises:
        RuntimeError: spikes differ from the reference's, or a gradient is off by more than 1e-10 relative in float64 or
            1e-4 in float32.
    """
    # Few neurons, so that none is likely to lie within float32's rounding of the threshold.
    checks = ((torch.float64, 32, 9, 1e-10), (torch.float32, 32, 16, 1e-4))
    for dtype, channels, size, tolerance in checks:
        layer = Layer(3, 2, channels, size, groups=2, carried=True)
        inputs = make_inputs(layer, 0.0, 0.2, device, dtype)
        results = []
        for name in (EAGER, OURS):
            spikes, v = call_circuit(CIRCUITS[name], inputs, gradient_detach=False)
            wanted = [inputs.args[0], *inputs.parameters]
            results.append((spikes.detach(), torch.autograd.grad(spikes.sum() + (v * v).sum(), wanted)))
        (spikes, grads), (our_spikes, our_grads) = results
        worst = max(float((a - b).norm() / a.norm()) for a, b in zip(grads, our_grads, strict=True))
        differ = int((spikes != our_spikes).sum())
        if differ or not worst < tolerance:
            raise RuntimeError(
                f"kernels differ from the reference in {dtype} ({differ} spikes, largest gradient error {worst:.1e}); "
                "not timing them"
            )


def figures(work: Work, layer: Layer, timing: Timing, ours: Timing | None, ceilings: Ceilings) -> dict[str, Any]:
    """What follows from a contestant's seconds."""
    seconds = timing.median
    return {
        "ratio": None if ours is None else median_ratio(timing, ours),
        "ms": 1e3 * seconds,
        "ms_per_step": 1e3 * seconds / (layer.steps * layer.samples),
        "spread": timing.spread,
        "rounds": len(timing.seconds),
        "bytes_per_s": work.bytes / seconds,
        "flop_per_s": work.flop / seconds,
        "limit": ceilings.seconds(work) / seconds,
        "limited_by": ceilings.limited_by(work),
    }


def _memory(
    contestant: Contestant, what: str, problem: Problem, layer: Layer, device: torch.device
) -> dict[str, float | None]:
    saved = peak = None
    if contestant.eager and what.startswith(TRAINING):
        detach = what != TRAINING
        saved = saved_bytes(partial(contestant.call, detach), problem.parameters) / layer.neurons_and_steps
    if not contestant.graph and what in (FORWARD, TRAINING, ROLLOUT):
        peak = peak_bytes(preparation(contestant, what, problem.leaves), device) / layer.neurons_and_steps
    return {"saved_bytes": saved, "peak_bytes": peak}


def measure(
    case: Case, wanted: set[str], device: torch.device, effort: Effort, ceilings: Ceilings, deadline: Deadline
) -> Iterator[Row]:
    """Rows of a case; an error of a contestant is a row, and one of the case is a row of every pass."""
    layer = case.layer
    about: dict[str, Any] = {
        "section": case.section,
        "case": case.name,
        "value": case.value,
        "layer": str(layer),
        "steps": layer.steps,
        "samples": layer.samples,
        "channels": layer.channels,
        "size": layer.size,
    }
    try:
        if deadline.left <= 0:  # before any work, so that a list of cases ends soon
            raise OverTimeError("no time left")
        problem = make_problem(case, device, wanted)
        with torch.no_grad():
            rate = float(problem.contestants[OURS].call(True).float().mean())
    except Exception as error:
        for what in case.passes:
            yield Row(**about, firing_rate=RATES[case.rate][1], what=what, contestant=OURS, error=said(error))
        return
    for what in case.passes:
        work = neuron_work(layer, what) if case.section == "neurons" else circuit_work(layer, what)
        contestants = {name: c for name, c in problem.contestants.items() if takes_part(c, what)}
        prepared = {name: preparation(c, what, problem.leaves) for name, c in contestants.items()}
        try:
            timings, errors = race(
                prepared, effort.rounds, device, deadline, budget=effort.seconds, start_limits=COMPILE_SECONDS
            )
        except Exception as error:  # the device is lost, say
            timings, errors = {}, dict.fromkeys(prepared, said(error))
        for name, contestant in contestants.items():
            row: dict[str, Any] = {"error": errors.get(name)}
            if name in timings:
                row |= figures(work, layer, timings[name], timings.get(OURS), ceilings)
                try:
                    row |= _memory(contestant, what, problem, layer, device)
                except Exception as error:
                    row["error"] = f"memory not measured: {said(error)}"
            yield Row(**about, firing_rate=rate, what=what, contestant=name, **row)
        for leaf in problem.leaves:
            leaf.grad = None
        prepared.clear()
        recover(device)
