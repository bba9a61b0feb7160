"""The oracle itself, against transcriptions of the equations that share nothing with it."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from oracle import OUTPUTS, Case, Problem, call, eager, error, make_problem, run, size
from torch import Tensor

from stc_cuda import reference

CASES = [
    Case(seed=0, steps=3, samples=2, groups=2, in_group=2, height=3, width=4, kernel=3),
    Case(seed=1, steps=3, samples=1, groups=2, in_group=3, norm_groups=3, height=2, width=3, kernel=5, v_reset=-0.2),
    Case(seed=2, steps=2, groups=1, in_group=2, height=1, width=4, kernel=3, current_norm=False, temporal_norm=False),
    Case(seed=3, steps=4, groups=3, in_group=1, norm_groups=1, height=2, width=2, kernel=1, spatial_norm=False),
    Case(seed=4, steps=3, groups=2, in_group=2, height=3, width=3, initial_v=False, initial_spikes=False, v_reset=0.0),
    Case(seed=5, steps=3, groups=2, in_group=2, height=3, width=3, spiking=False, surrogate="atan", alpha=1.5),
    Case(seed=6, steps=3, groups=2, in_group=2, height=3, width=3, spiking=False, v_threshold=0.6, v_reset=0.3),
]


# --- forward: loops over scalars ------------------------------------------------------------------------------------


def loop_conv(s: np.ndarray, weight: np.ndarray, groups: int) -> np.ndarray:
    channels, height, width = s.shape
    in_group, k = weight.shape[1], weight.shape[2]
    out = np.zeros_like(s)
    for o, y, x in itertools.product(range(channels), range(height), range(width)):
        first = o // (channels // groups) * in_group
        for i, dy, dx in itertools.product(range(in_group), range(k), range(k)):
            row, column = y + dy - k // 2, x + dx - k // 2
            if 0 <= row < height and 0 <= column < width:
                out[o, y, x] += weight[o, i, dy, dx] * s[first + i, row, column]
    return out


def loop_norm(x: np.ndarray, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> np.ndarray:
    if weight is None or bias is None:
        return x
    out = np.empty_like(x)
    in_group = x.shape[0] // groups
    for g in range(groups):
        part = x[g * in_group : (g + 1) * in_group]
        mean = sum(part.flat) / part.size
        variance = sum((value - mean) ** 2 for value in part.flat) / part.size
        for c in range(g * in_group, (g + 1) * in_group):
            out[c] = (x[c] - mean) / math.sqrt(variance + eps) * weight[c].item() + bias[c].item()
    return out


def loop_spike(z: float, case: Case) -> float:
    if case.spiking:
        return 1.0 if z >= 0 else 0.0
    if case.surrogate == "sigmoid":
        return 1 / (1 + math.exp(-(4.0 if case.alpha is None else case.alpha) * z))
    return math.atan(math.pi / 2 * (2.0 if case.alpha is None else case.alpha) * z) / math.pi + 0.5


def loop_stc(problem: Problem) -> dict[str, np.ndarray]:
    case, x = problem.case, problem.inputs
    current = x["current"].numpy()
    norm_groups = case.norm_groups or case.groups
    spikes, v_seq = np.empty_like(current), np.empty_like(current)
    for n in range(case.samples):
        v = np.zeros(current.shape[2:]) if x["v"] is None else x["v"][n].numpy()
        s = np.zeros(current.shape[2:]) if x["spikes"] is None else x["spikes"][n].numpy()
        for t in range(case.steps):

            def normed(name: str, values: np.ndarray) -> np.ndarray:
                return loop_norm(values, x[f"{name}_norm_weight"], x[f"{name}_norm_bias"], norm_groups, case.eps)

            a = normed("temporal", loop_conv(s, x["temporal_weight"].numpy(), case.groups))
            b = normed("spatial", loop_conv(s, x["spatial_weight"].numpy(), case.groups))
            i = normed("current", current[t, n])
            u = (1 + np.tanh(a)) * v + (1 + np.tanh(b)) * i
            s = np.vectorize(lambda value: loop_spike(value - case.v_threshold, case), otypes=[np.float64])(u)
            v = u - case.v_threshold * s if case.v_reset is None else u * (1 - s) + case.v_reset * s
            spikes[t, n], v_seq[t, n] = s, v
    return {"spikes": spikes, "v": v_seq[-1], "v_seq": v_seq}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_equals_loops_over_scalars(case: Case) -> None:
    problem = make_problem(case, torch.float64)
    found = call(eager, problem.inputs, problem.options)
    expected = loop_stc(problem)
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], torch.from_numpy(expected[name]), rtol=1e-12, atol=1e-12)
    if case.spiking:
        assert 0 < expected["spikes"].mean() < 1


# --- gradients ------------------------------------------------------------------------------------------------------


def straight_through(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The equations again, with unfolded convolutions, and spikes as primitive + constant: p + (s - p).detach()."""
    case, x = problem.case, problem.inputs
    norm_groups = case.norm_groups or case.groups
    k, c, size_hw = case.kernel, case.channels, (case.height, case.width)
    alpha = {"sigmoid": 4.0, "atan": 2.0}[case.surrogate] if case.alpha is None else case.alpha

    def conv(s: Tensor, weight: Tensor) -> Tensor:
        patches = torch.nn.functional.unfold(s, k, padding=k // 2).unflatten(1, (case.groups, -1))
        kernels = weight.reshape(case.groups, -1, case.in_group * k * k)
        return torch.einsum("goi,ngip->ngop", kernels, patches).reshape(-1, c, *size_hw)

    def norm(values: Tensor, name: str) -> Tensor:
        if x[f"{name}_norm_weight"] is None:
            return values
        grouped = values.reshape(values.shape[0], norm_groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + case.eps).sqrt()
        weight, bias = x[f"{name}_norm_weight"], x[f"{name}_norm_bias"]
        return scaled.reshape(values.shape) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)

    v = torch.zeros_like(x["current"][0]) if x["v"] is None else x["v"]
    s = torch.zeros_like(v) if x["spikes"] is None else x["spikes"]
    spikes, potentials = [], []
    for t in range(case.steps):
        seen = s.detach() if case.gradient_detach else s
        gate_a = 1 + norm(conv(seen, x["temporal_weight"]), "temporal").tanh()
        gate_b = 1 + norm(conv(seen, x["spatial_weight"]), "spatial").tanh()
        u = gate_a * v + gate_b * norm(x["current"][t], "current")
        z = alpha * (u - case.v_threshold)
        p = 1 / (1 + (-z).exp()) if case.surrogate == "sigmoid" else (math.pi / 2 * z).atan() / math.pi + 1 / 2
        s = p + ((u >= case.v_threshold).double() - p).detach() if case.spiking else p
        reset = s.detach() if case.detach_reset else s
        v = u - case.v_threshold * reset if case.v_reset is None else u + (case.v_reset - u) * reset
        spikes.append(s)
        potentials.append(v)
    return torch.stack(spikes), v, torch.stack(potentials)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("gradient_detach", [False, True])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_gradients_equal_a_straight_through_transcription(
    case: Case, gradient_detach: bool, detach_reset: bool
) -> None:
    case = dataclasses.replace(case, gradient_detach=gradient_detach, detach_reset=detach_reset)
    problem = make_problem(case, torch.float64)
    found = run(eager, problem)
    leaves = {name: None if x is None else x.clone().requires_grad_() for name, x in problem.inputs.items()}
    outputs = dict(zip(OUTPUTS, straight_through(dataclasses.replace(problem, inputs=leaves)), strict=True))
    loss = sum((outputs[name] * problem.upstream[name]).sum() for name in OUTPUTS)
    loss.backward()
    for name, x in leaves.items():
        if x is not None:
            expected = torch.zeros_like(x) if x.grad is None else x.grad
            assert error(found.grads[name], expected) <= 1e-12 * (1 + size(expected)), name


@pytest.mark.parametrize("case", [c for c in CASES if c.seed in (0, 1, 2, 5, 6)], ids=str)
def test_gradcheck_with_soft_spikes(case: Case) -> None:
    case = dataclasses.replace(case, spiking=False, height=2, width=2)
    problem = make_problem(case, torch.float64)
    names = [name for name, x in problem.inputs.items() if x is not None]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = {**problem.inputs, **dict(zip(names, tensors, strict=True))}
        return tuple(call(eager, given, problem.options).values())

    tensors = [problem.inputs[name].clone().requires_grad_() for name in names]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(function, tensors, atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("surrogate", sorted(reference.DEFAULT_ALPHA))
@pytest.mark.parametrize("alpha", [0.7, 4.0])
def test_surrogate_is_the_slope_of_its_primitive(surrogate: str, alpha: float) -> None:
    z = torch.linspace(-3, 3, 101, dtype=torch.float64).requires_grad_()
    spikes = reference.fire(z, surrogate, alpha, spiking=True)
    (slope,) = torch.autograd.grad(spikes.sum(), z)
    step = 1e-6
    with torch.no_grad():
        rise = reference.primitive(z + step, surrogate, alpha) - reference.primitive(z - step, surrogate, alpha)
    away = z.detach().abs() > 1e-3  # from the cusp that the derivatives of some have at 0
    torch.testing.assert_close(slope[away], (rise / (2 * step))[away], rtol=1e-7, atol=1e-8)
    assert torch.equal(spikes.detach(), (z.detach() >= 0).double())
    assert spikes[50] == 1  # a neuron exactly at the threshold spikes


def test_surrogate_values_by_hand() -> None:
    at_threshold = torch.zeros(1, dtype=torch.float64).requires_grad_()
    slopes = {
        "sigmoid": 4 / 4,
        "atan": 2 / 2,
        "piecewise_quadratic": 1.0,
        "piecewise_exp": 1 / 2,
        "softsign": 2 / 2,
        "superspike": 1.0,
        "erf": 2 / math.sqrt(math.pi),
        "rect": 1.0,
        "fast_sigmoid": 1.0,
    }
    assert slopes.keys() == reference.DEFAULT_ALPHA.keys()
    for surrogate, slope in slopes.items():
        alpha = reference.DEFAULT_ALPHA[surrogate]
        (grad,) = torch.autograd.grad(reference.fire(at_threshold, surrogate, alpha, spiking=True).sum(), at_threshold)
        assert grad.item() == pytest.approx(slope, rel=1e-15)
        assert reference.primitive(at_threshold, surrogate, alpha).item() == 0.5
    far = torch.tensor([1e9], dtype=torch.float64)
    assert reference.primitive(far, "atan", 2.0).item() == pytest.approx(1.0, abs=1e-9)
    # sigmoid'(1) with alpha 4: 4 e^-4 / (1 + e^-4)^2
    one = torch.ones(1, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(reference.fire(one, "sigmoid", 4.0, spiking=True).sum(), one)
    assert grad.item() == pytest.approx(4 * math.exp(-4) / (1 + math.exp(-4)) ** 2, rel=1e-14)


def test_strictness_changes_nothing_but_equality() -> None:
    z = torch.tensor([-1e-300, 0.0, 1e-300], dtype=torch.float64)
    assert reference.fire(z, "rect").tolist() == [0, 1, 1]
    assert reference.fire(z, "rect", strict=True).tolist() == [0, 0, 1]
    soft = reference.fire(z, "rect", spiking=False)
    assert torch.equal(reference.fire(z, "rect", spiking=False, strict=True), soft)


def test_a_callable_makes_the_spikes_itself() -> None:
    z = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    assert torch.equal(reference.fire(z, torch.square, alpha=3.0, spiking=False, strict=True), z.square())
