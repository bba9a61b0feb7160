"""The operators for every circuit neuron, against the equations of csrc/cell.h as plain PyTorch in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

import stc_cuda

pytestmark = pytest.mark.usefixtures("poison")

BACKENDS = ["cpu", pytest.param("cuda_emulated", marks=pytest.mark.emulated)]
COEFFICIENTS = {"stclif": 0, "stcplif": 2, "stclmh": 4}
STATES = {"stclif": 1, "stcplif": 1, "stclmh": 2}
NORMS = ("current", "temporal", "spatial")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_neuron = pytest.mark.parametrize("neuron", list(COEFFICIENTS))


@dataclasses.dataclass(frozen=True)
class Case:
    """Float32 with hard spikes is for the persistent kernels, where 8 or 16 channels a group let them."""

    neuron: str
    in_group: int = 3
    groups: int = 2
    norm_groups: int = 2
    kernel: int = 3
    height: int = 3
    width: int = 4
    steps: int = 3
    samples: int = 2
    v_reset: float | None = None
    surrogate: str = "sigmoid"
    spiking: bool = True
    detach_reset: bool = False
    gradient_detach: bool = False
    norms: bool = True
    states: bool = True
    threshold: bool = True
    dtype: torch.dtype = torch.float64

    @property
    def channels(self) -> int:
        return self.in_group * self.groups

    @property
    def alpha(self) -> float:
        return {"sigmoid": 4.0, "atan": 2.0}[self.surrogate]

    @property
    def options(self) -> tuple[Any, ...]:
        numbers = (self.groups, self.norm_groups, 1e-5, 0.8, self.v_reset)
        return (*numbers, self.surrogate, self.alpha, self.spiking)


Inputs = dict[str, Any]  # a tensor, None, or for the states a list of them
Values = dict[str, Tensor]


def leaves(inputs: Inputs) -> Values:
    """The tensors by name, each state by its number."""
    found = {}
    for name, x in inputs.items():
        for i, y in enumerate(x) if isinstance(x, list) else [("", x)]:
            if y is not None:
                found[f"{name}{i}"] = y
    return found


def draw(case: Case, seed: int) -> Inputs:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0, offset: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=g) * scale + offset).to(dtype)

    real = torch.float64 if case.dtype == torch.float64 else torch.float32
    c, state = case.channels, (case.samples, case.channels, case.height, case.width)
    weight = (c, case.in_group, case.kernel, case.kernel)
    size = 1 / math.sqrt(case.in_group * case.kernel**2)
    inputs: Inputs = {
        "current": normal(case.steps, *state, scale=1.5, offset=0.4, dtype=case.dtype),
        "temporal_weight": normal(*weight, scale=size, dtype=real),
        "spatial_weight": normal(*weight, scale=size, dtype=real),
        "states": [normal(*state, dtype=real) if case.states else None for _ in range(STATES[case.neuron])],
        "spikes": None,
    }
    if case.states:
        spikes = normal(*state)
        inputs["spikes"] = ((spikes > 0.5) if case.spiking else spikes.sigmoid()).to(case.dtype)
    for norm in NORMS:
        inputs[f"{norm}_norm_weight"] = normal(c, scale=0.3, offset=1.0, dtype=real) if case.norms else None
        inputs[f"{norm}_norm_bias"] = normal(c, scale=0.3, dtype=real) if case.norms else None
    inputs["threshold"] = normal(c, scale=0.2, offset=0.9, dtype=real) if case.threshold else None
    count = COEFFICIENTS[case.neuron]
    inputs["coefficients"] = normal(count, c, scale=0.2, offset=0.6, dtype=real) if count else None
    return inputs


def equations(case: Case, x: Inputs) -> tuple[Values, float]:
    """Spikes, v_seq and the states at the end; and how near the threshold a membrane potential came."""
    current = x["current"]
    alpha, shape = case.alpha, current.shape[1:]
    states = [current.new_zeros(shape) if s is None else s for s in x["states"]]
    spikes = current.new_zeros(shape) if x["spikes"] is None else x["spikes"]
    threshold = 0.8 if x["threshold"] is None else x["threshold"][:, None, None]
    k = None if x["coefficients"] is None else x["coefficients"][:, :, None, None]

    def primitive(z: Tensor) -> Tensor:
        if case.surrogate == "sigmoid":
            return (alpha * z).sigmoid()
        return (math.pi / 2 * alpha * z).atan() / math.pi + 0.5

    def normed(y: Tensor, norm: str) -> Tensor:
        if x[f"{norm}_norm_weight"] is None:
            return y
        return F.group_norm(y, case.norm_groups, x[f"{norm}_norm_weight"], x[f"{norm}_norm_bias"], 1e-5)

    sequence, v_seq, nearest = [], [], math.inf
    for step in current:
        before = spikes.detach() if case.gradient_detach else spikes
        gates = [
            1 + normed(F.conv2d(before, x[f"{path}_weight"], padding="same", groups=case.groups), path).tanh()
            for path in ("temporal", "spatial")
        ]
        v, driven = gates[0] * states[0], gates[1] * normed(step, "current")
        if case.neuron == "stclif":
            u = v + driven
        elif case.neuron == "stcplif":
            u = k[0] * v + k[1] * driven
        else:
            dendrite = k[0] * states[1] + k[1] * states[0] + driven
            u = k[2] * dendrite + k[3] * v
            states[1] = dendrite
        soft = primitive(u - threshold)
        nearest = min(nearest, float((u - threshold).detach().abs().min()) if u.numel() else nearest)
        # a hard spike has the derivative of the soft one
        spikes = (u >= threshold).to(u.dtype) + (soft - soft.detach()) if case.spiking else soft
        reset = spikes.detach() if case.detach_reset else spikes
        states = [
            u - threshold * reset if case.v_reset is None else u * (1 - reset) + case.v_reset * reset,
            *states[1:],
        ]
        sequence.append(spikes)
        v_seq.append(states[0])
    ends = {f"states{i}": s for i, s in enumerate(states)}
    return {"spikes": torch.stack(sequence), "v_seq": torch.stack(v_seq), **ends}, nearest


def operators(backend: str) -> Any:
    return torch.ops.stc_cuda if backend == "cpu" else torch.ops.stc_cuda_emulated


def arguments(case: Case, inputs: Inputs, upstream: Values, saved: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Of stc_backward."""
    grads = (upstream["spikes"], [upstream[f"states{i}"] for i in range(STATES[case.neuron])], upstream["v_seq"])
    flags = (case.detach_reset, case.gradient_detach, True, True)
    return (case.neuron, *grads, *inputs.values(), *saved, *case.options, *flags)


def run(backend: str, case: Case, inputs: Inputs, upstream: Values) -> tuple[Values, Values]:
    """Outputs and gradients of the operators."""
    op = operators(backend)
    spikes, states, v_seq, *saved = op.stc_forward(case.neuron, *inputs.values(), *case.options, True, False, True)
    outputs = {"spikes": spikes, "v_seq": v_seq, **{f"states{i}": s for i, s in enumerate(states)}}
    found = op.stc_backward(*arguments(case, inputs, upstream, tuple(saved)))
    return outputs, {name: x for name, x in leaves(dict(zip(inputs, found, strict=True))).items() if x.numel()}


def problem(case: Case) -> tuple[Inputs, Values, Values, Values]:
    """Inputs and upstream gradients of the case's types; outputs and gradients in float64.

    Float32 gets inputs of which no membrane potential is near the threshold, where it might round to the other side.
    """
    for seed in range(100):
        inputs = draw(case, seed)
        exact = tree_map_only(Tensor, lambda x: x.clone().double(), inputs)
        wanted = {name: x.requires_grad_() for name, x in leaves(exact).items()}
        outputs, nearest = equations(case, exact)
        if case.dtype == torch.float64 or nearest > 3e-5:
            break
    g, real = torch.Generator().manual_seed(7), inputs["temporal_weight"].dtype
    upstream = {
        name: torch.randn(x.shape, generator=g).to(case.dtype if name == "spikes" else real)
        for name, x in outputs.items()
    }
    loss = sum((x * upstream[name].double()).sum() for name, x in outputs.items())
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    expected = {
        name: torch.zeros_like(x) if grad is None else grad
        for (name, x), grad in zip(wanted.items(), grads, strict=True)
    }
    if case.gradient_detach:
        expected.pop("spikes", None)
    if not case.threshold:
        expected["threshold"] = None
    return inputs, upstream, {name: x.detach() for name, x in outputs.items()}, expected


def check(backend: str, case: Case) -> None:
    inputs, upstream, outputs, grads = problem(case)
    found, found_grads = run(backend, case, inputs, upstream)
    allowed = {torch.float64: 1e-10, torch.float32: 2e-5}.get(case.dtype, 2e-5)
    short = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(case.dtype, 0.0)
    assert torch.equal(found["spikes"].double(), outputs["spikes"]) or not case.spiking
    complaints = []

    def compare(kind: str, found: Values, expected: Values) -> None:
        missing = {name for name, x in expected.items() if x is not None and name not in found}
        missing -= {f"states{i}" for i in range(2)} if not case.states and kind == "gradient" else set()
        if missing:
            complaints.append(f"{kind}: no {missing}")
        for name, x in found.items():
            wanted = expected.get(name)
            if wanted is None:
                continue
            size = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
            error = float((x.double() - wanted).abs().max()) / size if wanted.numel() else 0.0
            limit = max(allowed, short if x.dtype == case.dtype else 0.0)
            if x.shape != wanted.shape or not error <= limit:
                complaints.append(f"{kind} of {name}: off by {error:.3g} of the largest, allowed {limit:.3g}")

    compare("value", found, outputs)
    compare("gradient", found_grads, grads)
    assert not complaints, "\n".join(complaints)


@each_backend
@each_neuron
@pytest.mark.parametrize(
    "flags", list(itertools.product([None, -0.2], *[[False, True]] * 3)), ids=lambda flags: "-".join(map(str, flags))
)
def test_every_mode_in_float64(backend: str, neuron: str, flags: tuple[Any, ...]) -> None:
    v_reset, detach_reset, gradient_detach, spiking = flags
    check(backend, Case(neuron, 3, 2, v_reset=v_reset, detach_reset=detach_reset, gradient_detach=gradient_detach,
                        spiking=spiking, surrogate="atan" if detach_reset else "sigmoid"))  # fmt: skip


@each_backend
@each_neuron
@pytest.mark.parametrize(
    "flags", list(itertools.product([None, -0.2], *[[False, True]] * 2)), ids=lambda flags: "-".join(map(str, flags))
)
def test_every_mode_in_float32(backend: str, neuron: str, flags: tuple[Any, ...]) -> None:
    v_reset, detach_reset, gradient_detach = flags
    case = Case(neuron, 8, 2, height=4, width=6, dtype=torch.float32)
    check(backend, dataclasses.replace(case, v_reset=v_reset, detach_reset=detach_reset,
                                       gradient_detach=gradient_detach))  # fmt: skip


SHAPES = [
    Case("", in_group=5, groups=1, norm_groups=1, kernel=1, height=1, width=7, steps=4),
    Case("", in_group=2, groups=3, norm_groups=2, kernel=5, height=4, width=3, v_reset=0.0),
    Case("", in_group=4, groups=1, norm_groups=1, states=False, threshold=False),
    Case("", in_group=4, groups=2, norms=False, samples=1, v_reset=0.1),
    Case("", in_group=16, groups=1, norm_groups=1, kernel=5, height=5, width=18, dtype=torch.float32),
    Case("", in_group=16, groups=1, norm_groups=1, height=20, width=3, samples=1, v_reset=-0.1, dtype=torch.float32),
    Case("", in_group=8, kernel=5, height=3, width=3, states=False, threshold=False, dtype=torch.float32),
    Case("", in_group=8, groups=1, norm_groups=1, kernel=1, dtype=torch.float32),
    Case("", in_group=16, groups=1, norm_groups=1, dtype=torch.float16, steps=2),
    Case("", in_group=3, dtype=torch.bfloat16, steps=2),
]


@each_backend
@each_neuron
@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_shapes(backend: str, neuron: str, shape: Case) -> None:
    check(backend, dataclasses.replace(shape, neuron=neuron))


@pytest.mark.emulated
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("gradient_detach", [False, True])
def test_second_state_on_chip_and_off(near: bool, gradient_detach: bool) -> None:
    """With as much shared memory as the kernels need, and with room for one more array."""
    from cuda_emulation import backend

    # without the second state on chip as large a map as there is: the weight gradient needs room, too
    side = 16 if near else 32
    case = Case("stclmh", 16, 1, 1, 3, side, side, 2, 1, gradient_detach=gradient_detach, dtype=torch.float32)
    shape = (case.steps, case.samples, case.channels, case.height, case.width)
    options = {"neuron": "stclmh", "gradient_detach": gradient_detach, "device": "cuda"}
    least = 0
    while not all(
        (plan := stc_cuda.kernel_plan(shape, 3, 1, backward=b, shared_memory=least, **options)).kernel == "persistent"
        and plan.near_second == near
        for b in (False, True)
    ):
        least += 256
    emulation = backend.load()
    try:
        emulation.set_shared_limit(least)
        check("cuda_emulated", case)
    finally:
        emulation.set_shared_limit(227 * 1024)


@pytest.mark.emulated
@pytest.mark.parametrize("neuron", ["stcplif", "stclmh"])
def test_largest_map(neuron: str) -> None:
    """Where a thread owns most."""
    check("cuda_emulated", Case(neuron, 16, 1, 1, 3, 32, 31, steps=2, samples=1, dtype=torch.float32))


@each_backend
@each_neuron
def test_opcheck(backend: str, neuron: str) -> None:
    for case in (Case(neuron), Case(neuron, 8, states=False, gradient_detach=True, dtype=torch.float32)):
        inputs, upstream, *_ = problem(case)
        op = operators(backend)
        forward = (neuron, *inputs.values(), *case.options)
        saved = op.stc_forward(*forward, True, False, True)[3:]
        for flags in ((True, False, True), (False, True, False)):
            torch.library.opcheck(op.stc_forward.default, (*forward, *flags))
        backward = arguments(case, inputs, upstream, saved)
        for learns in ((True, True), (False, False), (True, False)):
            torch.library.opcheck(op.stc_backward.default, (*backward[:-2], *learns))


@each_backend
@each_neuron
@pytest.mark.parametrize("case", [Case("", 3), Case("", 8, height=4, dtype=torch.float32)], ids=["general", "fours"])
def test_gradients_that_nobody_wants_change_no_other(backend: str, neuron: str, case: Case) -> None:
    case = dataclasses.replace(case, neuron=neuron)
    inputs, upstream, *_ = problem(case)
    op = operators(backend)
    saved = op.stc_forward(neuron, *inputs.values(), *case.options, True, False, True)[3:]
    backward = arguments(case, inputs, upstream, saved)
    everything = op.stc_backward(*backward)
    nothing = op.stc_backward(*backward[:-2], False, False)
    for name, x, y in zip(inputs, everything, nothing, strict=True):
        if name in ("threshold", "coefficients"):
            assert y.numel() == 0
        else:
            assert all(map(torch.equal, x, y)) if isinstance(x, list) else torch.equal(x, y)


@each_neuron
def test_number_of_threads_changes_no_bit(neuron: str, threads: None) -> None:
    case = Case(neuron, 3, 4, height=6, width=7, samples=3, dtype=torch.float32)
    inputs, upstream, *_ = problem(case)
    torch.set_num_threads(1)
    one = run("cpu", case, inputs, upstream)
    torch.set_num_threads(3)
    many = run("cpu", case, inputs, upstream)
    for x, y in zip(one, many, strict=True):
        assert all(torch.equal(x[name], y[name]) for name in x)
