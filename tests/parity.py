"""Kernels against the float64 oracle, by the numerics policy (see oracle.py)."""

from __future__ import annotations

import dataclasses
import math

import oracle
import torch
from oracle import BAND, ULP, Outcome, Problem, error, kernel, run, size
from torch import Tensor

# Of all spikes of a batch; a batch holds some 1e5 to 1e6 of them, so that the allowance is a few spikes.
FLIP_RATE = 1e-5
# Gradients are not compared after a flip; a kernel that flips often must not pass by comparing nothing.
MAX_SKIPPED = 3
# An error may be twice that of plain PyTorch, taken from the worst of four equivalent runs of it. Where rounding is
# amplified from step to step an error is a single draw from a wide distribution: PyTorch compared with its own
# equivalent runs exceeds twice their worst in 0.3% of the comparisons, up to a factor of 4.
EXCESS_RATE = 0.02
LIMIT = 8.0
FLOOR = 4 * ULP
# Single draws average out in tensors of some size: over those of a batch the geometric mean of the ratio lies near 1,
# and must be below 2. A smaller tensor is one draw, in the forward pass as well: it has the policy's band as its floor.
MEAN_RATIO = 2.0
LARGE = 256
# Of gradients: the tail of a surrogate underflows in float32, and what is left there has no digits.
UNDERFLOW = 2.0**-100


def listed(complaints: list[str]) -> str:
    return "\n".join([f"{len(complaints)} complaints", *complaints[:10]])


def on_device(problem: Problem, backend: str) -> Problem:
    return problem.to(device=oracle.device_of(backend))


def with_v_seq(problem: Problem) -> Problem:
    return dataclasses.replace(problem, options={**problem.options, "store_v_seq": True})


def check_float64(problem: Problem, backend: str) -> tuple[list[str], float]:
    """Complaints, and the largest relative error seen."""
    answer = oracle.solve(problem)
    found = run(kernel(backend, problem.case.neuron), on_device(problem, backend))
    complaints, worst = [], 0.0

    def compare(name: str, x: Tensor, expected: Tensor, scale: float) -> None:
        nonlocal worst
        off = error(x, expected)
        worst = max(worst, off / scale if scale else off)
        if not off <= 1e-10 * scale:
            complaints.append(f"{name}: error {off:.3g} of {scale:.3g}")

    assert found.outputs.keys() == answer.outputs.keys()
    for name, expected in answer.outputs.items():
        if name == "spikes" and problem.case.spiking:
            if not torch.equal(found.outputs[name].cpu(), expected):
                complaints.append(f"spikes: {int((found.outputs[name].cpu() != expected).sum())} differ")
        else:
            compare(name, found.outputs[name], expected, size(expected))
    scales = oracle.gradient_scales(problem, answer)
    for name, expected in answer.grads.items():
        compare(f"gradient of {name}", found.grads[name], expected, scales[name])
    return [f"{problem.case}: {c}" for c in complaints], worst


@dataclasses.dataclass
class Float32Report:
    """What a float32 comparison found; summed over a batch."""

    spikes: int = 0
    flips: int = 0
    outside_band: int = 0
    comparisons: int = 0
    over_twice_eager: int = 0
    skipped_gradients: int = 0
    worst_ratio: float = 0.0
    log_ratios: list[float] = dataclasses.field(default_factory=list)
    complaints: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Float32Report) -> None:
        for f in dataclasses.fields(self):
            mine, its = getattr(self, f.name), getattr(other, f.name)
            setattr(self, f.name, max(mine, its) if f.name == "worst_ratio" else mine + its)

    def compare(self, name: str, x: Tensor, expected: Tensor, scale: float, theirs: list[Tensor]) -> None:
        """One tensor, beside what equivalent runs of plain PyTorch in float32 make of it."""
        off = error(x, expected)
        floor = scale * (FLOOR if expected.numel() >= LARGE else BAND) + UNDERFLOW
        eagers = max(error(peer, expected) for peer in theirs)
        self.comparisons += 1
        self.worst_ratio = max(self.worst_ratio, off / (eagers + floor) if scale else 0.0)
        if expected.numel() >= LARGE and off > 0 and eagers > 0:
            self.log_ratios.append(math.log(off / eagers))
        self.over_twice_eager += not off <= 2 * eagers + floor
        if not off <= LIMIT * eagers + floor:
            self.complaints.append(f"{name}: error {off:.3g}, eager's {eagers:.3g}, size {scale:.3g}")

    def check(self) -> None:
        assert not self.complaints, listed(self.complaints)
        assert self.outside_band == 0
        assert self.flips <= max(1, FLIP_RATE * self.spikes), f"{self.flips} of {self.spikes} spikes flipped"
        assert self.skipped_gradients <= MAX_SKIPPED
        allowed = max(2, EXCESS_RATE * self.comparisons)
        assert self.over_twice_eager <= allowed, f"over twice the error of eager: {self.over_twice_eager}"
        if len(self.log_ratios) >= 20:
            assert sum(self.log_ratios) / len(self.log_ratios) <= math.log(MEAN_RATIO)

    def record(self, record_property: object, group: str) -> None:
        counts = {k: v for k, v in dataclasses.asdict(self).items() if not isinstance(v, list)}
        record_property("parity", {"group": group, **counts})  # type: ignore[operator]


def check_restarted(problem: Problem, answer: Outcome, backend: str) -> Float32Report:
    """Every step from the oracle's state before it, all steps in one call as if they were samples."""
    case, report = problem.case, Float32Report()
    steps = oracle.trace(problem, answer.outputs, state_dtype=torch.float32)
    restarted = on_device(oracle.restarted(problem, steps.before), backend)
    found = run(kernel(backend, case.neuron), restarted, backward=False).outputs
    found = {name: x.double().cpu().reshape(steps.u.shape) for name, x in found.items()}
    wrong = found["spikes"] != steps.outputs["spikes"]
    report.spikes = wrong.numel()
    report.flips = int(wrong.sum())
    report.outside_band = int((wrong & ~oracle.band(steps)).sum())
    if report.outside_band:
        report.complaints.append(f"{case}: restarted, {report.outside_band} spikes flipped outside of the band")
    for name in case.kind.states:
        too_far = ~((found[name] - steps.outputs[name]).abs() <= BAND * steps.magnitude) & ~wrong
        if too_far.any():
            at = too_far.nonzero()[0].tolist()
            report.complaints.append(f"{case}: restarted, {int(too_far.sum())} wrong {name}, first at [t,n,c,y,x] {at}")
    return report


def check_free_running(problem: Problem, answer: Outcome, backend: str) -> Float32Report:
    """The whole sequence, values and gradients, against the oracle and the error of plain PyTorch in float32."""
    case, report = problem.case, Float32Report()
    found = run(kernel(backend, case.neuron), on_device(problem, backend))
    peers: list[Outcome] = []
    for _, other, back in oracle.mirrored(problem):
        peer = run(oracle.reference(case.neuron), other)
        outputs = {name: back(name, x) for name, x in peer.outputs.items()}
        if not case.spiking or torch.equal(outputs["spikes"].double(), answer.outputs["spikes"]):
            peers.append(Outcome(outputs, {name: back(name, x) for name, x in peer.grads.items()}))
    steps = oracle.trace(problem, answer.outputs)
    if case.spiking:
        flips = oracle.free_running_flips(found.outputs["spikes"], answer.outputs["spikes"], oracle.band(steps))
        report.spikes, report.flips, report.outside_band = case.neurons, flips.inside, flips.outside
        if flips.outside:
            report.complaints.append(f"{case}: {flips.outside} spikes flipped outside of the band")
        if flips.any or not peers:
            report.skipped_gradients = 1
            return report
    if oracle.on_edge(problem, steps):
        report.skipped_gradients = 1
        return report

    scales = oracle.gradient_scales(problem, answer)
    pairs = [
        (f"gradient of {n}", found.grads[n], x, scales[n], [p.grads[n] for p in peers]) for n, x in answer.grads.items()
    ]
    pairs += [
        (n, x, answer.outputs[n], size(answer.outputs[n]), [p.outputs[n] for p in peers])
        for n, x in found.outputs.items()
        if n != "spikes" or not case.spiking
    ]
    for name, x, expected, scale, theirs in pairs:
        report.compare(f"{case}: {name}", x, expected, scale, theirs)
    return report


def check_float32(problem: Problem, backend: str, free_running: bool = True) -> Float32Report:
    answer = oracle.solve(with_v_seq(problem))
    report = check_restarted(problem, answer, backend) if problem.case.spiking else Float32Report()
    if free_running:
        report.add(check_free_running(problem, answer, backend))
    return report


def check_gate(backend: str, pathway: str, in_group: int, rate: float | str) -> None:
    """The gate alone, at a firing rate: u = 1 + tanh(conv) with v or I at 1 and no norms.

    tanh and the sum 1 + tanh each add up to an ulp of 1 to the error of the convolution, 3e-7 of its size.
    """
    rng = torch.Generator().manual_seed(in_group)
    samples, groups, side, k = 2, 2, 13, 5
    if backend == oracle.EMULATED and in_group > 16:
        side = 5
    shape = (samples, groups * in_group, side, side)
    spikes = torch.zeros(shape)
    if rate == "all":
        spikes += 1
    elif rate == "one":
        spikes[0, in_group, 0, side - 1] = 1
    elif rate != "none":
        spikes = (torch.rand(shape, generator=rng) < rate).float()
    fan_in = max(1.0, spikes.mean().item() * in_group * k * k)
    weight = torch.randn(groups * in_group, in_group, k, k, generator=rng) * 0.7 / fan_in**0.5
    silent = torch.zeros_like(weight)
    ones, zeros = torch.ones(shape), torch.zeros(shape)
    temporal = pathway == "temporal"
    device = oracle.device_of(backend)
    _, v = kernel(backend)(
        (zeros if temporal else ones)[None].to(device),
        (weight if temporal else silent).to(device),
        (silent if temporal else weight).to(device),
        groups=groups,
        v=(ones if temporal else zeros).to(device),
        spikes=spikes.to(device),
        v_threshold=1e30,
    )
    gate = torch.tanh(torch.nn.functional.conv2d(spikes.double(), weight.double(), padding=k // 2, groups=groups))
    assert error(v - 1, gate) <= 3e-7 * size(gate) + 0.5 * ULP * gate.numel() ** 0.5
    if rate == "none":
        assert torch.equal(v.cpu(), ones)
