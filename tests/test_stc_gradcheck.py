"""Gradients of the kernels by finite differences: float64, soft spikes, every differentiable input."""

from __future__ import annotations

import dataclasses
import itertools

import oracle
import pytest
import torch
from oracle import Case, call, eager, error, kernel, make_problem, run, size
from torch import Tensor

from stc_cuda.config import SURROGATE_ALPHA

BASE = Case(steps=3, samples=2, groups=2, in_group=2, height=3, width=2, kernel=3, spiking=False, gate_gain=1.0)


def gradcheck(case: Case, backend: str, **options: object) -> None:
    problem = make_problem(case, torch.float64).to(device=oracle.device_of(backend))
    names = [name for name, x in problem.inputs.items() if x is not None]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = {**problem.inputs, **dict(zip(names, tensors, strict=True))}
        return tuple(call(kernel(backend), given, problem.options).values())

    tensors = [problem.inputs[name].clone().requires_grad_() for name in names]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(function, tensors, atol=1e-6, rtol=1e-5, **options)


@pytest.mark.parametrize("surrogate", ["sigmoid", "atan"])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("v_reset", [None, -0.3])
def test_every_input(backend: str, v_reset: float | None, kernel_size: int, surrogate: str) -> None:
    case = dataclasses.replace(BASE, v_reset=v_reset, kernel=kernel_size, surrogate=surrogate, seed=kernel_size)
    # Element by element for K = 3, along random directions for K = 5 and where a call takes long.
    gradcheck(case, backend, fast_mode=kernel_size == 5 or backend == oracle.EMULATED)


@pytest.mark.parametrize("surrogate", [name for name in SURROGATE_ALPHA if name not in ("sigmoid", "atan")])
def test_every_surrogate(backend: str, surrogate: str) -> None:
    gradcheck(dataclasses.replace(BASE, surrogate=surrogate, seed=17), backend, fast_mode=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_groups": 1},
        {"norm_groups": 4, "height": 3, "width": 3},
        {"groups": 3, "in_group": 2, "norm_groups": 2},
        {"current_norm": False, "temporal_norm": False, "spatial_norm": False},
        {"current_norm": False},
        {"temporal_norm": False, "v_reset": 0.2},
        {"spatial_norm": False, "kernel": 5},
        {"initial_v": False, "initial_spikes": False},
        {"initial_v": False, "v_reset": 0.0},
        {"store_v_seq": False, "upstream": ("spikes", "v")},
        {"alpha": 1.7, "v_threshold": 0.6, "eps": 1e-2},
        {"steps": 5, "samples": 3, "in_group": 1, "kernel": 1},
        {"in_group": 9, "height": 2, "samples": 1, "groups": 2},
    ],
    ids=str,
)
def test_variants(backend: str, changes: dict[str, object]) -> None:
    gradcheck(dataclasses.replace(BASE, seed=11, **changes), backend, fast_mode=True)


def test_all_at_paper_group_size(backend: str) -> None:
    """16 channels a group and K = 5, where the kernels take their fast paths."""
    case = dataclasses.replace(BASE, groups=2, in_group=16, height=6, width=9, kernel=5, seed=12)
    gradcheck(case, backend, fast_mode=True)


@pytest.mark.parametrize("gradient_detach", [False, True])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [None, -0.3])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_detached_paths(
    backend: str, kernel_size: int, v_reset: float | None, detach_reset: bool, gradient_detach: bool
) -> None:
    """A detach is invisible to finite differences; autograd of the reference knows it."""
    case = dataclasses.replace(
        BASE, kernel=kernel_size, v_reset=v_reset, detach_reset=detach_reset, gradient_detach=gradient_detach, seed=13
    )
    problem = make_problem(case, torch.float64)
    expected = run(eager, problem)
    found = run(kernel(backend), problem.to(device=oracle.device_of(backend)))
    for name, grad in expected.grads.items():
        assert error(found.grads[name], grad) <= 1e-10 * size(grad), name
    if not gradient_detach and not detach_reset:
        gradcheck(case, backend, fast_mode=True)


def test_detaching_changes_the_gradient() -> None:
    """Guards the comparison above: all four modes give different gradients."""
    currents = []
    for gradient_detach, detach_reset in itertools.product([False, True], repeat=2):
        case = dataclasses.replace(BASE, gradient_detach=gradient_detach, detach_reset=detach_reset, seed=13)
        currents.append(run(eager, make_problem(case, torch.float64)).grads["current"])
    for one, other in itertools.combinations(currents, 2):
        assert error(one, other) > 1e-2 * size(one)


def test_gradients_of_single_inputs(backend: str) -> None:
    """Asking for one gradient gives what asking for all gives."""
    problem = make_problem(dataclasses.replace(BASE, seed=14), torch.float64).to(device=oracle.device_of(backend))
    everything = run(kernel(backend), problem).grads
    for name in everything:
        leaf = problem.inputs[name].clone().requires_grad_()  # type: ignore[union-attr]
        outputs = call(kernel(backend), {**problem.inputs, name: leaf}, problem.options)
        (alone,) = torch.autograd.grad(list(outputs.values()), leaf, [problem.upstream[n] for n in outputs])
        assert torch.equal(alone, everything[name]), name
