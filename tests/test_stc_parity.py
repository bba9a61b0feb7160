"""STC-LIF kernels against the float64 oracle, by the numerics policy (see oracle.py)."""

from __future__ import annotations

import oracle
import pytest
import torch
from oracle import Case, Problem, eager, kernel, make_problem, random_case, run
from parity import Float32Report, check_float32, check_float64, check_gate, listed, on_device

from stc_cuda.config import SURROGATE_ALPHA

pytestmark = pytest.mark.usefixtures("poison")

BATCHES = 8
CASES_PER_BATCH = 25


def batch_of(batch: int, first_seed: int, backend: str = "cpu") -> list[Case]:
    start = first_seed + batch * CASES_PER_BATCH
    cases = [random_case(seed) for seed in range(start, start + CASES_PER_BATCH)]
    return [case for case in cases if oracle.affordable(case, backend)]


def configurations(first_seed: int, backend: str) -> int:
    return sum(len(batch_of(batch, first_seed, backend)) for batch in range(BATCHES))


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


@pytest.mark.usefixtures("truncating")
@pytest.mark.parametrize("pathway", ["temporal", "spatial"])
@pytest.mark.parametrize("in_group", [16, 8, 65])
@pytest.mark.parametrize("rate", ["none", "one", 0.02, 0.1, 0.25, 0.3, 0.5, 0.9, "all"])
def test_gate_at_every_firing_rate(backend: str, pathway: str, in_group: int, rate: float | str) -> None:
    """Whatever way to sum it a kernel picks."""
    check_gate(backend, pathway, in_group, rate)


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
