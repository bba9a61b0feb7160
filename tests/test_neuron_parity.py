"""The whole family against the float64 oracle, by the numerics policy (see oracle.py)."""

from __future__ import annotations

import oracle
import pytest
import torch
from oracle import EMULATED, NEURONS, Case, error, kernel, make_problem, random_case_of, run, size
from parity import Float32Report, check_float32, check_float64, listed

from stc_cuda.config import SURROGATE_ALPHA

pytestmark = pytest.mark.usefixtures("poison")

FAMILY = [name for name in NEURONS if name != "stc_lif"]  # test_stc_parity.py has that one
CONFIGURATIONS = 104
BATCHES = 2
# Emulated kernels take a tenth of a second for a call of this many multiplications.
EMULATED_MULTIPLICATIONS = 30_000


def cases_of(neuron: str, first_seed: int, backend: str = "cpu") -> list[Case]:
    cases = [random_case_of(neuron, seed) for seed in range(first_seed, first_seed + CONFIGURATIONS)]
    if backend == EMULATED:
        return [case for case in cases if case.multiplications <= EMULATED_MULTIPLICATIONS]
    return cases


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("neuron", FAMILY)
def test_float64(backend: str, neuron: str, batch: int, record_property: object) -> None:
    complaints, worst = [], 0.0
    cases = cases_of(neuron, 400, backend)
    for case in cases[batch::BATCHES]:
        found, off = check_float64(make_problem(case, torch.float64), backend)
        complaints += found
        worst = max(worst, off)
    group = f"{backend} float64 {neuron}, {len(cases)} configurations"
    record_property("parity", {"group": group, "worst_relative_error": worst})  # type: ignore[operator]
    assert not complaints, listed(complaints)


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("neuron", FAMILY)
def test_float32(backend: str, neuron: str, batch: int, record_property: object) -> None:
    total = Float32Report()
    cases = cases_of(neuron, 1000, backend)
    for case in cases[batch::BATCHES]:
        total.add(check_float32(make_problem(case, torch.float32), backend))
    total.record(record_property, f"{backend} float32 {neuron}, {len(cases)} configurations")
    total.check()


@pytest.mark.parametrize("neuron", FAMILY)
def test_generator_reaches_what_it_promises(neuron: str) -> None:
    kind = NEURONS[neuron]
    for first_seed in (400, 1000):
        cases = cases_of(neuron, first_seed)
        assert len(cases) >= 100
        assert {c.steps for c in cases} == set(range(1, 9))
        assert {c.surrogate for c in cases} == set(SURROGATE_ALPHA)
        assert {c.layout for c in cases} == set(oracle.LAYOUTS)
        assert {c.upstream for c in cases} >= set(oracle.UPSTREAM)
        assert {c.per_channel for c in cases} == {False, True}
        assert {c.learnt_threshold for c in cases} == ({False} if kind.own_threshold else {False, True})
        assert {c.dimensions for c in cases} == ({5} if kind.circuit else set(oracle.DIMENSIONS))
        assert len({(c.v_reset is None, c.detach_reset, c.spiking) for c in cases}) == 8
        assert len({(c.initial_v, c.initial_spikes) for c in cases}) == 4
        assert len(cases_of(neuron, first_seed, EMULATED)) >= 10
        hard = [make_problem(c, torch.float32) for c in cases if c.spiking]
        rates = [run(oracle.reference(neuron), p, backward=False).outputs["spikes"].mean().item() for p in hard]
        assert sum(0.1 < r < 0.9 for r in rates) >= 20


@pytest.mark.emulated
@pytest.mark.parametrize("neuron", NEURONS)
def test_emulated_kernels_equal_those_of_the_cpu(neuron: str) -> None:
    for case in cases_of(neuron, 2000, EMULATED)[:6]:
        problem = make_problem(case, torch.float64)
        ours, theirs = (run(kernel(name, neuron), problem) for name in (EMULATED, "cpu"))
        if case.spiking:
            assert torch.equal(ours.outputs["spikes"], theirs.outputs["spikes"]), case
        # Gradients of norms over next to nothing are rounding.
        scales = oracle.gradient_scales(problem, theirs)
        for name, x in theirs.outputs.items():
            assert error(ours.outputs[name], x) <= 1e-12 * size(x), (case, name)
        for name, x in theirs.grads.items():
            assert error(ours.grads[name], x) <= 1e-10 * scales[name], (case, name)
