"""float16 and bfloat16 currents: the state stays float32, so the answer is that of float32 on the same values.

Every input is first rounded to the 16-bit type. Both runs then compute with the same numbers, and only what is stored
in 16 bits (spikes, the gradients of the current and of the parameters) may differ, by its own rounding alone.
"""

from __future__ import annotations

import dataclasses

import oracle
import pytest
import torch
from oracle import NEURONS, Case, Problem, make_problem, random_case_of
from torch import Tensor

import stc_cuda

SHORT = [torch.float16, torch.bfloat16]
# Names of inputs, outputs and upstream gradients that are float32 whatever the current is.
STATE = ("v", "dendrite", "v_seq")

# Sizes that the persistent kernels take and others, aligned rows and ragged ones.
CASES = [
    Case(seed=701, in_group=16, kernel=5, height=8, width=16, steps=3, drive=0.4),
    Case(seed=702, in_group=8, kernel=3, height=7, width=11, steps=3, v_reset=0.1, gradient_detach=True),
    Case(seed=703, in_group=16, kernel=3, height=6, width=18, steps=2, layout="channels_last"),
    Case(seed=704, in_group=8, kernel=5, height=5, width=8, steps=2, layout="sliced", initial_spikes=False),
    Case(seed=705, in_group=3, kernel=3, height=4, width=5, steps=3, surrogate="atan", detach_reset=True),
    Case(seed=706, in_group=16, kernel=3, height=4, width=8, steps=3, current_norm=False, temporal_norm=False),
    Case(seed=707, in_group=4, kernel=3, height=4, width=4, steps=3, spiking=False),
]


def rounded(problem: Problem, dtype: torch.dtype, parameters: torch.dtype) -> Problem:
    """The problem stored as ``dtype``, with weights and norms as ``parameters``, both rounded to ``dtype``."""

    def store(name: str, x: Tensor | None) -> Tensor | None:
        if x is None or name in STATE:
            return x
        is_parameter = name not in ("current", "spikes") and name in problem.inputs
        near = torch.empty_like(x, dtype=dtype).copy_(x)
        return near.to(parameters) if is_parameter else near

    inputs = {name: store(name, x) for name, x in problem.inputs.items()}
    upstream = {name: store(name, x) for name, x in problem.upstream.items()}
    return dataclasses.replace(problem, inputs=inputs, upstream=upstream)  # type: ignore[arg-type]


@pytest.mark.parametrize("parameters", ["short", "float32"])
@pytest.mark.parametrize("dtype", SHORT, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=[f"seed{c.seed}" for c in CASES])
def test_equals_float32_on_the_same_values(
    case: Case, dtype: torch.dtype, parameters: str, any_backend: str, poison: None
) -> None:
    check_equal_to_float32(case, dtype, dtype if parameters == "short" else torch.float32, any_backend)


@pytest.mark.parametrize("dtype", SHORT, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("neuron", [name for name in NEURONS if name != "stc_lif"])
def test_every_neuron_equals_float32(neuron: str, dtype: torch.dtype, any_backend: str, poison: None) -> None:
    """Of parameters that are no longer those a layer starts from, whose coefficients 16 bits hold exactly."""
    cases = [random_case_of(neuron, seed) for seed in range(7000, 7040)]
    for case in [case for case in cases if case.multiplications <= 30_000][:4]:
        for parameters in (dtype, torch.float32):
            check_equal_to_float32(case, dtype, parameters, any_backend)


def check_equal_to_float32(case: Case, dtype: torch.dtype, parameters: torch.dtype, backend: str) -> None:
    problem = rounded(make_problem(case, torch.float32), dtype, parameters).to(device=oracle.device_of(backend))
    run = oracle.kernel(backend, case.neuron)
    found = oracle.run(run, problem)
    wide = oracle.run(run, problem.to(dtype=torch.float32))
    for name, x in found.outputs.items():
        assert x.dtype == (torch.float32 if name in STATE else dtype), name
        assert torch.equal(x.float(), wide.outputs[name].to(x.dtype).float()), name
    for name, grad in found.grads.items():
        given = problem.inputs[name]
        assert given is not None
        assert grad.dtype == given.dtype, name
        torch.testing.assert_close(grad, wide.grads[name].to(grad.dtype), rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("dtype", SHORT, ids=["float16", "bfloat16"])
def test_packed_spikes_and_inference(dtype: torch.dtype, backend: str, poison: None) -> None:
    case = dataclasses.replace(CASES[0], upstream=("spikes",))
    problem = rounded(make_problem(case, torch.float32), dtype, dtype).to(device=oracle.device_of(backend))
    run = oracle.kernel(backend)
    with torch.no_grad():
        plain = oracle.call(run, problem.inputs, problem.options)
        packed = oracle.call(run, problem.inputs, {**problem.options, "packed_spikes": True})
    assert torch.equal(stc_cuda.unpack_spikes(packed["spikes"], case.channels, dtype), plain["spikes"])
    assert torch.equal(packed["v"], plain["v"])


@pytest.mark.parametrize("dtype", SHORT, ids=["float16", "bfloat16"])
def test_error_is_below_that_of_eager_in_the_same_precision(dtype: torch.dtype, backend: str) -> None:
    """Against float32, the equations in plain PyTorch with everything in 16 bits are the rival."""
    case = dataclasses.replace(CASES[0], upstream=("spikes", "v"), store_v_seq=True, steps=2, initial_v=False)
    problem = make_problem(case, torch.float32)
    answer = oracle.run(oracle.eager, problem)
    eager = oracle.run(oracle.eager, problem.to(dtype=dtype))
    stored = rounded(problem, dtype, dtype)
    stored = dataclasses.replace(
        stored, upstream={n: x.to(dtype if n == "spikes" else torch.float32) for n, x in stored.upstream.items()}
    )
    found = oracle.run(oracle.kernel(backend), stored.to(device=oracle.device_of(backend)))
    for name in ("v_seq", "v"):
        assert oracle.error(found.outputs[name], answer.outputs[name]) <= 2 * oracle.error(
            eager.outputs[name], answer.outputs[name]
        )
    for name in ("current", "temporal_weight", "spatial_weight"):
        assert oracle.error(found.grads[name], answer.grads[name]) <= 2 * oracle.error(
            eager.grads[name], answer.grads[name]
        )
