"""What only a GPU shows: streams, graphs, several devices, repeats, memory. Parity is test_stc_parity.py's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import oracle
import pytest
import torch
from oracle import OUTPUTS, Case, Function, Outcome, Problem, eager, error, kernel, make_problem, run, size
from test_low_precision import rounded

import stc_cuda
from stc_cuda.backends import select_backend

BACKEND = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(stc_cuda.build_info()["cuda"] is None, reason="this build of stc_cuda has no CUDA kernels"),
]

PAPER = Case(seed=951, steps=4, samples=2, groups=16, in_group=16, height=32, width=32, kernel=5)
CASES = {
    "persistent, 16 channels": (dataclasses.replace(PAPER, groups=4), torch.float32),
    "persistent, 8 channels, detached": (
        Case(seed=952, steps=5, groups=4, in_group=8, height=16, width=16, gradient_detach=True),
        torch.float32,
    ),
    "persistent, ragged map": (Case(seed=953, in_group=16, height=9, width=21, kernel=5), torch.float32),
    # Static and dynamic shared memory together above the 48 KB that a launch gets unasked, neither alone.
    "persistent, 14x14": (Case(seed=958, in_group=16, height=14, width=14, kernel=3), torch.float32),
    "persistent, float16": (Case(seed=956, in_group=16, height=8, width=16, kernel=5), torch.float16),
    "persistent, bfloat16, ragged map": (Case(seed=957, in_group=8, height=7, width=11), torch.bfloat16),
    "general, float32": (Case(seed=954, in_group=5, height=11, width=6, norm_groups=1), torch.float32),
    "general, float64": (Case(seed=955, steps=4, in_group=3, height=8, width=8), torch.float64),
}
every_kernel = pytest.mark.parametrize(("case", "dtype"), CASES.values(), ids=CASES)


def problem_of(case: Case, dtype: torch.dtype) -> Problem:
    if dtype.itemsize < 4:
        problem = rounded(make_problem(case, torch.float32), dtype, parameters=torch.float32)
    else:
        problem = make_problem(case, dtype)
    return problem.to(device=oracle.device_of(BACKEND))


def same(found: Outcome, expected: Outcome) -> bool:
    """Bit for bit."""
    return all(torch.equal(found.outputs[name], x) for name, x in expected.outputs.items()) and all(
        torch.equal(found.grads[name], x) for name, x in expected.grads.items()
    )


def tensors(problem: Problem) -> list[torch.Tensor]:
    return [x for x in (*problem.inputs.values(), *problem.upstream.values()) if x is not None]


def late(problem: Problem) -> tuple[Problem, Callable[[], None]]:
    """The problem with NaN in every tensor, and what puts the values there, late, on the stream of the caller."""
    unset = problem.to(device=oracle.device_of(BACKEND), copy=True)
    for x in tensors(unset):
        x.fill_(float("nan"))

    def arrive() -> None:
        torch.cuda._sleep(50_000_000)  # some 30 ms: whoever does not wait reads NaN
        for x, value in zip(tensors(unset), tensors(problem), strict=True):
            x.copy_(value)

    return unset, arrive


@every_kernel
def test_auto_is_cuda(case: Case, dtype: torch.dtype) -> None:
    problem = problem_of(case, dtype)
    assert select_backend("auto", problem.inputs["current"].device).name == BACKEND  # type: ignore[union-attr]
    assert same(run(kernel("auto"), problem), run(kernel(BACKEND), problem))


@every_kernel
def test_another_stream(case: Case, dtype: torch.dtype) -> None:
    problem = problem_of(case, dtype)
    expected = run(kernel(BACKEND), problem)
    unset, arrive = late(problem)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        arrive()
        found = run(kernel(BACKEND), unset)
    stream.synchronize()
    assert same(found, expected)


@every_kernel
def test_two_streams_at_once(case: Case, dtype: torch.dtype) -> None:
    """Calls that overlap share no workspace."""
    problems = [problem_of(dataclasses.replace(case, seed=case.seed + i), dtype) for i in (0, 100)]
    expected = [run(kernel(BACKEND), problem) for problem in problems]
    assert not same(*expected)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # so that both have calls waiting when they start
    found: list[list[Outcome]] = [[], []]
    for _ in range(5):
        for stream, problem, outcomes in zip(streams, problems, found, strict=True):
            with torch.cuda.stream(stream):
                outcomes.append(run(kernel(BACKEND), problem))
    torch.cuda.synchronize()
    for outcomes, answer in zip(found, expected, strict=True):
        assert all(same(outcome, answer) for outcome in outcomes)


def capture(body: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
    """The outcome whose tensors each replay fills, and the replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = body()
    return outcome, graph.replay


@every_kernel
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_graph_replay(case: Case, dtype: torch.dtype, backward: bool) -> None:
    """Captured once, replayed on new numbers in the same tensors."""
    problem = problem_of(case, dtype)
    others = [problem_of(dataclasses.replace(case, seed=case.seed + i), dtype) for i in (100, 0)]
    outcome, replay = capture(lambda: run(kernel(BACKEND), problem, backward=backward))
    for other in others:
        expected = run(kernel(BACKEND), other, backward=backward)
        assert bool(expected.grads) == backward
        for x, value in zip(tensors(problem), tensors(other), strict=True):
            x.copy_(value)
        replay()
        torch.cuda.synchronize()
        assert same(outcome, expected)


@every_kernel
def test_fifty_repeats_give_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    problem = problem_of(case, dtype)
    expected = run(kernel(BACKEND), problem)
    different = sum(not same(run(kernel(BACKEND), problem), expected) for _ in range(50))
    assert different == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_kernel
def test_a_device_that_is_not_the_current_one(case: Case, dtype: torch.dtype) -> None:
    problem = problem_of(case, dtype)
    expected = run(kernel(BACKEND), problem)
    with torch.cuda.device(0):
        found = run(kernel(BACKEND), problem.to(device="cuda:1"))
    assert found.outputs["spikes"].device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    if torch.cuda.get_device_capability(0) == torch.cuda.get_device_capability(1):
        for name, x in {**expected.outputs, **expected.grads}.items():
            assert torch.equal({**found.outputs, **found.grads}[name].to(x.device), x), name
    else:
        assert error(found.outputs["v"], expected.outputs["v"]) <= 1e-4 * size(expected.outputs["v"])


def stepwise(function: Function) -> Function:
    """The same call as a roll-out of single steps that carry the state."""

    def call(current: torch.Tensor, *weights: torch.Tensor, **options: object) -> tuple[torch.Tensor, ...]:
        steps: list[tuple[torch.Tensor, ...]] = []
        for x in current.split(1):
            steps.append(function(x, *weights, **options))
            options |= {"spikes": steps[-1][0][0], "v": steps[-1][1]}
        spikes, v, v_seq = zip(*steps, strict=True)
        return torch.cat(spikes), v[-1], torch.cat(v_seq)

    return call


@every_kernel
def test_rollout_of_single_steps(case: Case, dtype: torch.dtype) -> None:
    """Forward the same bits; backward the same but for the order of sums over the steps."""
    problem = problem_of(case, dtype)
    expected, found = run(kernel(BACKEND), problem), run(stepwise(kernel(BACKEND)), problem)
    assert all(torch.equal(found.outputs[name], expected.outputs[name]) for name in OUTPUTS)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for name, x in expected.grads.items():
        assert error(found.grads[name], x) <= tolerance * size(x), name


def peak_bytes(function: Function, problem: Problem) -> int:
    """The most bytes that forward and backward hold beside their inputs."""
    run(function, problem)  # libraries keep workspaces from their first call on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(function, problem)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_peak_memory_of_a_paper_layer(record_property: Callable[[str, object], None]) -> None:
    """Outputs, what is saved, gradients and scratch together, per neuron and step, beside eager PyTorch's."""
    case = dataclasses.replace(PAPER, store_v_seq=False, upstream=("spikes",), initial_v=False, initial_spikes=False)
    problem = problem_of(case, torch.float32)
    ours, theirs = (peak_bytes(function, problem) / case.neurons for function in (kernel(BACKEND), eager))
    record_property("peak_bytes_per_neuron_and_step", ours)
    record_property("peak_bytes_per_neuron_and_step_eager", theirs)
    print(f"peak bytes per neuron and step: {ours:.1f}, eager PyTorch {theirs:.1f}")
    # the spikes, u and the gradient of the current alone are 4 bytes each
    assert 12 <= ours < theirs
