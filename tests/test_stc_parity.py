"""STC-LIF kernels against the float64 oracle, by the numerics policy (see oracle.py)."""

from __future__ import annotations

import dataclasses
import math

import oracle
import pytest
import torch
from oracle import BAND, ULP, Case, Outcome, Problem, eager, error, kernel, make_problem, random_case, run, size
from torch import Tensor

from stc_cuda.config import SURROGATE_ALPHA

pytestmark = pytest.mark.usefixtures("poison")

BATCHES = 8
CASES_PER_BATCH = 25
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


def batch_of(batch: int, first_seed: int, backend: str = "cpu") -> list[Case]:
    start = first_seed + batch * CASES_PER_BATCH
    cases = [random_case(seed) for seed in range(start, start + CASES_PER_BATCH)]
    return [case for case in cases if oracle.affordable(case, backend)]


def configurations(first_seed: int, backend: str) -> int:
    return sum(len(batch_of(batch, first_seed, backend)) for batch in range(BATCHES))


def listed(complaints: list[str]) -> str:
    return "\n".join([f"{len(complaints)} complaints", *complaints[:10]])


def on_device(problem: Problem, backend: str) -> Problem:
    return problem.to(device=oracle.device_of(backend))


def with_v_seq(problem: Problem) -> Problem:
    return dataclasses.replace(problem, options={**problem.options, "store_v_seq": True})


def check_float64(problem: Problem, backend: str) -> tuple[list[str], float]:
    """Complaints, and the largest relative error seen."""
    answer, found = oracle.solve(problem), run(kernel(backend), on_device(problem, backend))
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
    expected_spikes = (steps.u >= case.v_threshold).double()
    if case.v_reset is None:
        expected_v = steps.u - case.v_threshold * expected_spikes
    else:
        expected_v = torch.where(expected_spikes == 1, case.v_reset, steps.u)
    current = problem.inputs["current"]
    assert current is not None
    inputs = {**problem.inputs, "current": current.flatten(0, 1)[None]}
    inputs |= {"v": steps.v_before.float().flatten(0, 1), "spikes": steps.spikes_before.float().flatten(0, 1)}
    restarted = on_device(dataclasses.replace(problem, inputs=inputs), backend)
    found = run(kernel(backend), restarted, backward=False).outputs
    wrong = found["spikes"].double().cpu().reshape(expected_v.shape) != expected_spikes
    undecided = oracle.band(steps, case.v_threshold)
    report.spikes = wrong.numel()
    report.flips = int(wrong.sum())
    report.outside_band = int((wrong & ~undecided).sum())
    if report.outside_band:
        report.complaints.append(f"{case}: restarted, {report.outside_band} spikes flipped outside of the band")
    off = (found["v"].double().cpu().reshape(expected_v.shape) - expected_v).abs()
    tolerance = BAND * (steps.v_before.abs() + steps.current.abs() + 1)
    too_far = ~(off <= tolerance) & ~wrong
    if too_far.any():
        at = too_far.nonzero()[0].tolist()
        report.complaints.append(f"{case}: restarted, {int(too_far.sum())} wrong v, first at [t,n,c,y,x] {at}")
    return report


def check_free_running(problem: Problem, answer: Outcome, backend: str) -> Float32Report:
    """The whole sequence, values and gradients, against the oracle and the error of plain PyTorch in float32."""
    case, report = problem.case, Float32Report()
    found = run(kernel(backend), on_device(problem, backend))
    peers: list[Outcome] = []
    for _, other, back in oracle.mirrored(problem):
        peer = run(eager, other)
        outputs = {name: back(name, x) for name, x in peer.outputs.items()}
        if not case.spiking or torch.equal(outputs["spikes"].double(), answer.outputs["spikes"]):
            peers.append(Outcome(outputs, {name: back(name, x) for name, x in peer.grads.items()}))
    if case.spiking:
        undecided = oracle.band(oracle.trace(problem, answer.outputs), case.v_threshold)
        flips = oracle.free_running_flips(found.outputs["spikes"], answer.outputs["spikes"], undecided)
        report.spikes, report.flips, report.outside_band = case.neurons, flips.inside, flips.outside
        if flips.outside:
            report.complaints.append(f"{case}: {flips.outside} spikes flipped outside of the band")
        if flips.any or not peers:
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
        off = error(x, expected)
        floor = scale * (FLOOR if expected.numel() >= LARGE else BAND)
        eagers = max(error(peer, expected) for peer in theirs)
        report.comparisons += 1
        report.worst_ratio = max(report.worst_ratio, off / (eagers + floor) if scale else 0.0)
        if expected.numel() >= LARGE and off > 0 and eagers > 0:
            report.log_ratios.append(math.log(off / eagers))
        report.over_twice_eager += not off <= 2 * eagers + floor
        if not off <= LIMIT * eagers + floor:
            report.complaints.append(f"{case}: {name}: error {off:.3g}, eager's {eagers:.3g}, size {scale:.3g}")
    return report


def check_float32(problem: Problem, backend: str, free_running: bool = True) -> Float32Report:
    answer = oracle.solve(with_v_seq(problem))
    report = check_restarted(problem, answer, backend) if problem.case.spiking else Float32Report()
    if free_running:
        report.add(check_free_running(problem, answer, backend))
    return report


@pytest.mark.parametrize("batch", range(BATCHES))
def test_float64(backend: str, batch: int, record_property: object) -> None:
    complaints, worst = [], 0.0
    for case in batch_of(batch, 0, backend):
        found, off = check_float64(make_problem(case, torch.float64), backend)
        complaints += found
        worst = max(worst, off)
    group = f"{backend} float64, {configurations(0, backend)} configurations"
    record_property("parity", {"group": group, "worst_relative_error": worst})  # type: ignore[operator]
    assert not complaints, listed(complaints)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_float32(backend: str, batch: int, record_property: object) -> None:
    total = Float32Report()
    for case in batch_of(batch, 1000, backend):
        total.add(check_float32(make_problem(case, torch.float32), backend))
    total.record(record_property, f"{backend} float32, {configurations(1000, backend)} configurations")
    total.check()


@pytest.mark.parametrize("surrogate", SURROGATE_ALPHA)
@pytest.mark.parametrize("in_group", [5, 16])
def test_every_surrogate(backend: str, in_group: int, surrogate: str) -> None:
    case = Case(
        seed=61, in_group=in_group, surrogate=surrogate, height=6, width=8, v_reset=None if in_group == 5 else 0.1
    )
    complaints, _ = check_float64(make_problem(case, torch.float64), backend)
    assert not complaints, listed(complaints)
    report = check_float32(make_problem(case, torch.float32), backend)
    assert not report.complaints, listed(report.complaints)
    assert not report.skipped_gradients


def test_generator_reaches_what_it_promises() -> None:
    for first_seed in (0, 1000):
        cases = [case for batch in range(BATCHES) for case in batch_of(batch, first_seed)]
        assert len(cases) >= 200
        assert sum(oracle.affordable(case, oracle.EMULATED) for case in cases) >= 120
        assert {c.steps for c in cases} == set(range(1, 9))
        assert {c.samples for c in cases} == {1, 2, 3}
        assert {c.in_group for c in cases} == set(oracle.CHANNELS_PER_GROUP)
        assert {(c.height, c.width) for c in cases} == set(oracle.MAPS)
        assert {c.kernel for c in cases} == {1, 3, 5, 7}
        assert {c.layout for c in cases} == set(oracle.LAYOUTS)
        assert {c.upstream for c in cases} == set(oracle.UPSTREAM)
        assert {c.surrogate for c in cases} == {"sigmoid", "atan"}
        assert {c.groups for c in cases} == {1, 2, 3, 4}
        assert any(c.groups % (c.norm_groups or c.groups) and (c.norm_groups or 1) % c.groups for c in cases)
        assert any(c.kernel > max(c.height, c.width) for c in cases)
        modes = {(c.v_reset is None, c.detach_reset, c.gradient_detach, c.spiking) for c in cases}
        assert len(modes) == 16
        norms = {(c.current_norm, c.temporal_norm, c.spatial_norm, c.initial_v, c.initial_spikes) for c in cases}
        assert len(norms) >= 24
        hard = [make_problem(c, torch.float32) for c in cases if c.spiking]
        rates = [run(eager, p, backward=False).outputs["spikes"].mean().item() for p in hard]
        assert sum(r < 0.02 for r in rates) >= 5
        assert sum(r > 0.9 for r in rates) >= 5
        for low in (0.02, 0.1, 0.25, 0.5):
            assert sum(low < r < 2 * low for r in rates) >= 5


def off_centre(dtype: torch.dtype) -> Problem:
    """A current of mean 1e3 and deviation 1: a variance from the mean of squares would lose it."""
    case = Case(seed=5, steps=4, samples=3, groups=4, in_group=8, height=9, width=8, kernel=5)
    problem = make_problem(case, dtype)
    assert problem.inputs["current"] is not None
    problem.inputs["current"] += 1e3
    return problem


def test_current_with_a_large_mean(backend: str, record_property: object) -> None:
    complaints, _ = check_float64(off_centre(torch.float64), backend)
    assert not complaints, listed(complaints)
    report = check_float32(off_centre(torch.float32), backend)
    report.record(record_property, f"{backend} float32, current of mean 1e3")
    report.check()


@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_large_membrane_potential(backend: str, v_reset: float | None) -> None:
    """Untrained networks reach |u| = 1e6, where a float32 step is 0.06."""
    case = Case(seed=6, steps=3, samples=2, groups=2, in_group=16, height=8, width=8, kernel=5, v_reset=v_reset)
    for dtype in (torch.float64, torch.float32):
        problem = make_problem(case, dtype)
        assert problem.inputs["v"] is not None
        problem.inputs["v"] *= 1e6
        if dtype == torch.float64:
            complaints, _ = check_float64(problem, backend)
            assert not complaints, listed(complaints)
        else:
            check_float32(problem, backend).check()


@pytest.mark.parametrize("gradient_detach", [False, True])
def test_paper_layer(backend: str, gradient_detach: bool, record_property: object) -> None:
    case = Case(
        seed=7,
        steps=2,
        samples=1,
        groups=16,
        in_group=16,
        height=32,
        width=32,
        kernel=5,
        gradient_detach=gradient_detach,
    )
    report = check_float32(make_problem(case, torch.float32), backend)
    report.record(record_property, f"{backend} float32, paper layer")
    report.check()


@pytest.mark.parametrize("v_reset", [None, 0.1])
def test_long_sequence(backend: str, v_reset: float | None) -> None:
    """29 steps: float64 runs free, float32 restarts at every step (it leaves float64 sooner or later)."""
    case = Case(seed=8, steps=29, groups=2, in_group=8, height=8, width=8, kernel=5, v_reset=v_reset, drive=0.2)
    complaints, _ = check_float64(make_problem(case, torch.float64), backend)
    assert not complaints, listed(complaints)
    check_float32(make_problem(case, torch.float32), backend, free_running=False).check()


@pytest.mark.parametrize("pathway", ["temporal", "spatial"])
@pytest.mark.parametrize("in_group", [16, 8, 65])
@pytest.mark.parametrize("rate", ["none", "one", 0.02, 0.1, 0.25, 0.3, 0.5, 0.9, "all"])
def test_gate_at_every_firing_rate(backend: str, pathway: str, in_group: int, rate: float | str) -> None:
    """The gate alone, whatever way to sum it a kernel picks: u = 1 + tanh(conv) with v or I at 1 and no norms."""
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
    # tanh and the sum 1 + tanh each add up to an ulp of 1 to the error of the convolution, 3e-7 of its size.
    bound = 3e-7 * size(gate) + 0.5 * ULP * gate.numel() ** 0.5
    assert error(v - 1, gate) <= bound
    if rate == "none":
        assert torch.equal(v.cpu(), ones)


def test_poison_reaches_the_memory_of_the_operators(backend: str) -> None:
    """The guard of this file: memory that an operator takes from torch is filled before the operator writes it."""
    assert torch.empty(7).isnan().all()
    problem = on_device(make_problem(Case(seed=9), torch.float32), backend)
    with torch.profiler.profile(record_shapes=True) as profile:
        run(kernel(backend), problem)
    namespace = "stc_cuda_emulated" if backend == "cuda_emulated" else "stc_cuda"
    for op in (f"{namespace}::stc_forward", f"{namespace}::stc_backward"):
        (event,) = [e for e in profile.events() if e.name == op]
        inside = [
            e.name
            for e in profile.events()
            if e.time_range.start >= event.time_range.start and e.time_range.end <= event.time_range.end
        ]
        assert inside.count("aten::fill_") >= 2, f"{op}: {sorted(set(inside))}"
