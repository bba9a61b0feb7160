"""Gradients of every neuron by finite differences: float64, soft spikes; parameters, thresholds and states too."""

from __future__ import annotations

import dataclasses
import itertools

import oracle
import pytest
import torch
from oracle import ELEMENTWISE, NEURONS, Case, call, error, kernel, make_problem, run, size
from torch import Tensor

from stc_cuda.config import SURROGATE_ALPHA

pytestmark = pytest.mark.usefixtures("poison")

FAMILY = [name for name in NEURONS if name != "stc_lif"]  # test_stc_gradcheck.py has that one
SOFT = Case(steps=3, samples=2, groups=2, in_group=2, height=3, width=2, spiking=False, gate_gain=1.0, seed=21)
FROZEN = ("gate_alpha", "gate_beta", "gate_gamma")  # constants to the gradient


def case_of(neuron: str, **changes: object) -> Case:
    upstream = ("spikes", *NEURONS[neuron].states, "v_seq")
    return dataclasses.replace(SOFT, neuron=neuron, upstream=upstream, learnt_threshold=True, **changes)  # type: ignore[arg-type]


def gradcheck(case: Case, backend: str, fast_mode: bool) -> None:
    problem = make_problem(case, torch.float64).to(device=oracle.device_of(backend))
    names = [name for name, x in problem.inputs.items() if x is not None and name not in FROZEN]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = {**problem.inputs, **dict(zip(names, tensors, strict=True))}
        return tuple(call(kernel(backend, case.neuron), given, problem.options).values())

    tensors = [problem.inputs[name].clone().requires_grad_() for name in names]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(function, tensors, atol=1e-6, rtol=1e-5, fast_mode=fast_mode)


def is_slow(backend: str, neuron: str) -> bool:
    return backend == oracle.EMULATED or NEURONS[neuron].circuit


@pytest.mark.parametrize("neuron", FAMILY)
@pytest.mark.parametrize("v_reset", [None, -0.3])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_input(backend: str, neuron: str, v_reset: float | None, per_channel: bool) -> None:
    case = case_of(neuron, v_reset=v_reset, per_channel=per_channel)
    gradcheck(case, backend, fast_mode=is_slow(backend, neuron))


@pytest.mark.parametrize("neuron", FAMILY)
@pytest.mark.parametrize("surrogate", SURROGATE_ALPHA)
def test_every_surrogate(backend: str, neuron: str, surrogate: str) -> None:
    small = {"steps": 2, "samples": 1, "height": 2} if is_slow(backend, neuron) else {}
    gradcheck(case_of(neuron, surrogate=surrogate, **small), backend, fast_mode=True)


@pytest.mark.parametrize("neuron", ELEMENTWISE)
@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_every_rank(backend: str, neuron: str, dimensions: int) -> None:
    gradcheck(case_of(neuron, dimensions=dimensions), backend, fast_mode=True)


@pytest.mark.parametrize(
    ("neuron", "changes"),
    [
        ("lif", {"tau": 5.0, "decay_input": False, "v_reset": 0.2}),
        ("plif", {"textbook": True, "v_reset": 0.2}),
        ("stc_plif", {"kernel": 5, "norm_groups": 1}),
        ("stc_lmh", {"kernel": 5, "norm_groups": 1, "v_reset": 0.2}),
        ("stc_plif", {"current_norm": False, "temporal_norm": False, "spatial_norm": False}),
        ("stc_lmh", {"current_norm": False, "temporal_norm": False, "spatial_norm": False}),
        *((neuron, {"initial_v": False, "initial_spikes": False}) for neuron in FAMILY),
        *((neuron, {"layout": "channels_last", "learnt_threshold": False}) for neuron in FAMILY),
    ],
    ids=str,
)
def test_variants(backend: str, neuron: str, changes: dict[str, object]) -> None:
    case = dataclasses.replace(case_of(neuron), **changes)  # type: ignore[arg-type]
    gradcheck(case, backend, fast_mode=True)


def compare(case: Case, backend: str) -> dict[str, Tensor]:
    """With autograd of the reference, which knows what finite differences do not see; the gradients."""
    problem = make_problem(case, torch.float64)
    expected = run(oracle.reference(case.neuron), problem)
    found = run(kernel(backend, case.neuron), problem.to(device=oracle.device_of(backend)))
    for name, grad in expected.grads.items():
        assert error(found.grads[name], grad) <= 1e-10 * size(grad), name
    return expected.grads


@pytest.mark.parametrize("neuron", FAMILY)
@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize("v_reset", [None, -0.3])
def test_detached_paths(backend: str, neuron: str, v_reset: float | None, spiking: bool) -> None:
    """A detach is invisible to finite differences; autograd of the reference knows it."""
    circuit = NEURONS[neuron].circuit
    currents = []
    for detach_reset in (False, True):
        for gradient_detach in (False, True) if circuit else (False,):
            case = case_of(
                neuron, v_reset=v_reset, spiking=spiking, detach_reset=detach_reset, gradient_detach=gradient_detach
            )
            currents.append(compare(case, backend)["current"])
    for one, other in itertools.pairwise(currents):
        assert error(one, other) > 1e-3 * size(one)


@pytest.mark.parametrize("neuron", FAMILY)
def test_gradients_of_single_inputs(backend: str, neuron: str) -> None:
    """Asking for one gradient gives what asking for all gives."""
    problem = make_problem(case_of(neuron), torch.float64).to(device=oracle.device_of(backend))
    function = kernel(backend, neuron)
    everything = run(function, problem).grads
    for name in everything:
        if name in FROZEN:
            continue
        leaf = problem.inputs[name].clone().requires_grad_()  # type: ignore[union-attr]
        outputs = call(function, {**problem.inputs, name: leaf}, problem.options)
        used = [n for n, x in outputs.items() if x.requires_grad]
        (alone,) = torch.autograd.grad([outputs[n] for n in used], leaf, [problem.upstream[n] for n in used])
        # a GPU has a kernel of its own for gradients of parameters, compiled with other fused multiply-adds
        assert error(alone, everything[name]) <= (1e-14 if backend == "cuda" else 0) * size(everything[name]), name
