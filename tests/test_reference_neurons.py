"""The oracle of every neuron, against numpy loops over scalars that share nothing with it, and known special cases."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from test_reference import loop_conv, loop_norm
from torch import Tensor

from stc_cuda import reference

GROUPS, KERNEL = 2, 3
LMH = ("dendrite_decay", "soma_to_dendrite", "dendrite_to_soma", "soma_decay")
NORMS = ("current_norm", "temporal_norm", "spatial_norm")


# --- transcriptions: one step of one neuron, s, v, d = step(x, s, v, d, p) -------------------------------------------


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def fired(u: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    """Soft reset subtracts the threshold, hard reset sets the potential."""
    if u < p["v_threshold"]:
        return 0.0, u, d
    return 1.0, u - p["v_threshold"] if p.get("v_reset") is None else p["v_reset"], d


def scalar_integrate_fire(x: float, s: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    return fired(v + x, d, p)


def scalar_lif(x: float, s: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    rest = p.get("v_reset") or 0.0
    if p.get("decay_input", True):
        return fired(v + (x - (v - rest)) / p.get("tau", 2.0), d, p)
    return fired(v - (v - rest) / p.get("tau", 2.0) + x, d, p)


def scalar_plif(x: float, s: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    rest, w = p.get("v_reset") or 0.0, p["decay_logit"]
    gain = 1 - sig(w) if p.get("textbook", False) else 1 - w
    return fired(sig(w) * v + (1 - sig(w)) * rest + gain * x, d, p)


def scalar_lmh(x: float, s: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    d = (sig(p["dendrite_decay"]) - 0.5) * d + (sig(p["soma_to_dendrite"]) - 0.5) * v + x
    return fired((sig(p["dendrite_to_soma"]) + 0.5) * d + (sig(p["soma_decay"]) + 0.5) * v, d, p)


def scalar_tclif(x: float, s: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    d += x - sig(p["soma_to_dendrite"]) * v - p["reset_gain"] * s
    v += sig(p["dendrite_to_soma"]) * d - p["v_threshold"] * s
    return float(v >= p["v_threshold"]), v, d


def scalar_glif(x: float, s: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    al, be, ga = sig(p["gate_alpha"]), sig(p["gate_beta"]), sig(p["gate_gamma"])
    decayed = (1 - al * (1 - sig(p["tau"]))) * v * (1 - ga * s)
    u = decayed - (1 - al) * sig(p["leak"]) + x * (1 - be * (1 - sig(p["conduct"]))) - (1 - ga) * sig(p["reset"]) * s
    return float(u > sig(p["threshold"])), u, d


def gated_lif(x: float, a: float, b: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    return fired((1 + math.tanh(a)) * v + (1 + math.tanh(b)) * x, d, p)


def gated_plif(x: float, a: float, b: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    lam = sig(p["decay_logit"])
    mu = 1 - lam
    return fired(lam * (1 + math.tanh(a)) * v + mu * (1 + math.tanh(b)) * x, d, p)


def gated_lmh(x: float, a: float, b: float, v: float, d: float, p: dict[str, Any]) -> tuple[float, float, float]:
    d = d * (sig(p["dendrite_decay"]) - 0.5) + v * (sig(p["soma_to_dendrite"]) - 0.5) + (1 + math.tanh(b)) * x
    u = d * (sig(p["dendrite_to_soma"]) + 0.5) + (1 + math.tanh(a)) * v * (sig(p["soma_decay"]) + 0.5)
    return fired(u, d, p)


@dataclass(frozen=True)
class Neuron:
    """A function of the reference, with its parameters, its states in the order it returns them, and its loop."""

    name: str
    scalar: Callable[..., tuple[float, float, float]]
    parameters: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    states: tuple[str, ...] = ("v",)
    recurrent: bool = False
    gated: bool = False
    resets: bool = True
    has_threshold: bool = True
    detached: bool = False
    strict: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    def __call__(self, given: dict[str, Any]) -> dict[str, Tensor]:
        """Outputs by name."""
        outputs = getattr(reference, self.name)(**self.options, **given)
        return dict(zip(("spikes", *self.states, "v_seq"), outputs, strict=False))


ELEMENTWISE = [
    Neuron("integrate_fire", scalar_integrate_fire),
    Neuron("lif", scalar_lif),
    Neuron("lif", scalar_lif, options={"tau": 3.0, "decay_input": False}),
    Neuron("plif", scalar_plif, parameters=("decay_logit",)),
    Neuron("plif", scalar_plif, parameters=("decay_logit",), options={"textbook": True}),
    Neuron("lmh", scalar_lmh, parameters=LMH, states=("v", "dendrite"), detached=True),
    Neuron(
        "tclif",
        scalar_tclif,
        parameters=("soma_to_dendrite", "dendrite_to_soma", "reset_gain"),
        states=("v", "dendrite"),
        recurrent=True,
        resets=False,
        detached=True,
    ),
    Neuron(
        "glif",
        scalar_glif,
        parameters=("tau", "threshold", "leak", "conduct", "reset"),
        frozen=("gate_alpha", "gate_beta", "gate_gamma"),
        recurrent=True,
        resets=False,
        has_threshold=False,
        strict=True,
    ),
]
GATED = [
    Neuron("stc_lif", gated_lif, recurrent=True, gated=True),
    Neuron("stc_plif", gated_plif, parameters=("decay_logit",), recurrent=True, gated=True),
    Neuron("stc_lmh", gated_lmh, parameters=LMH, states=("v", "dendrite"), recurrent=True, gated=True, detached=True),
]
NEURONS = [*ELEMENTWISE, *GATED]
by_name = {str(n): n for n in NEURONS}


def make(
    neuron: Neuron,
    shape: tuple[int, ...],
    seed: int = 0,
    channels: bool = True,
    states: bool = True,
    norms: bool = True,
    threshold: bool = True,
    spiking: bool = True,
) -> dict[str, Any]:
    """Arguments in float64: a parameter is per channel, or one for the layer; the threshold a tensor, or 1."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return torch.randn(size, generator=rng, dtype=torch.float64) * std + mean

    c = shape[2]
    given: dict[str, Any] = {"current": normal(*shape, mean=1.0)}
    for name in (*neuron.parameters, *neuron.frozen):
        given[name] = normal(c if channels else 1, std=0.7)
    if neuron.has_threshold and threshold:
        given["v_threshold"] = normal(c if channels else 1, std=0.2, mean=0.8).abs()
    if states:
        given |= {name: normal(*shape[1:], std=0.7) for name in neuron.states}
        if neuron.recurrent:
            likely = normal(*shape[1:]).sigmoid()
            given["spikes"] = likely.round() if spiking else likely
    if neuron.gated:
        given["groups"] = GROUPS
        for name in ("temporal_weight", "spatial_weight"):
            given[name] = normal(c, c // GROUPS, KERNEL, KERNEL, std=(c // GROUPS) ** -0.5)
        if norms:
            given |= {name: (normal(c, mean=0.5, std=0.5), normal(c, mean=0.5, std=0.5)) for name in NORMS}
    return given


def loops(neuron: Neuron, given: dict[str, Any]) -> dict[str, np.ndarray]:
    current = given["current"].numpy()
    zeros = np.zeros(current.shape[1:])
    s, v, d = (given[k].numpy().copy() if k in given else zeros.copy() for k in ("spikes", "v", "dendrite"))
    settings = {**neuron.options, **{k: x for k, x in given.items() if not isinstance(x, (Tensor, tuple))}}
    settings.setdefault("v_threshold", 1.0)
    learnt = {k: given[k].tolist() for k in (*neuron.parameters, *neuron.frozen, "v_threshold") if k in given}
    spikes, v_seq = np.empty_like(current), np.empty_like(current)
    for t in range(current.shape[0]):
        for n in range(current.shape[1]):
            if neuron.gated:
                a = loop_conv(s[n], given["temporal_weight"].numpy(), GROUPS)
                b = loop_conv(s[n], given["spatial_weight"].numpy(), GROUPS)
                pairs = [given.get(name, (None, None)) for name in NORMS]
                i, a, b = (
                    loop_norm(x, *pair, GROUPS, 1e-5) for x, pair in zip((current[t, n], a, b), pairs, strict=True)
                )
            for at in np.ndindex(*current.shape[2:]):
                p = settings | {k: x[at[0] if len(x) > 1 else 0] for k, x in learnt.items()}
                here = (n, *at)
                if neuron.gated:
                    result = neuron.scalar(i[at], a[at], b[at], v[here], d[here], p)
                else:
                    result = neuron.scalar(current[(t, *here)], s[here], v[here], d[here], p)
                s[here], v[here], d[here] = result
        spikes[t], v_seq[t] = s, v
    return {"spikes": spikes, "v": v, "dendrite": d, "v_seq": v_seq}


def require_grad(given: dict[str, Any]) -> dict[str, Any]:
    """The same values as leaves."""

    def leaf(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(leaf, x))
        return x.clone().requires_grad_() if isinstance(x, Tensor) else x

    return {name: leaf(x) for name, x in given.items()}


def leaves_of(given: dict[str, Any]) -> dict[str, Tensor]:
    found = {}
    for name, x in given.items():
        if isinstance(x, tuple):
            found |= {f"{name}_weight": x[0], f"{name}_bias": x[1]}
        elif isinstance(x, Tensor):
            found[name] = x
    return found


def gradients(neuron: Neuron, given: dict[str, Any], **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of their random combination for every tensor."""
    given = require_grad(given)
    outputs = neuron({**given, **options, "store_v_seq": True})
    rng = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=rng, dtype=x.dtype)).sum() for x in outputs.values())
    leaves = leaves_of(given)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {k: x.detach() for k, x in outputs.items()}, dict(zip(leaves, grads, strict=True))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Any], tolerance: float = 1e-12) -> None:
    for name, x in found.items():
        torch.testing.assert_close(
            x, torch.as_tensor(expected[name]), rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


# --- forward --------------------------------------------------------------------------------------------------------

MAPS = [(5, 2, 4, 2, 3), (3, 1, 6, 1, 1), (1, 2, 2, 2, 2)]
SHAPES = [(6, 3, 4), (4, 1, 2, 5), *MAPS]
RESETS = [(n, v_reset) for n in NEURONS for v_reset in ([None, -0.2] if n.resets else [None])]


@pytest.mark.parametrize(
    ("neuron", "v_reset", "shape"), [(n, r, x) for n, r in RESETS for x in (MAPS if n.gated else SHAPES)], ids=str
)
@pytest.mark.parametrize("channels", [False, True])
def test_forward_equals_loops_over_scalars(
    neuron: Neuron, v_reset: float | None, shape: tuple[int, ...], channels: bool
) -> None:
    given = make(neuron, shape, seed=shape[0], channels=channels)
    if v_reset is not None:
        given["v_reset"] = v_reset
    found = neuron({**given, "store_v_seq": True})
    assert_equal(found, loops(neuron, given))
    assert list(found) == ["spikes", *neuron.states, "v_seq"]
    assert list(neuron(given)) == ["spikes", *neuron.states]
    if found["spikes"].numel() >= 60:
        assert 0.05 < found["spikes"].mean() < 0.95


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_states_default_to_zero_and_the_threshold_to_one(neuron: Neuron) -> None:
    given = make(neuron, (5, 2, 4, 2, 2), states=False, norms=False, threshold=False)
    found = neuron({**given, "store_v_seq": True})
    assert_equal(found, loops(neuron, given))
    assert found["spikes"].any()


@pytest.mark.parametrize("neuron", [n for n in NEURONS if n.has_threshold], ids=str)
def test_a_number_and_a_tensor_are_the_same_threshold(neuron: Neuron) -> None:
    given = make(neuron, (5, 2, 4, 2, 2))
    number = neuron({**given, "v_threshold": 0.75})
    tensor = neuron({**given, "v_threshold": torch.tensor([0.75], dtype=torch.float64)})
    for name, x in number.items():
        assert torch.equal(tensor[name], x)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("cut", [0, 2, 5])
def test_a_sequence_continues_from_its_states(neuron: Neuron, cut: int) -> None:
    given = make(neuron, (5, 2, 4, 2, 2))
    whole = neuron(given)
    first = neuron({**given, "current": given["current"][:cut]})
    carried = {name: first[name] for name in neuron.states}
    if neuron.recurrent and cut:
        carried["spikes"] = first["spikes"][-1]
    second = neuron({**given, **carried, "current": given["current"][cut:]})
    assert torch.equal(torch.cat([first["spikes"], second["spikes"]]), whole["spikes"])
    for name in neuron.states:
        assert torch.equal(second[name], whole[name])


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_no_step_returns_the_states_as_they_were(neuron: Neuron) -> None:
    given = make(neuron, (0, 2, 4, 2, 2))
    found = neuron({**given, "store_v_seq": True})
    assert found["spikes"].shape == found["v_seq"].shape == (0, 2, 4, 2, 2)
    for name in neuron.states:
        assert torch.equal(found[name], given[name])


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_float32_stays_float32(neuron: Neuron) -> None:
    given = make(neuron, (2, 2, 4, 2, 2), norms=False)
    given = {name: x.float() if isinstance(x, Tensor) else x for name, x in given.items()}
    assert all(x.dtype == torch.float32 for x in neuron({**given, "store_v_seq": True}).values())


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("neuron", "v_reset"), RESETS, ids=str)
@pytest.mark.parametrize("channels", [False, True])
def test_gradcheck_with_soft_spikes(neuron: Neuron, v_reset: float | None, channels: bool) -> None:
    given = make(neuron, (3, 1, 2, 2, 2), channels=channels, spiking=False)
    fixed: dict[str, Any] = {"spiking": False, "detach_reset": False, "store_v_seq": True, "surrogate": "atan"}
    fixed |= {name: given.pop(name) for name in (*neuron.frozen, "groups") if name in given}
    if v_reset is not None:
        fixed["v_reset"] = v_reset
    leaves = leaves_of(require_grad(given))

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(leaves, tensors, strict=True))
        pairs = {n: (values.pop(f"{n}_weight"), values.pop(f"{n}_bias")) for n in NORMS if f"{n}_weight" in values}
        return tuple(neuron({**values, **pairs, **fixed}).values())

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("detach_reset", [False, True])
def test_a_callable_surrogate_equals_the_named_one(neuron: Neuron, detach_reset: bool) -> None:
    def straight_through(z: Tensor) -> Tensor:
        p = 1 / (1 + (-3 * z).exp())
        return p + ((z > 0 if neuron.strict else z >= 0).double() - p).detach()

    given = make(neuron, (4, 2, 4, 2, 2))
    named = gradients(neuron, given, detach_reset=detach_reset, surrogate="sigmoid", alpha=3.0)
    # What it does not use changes nothing.
    unused = {"alpha": 100.0, "spiking": False}
    called = gradients(neuron, given, detach_reset=detach_reset, surrogate=straight_through, **unused)
    for found, expected in zip(called, named, strict=True):
        assert_equal(found, expected, 1e-10)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_detach_reset_is_the_default_of_the_two_compartments(neuron: Neuron) -> None:
    given = make(neuron, (4, 2, 4, 2, 2))
    _, default = gradients(neuron, given)
    modes = {mode: gradients(neuron, given, detach_reset=mode)[1] for mode in (False, True)}
    assert_equal(default, modes[neuron.detached], 0)
    assert (modes[False]["current"] - modes[True]["current"]).norm() > 1e-2 * modes[True]["current"].norm()


def sigmoid_slope(z: Tensor) -> Tensor:
    p = 1 / (1 + (-4 * z).exp())
    return 4 * p * (1 - p)


@pytest.mark.parametrize(("neuron", "v_reset"), [(n, r) for n, r in RESETS if n.resets], ids=str)
def test_slope_of_the_reset(neuron: Neuron, v_reset: float | None) -> None:
    """dv/du is 1 (soft) or 1 - s (hard) with a detached reset; attached, (v - u at a spike) p' comes on top."""
    given = make(neuron, (1, 2, 4, 2, 2), norms=False)
    theta = given["v_threshold"].view(-1, 1, 1)
    # The potential before the reset, and its slope (v_reset moves the rest of a LIF neuron too).
    resting = {"v_reset": v_reset} if v_reset is not None else {}
    current = given["current"].requires_grad_()
    u = neuron({**given, **resting, "v_threshold": 1e30})["v"]
    (slope,) = torch.autograd.grad(u.sum(), current)
    u = u.detach()
    s = (u >= theta).double()
    jump = -theta if v_reset is None else v_reset - u
    kept = torch.ones_like(u) if v_reset is None else 1 - s
    for detach_reset, expected in ((True, kept), (False, kept + jump * sigmoid_slope(u - theta))):
        v = neuron({**given, **resting, "detach_reset": detach_reset})["v"]
        (found,) = torch.autograd.grad(v.sum(), current)
        torch.testing.assert_close(found, slope * expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("detach_reset", [False, True])
def test_slope_of_the_delayed_reset_of_tclif(detach_reset: bool) -> None:
    neuron = by_name["tclif"]
    given = require_grad(make(neuron, (2, 2, 4)))
    found = neuron({**given, "detach_reset": detach_reset, "store_v_seq": True})
    (grad,) = torch.autograd.grad(found["v"].sum(), given["current"])
    su, sp = given["soma_to_dendrite"].sigmoid(), given["dendrite_to_soma"].sigmoid()
    # v_1 = sp x_1 + ...;  d_2 = d_1 - su v_1 + x_2 - gain g;  v_2 = v_1 + sp d_2 - theta g
    expected = sp + sp * (1 - su * sp) + torch.zeros_like(grad[0])
    if not detach_reset:
        g_slope = sigmoid_slope(found["v_seq"][0] - given["v_threshold"]) * sp
        expected = expected - (sp * given["reset_gain"] + given["v_threshold"]) * g_slope
    torch.testing.assert_close(grad[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("detach_reset", [False, True])
def test_slope_of_the_delayed_reset_of_glif(detach_reset: bool) -> None:
    neuron = by_name["glif"]
    given = require_grad(make(neuron, (2, 3, 4)))
    found = neuron({**given, "detach_reset": detach_reset, "store_v_seq": True})
    (grad,) = torch.autograd.grad(found["v"].sum(), given["current"])
    p = {name: given[name].sigmoid() for name in (*neuron.parameters, *neuron.frozen)}
    into = 1 - p["gate_beta"] * (1 - p["conduct"])
    decay = 1 - p["gate_alpha"] * (1 - p["tau"])
    u, g = found["v_seq"][0], found["spikes"][0]
    expected = decay * (1 - p["gate_gamma"] * g) * into
    if not detach_reset:
        rect = ((u - p["threshold"]).abs() < 0.5).double()
        assert 0 < rect.mean() < 1
        expected = expected - (decay * p["gate_gamma"] * u + (1 - p["gate_gamma"]) * p["reset"]) * rect * into
    torch.testing.assert_close(grad[0], expected, rtol=1e-12, atol=1e-12)


def test_gates_of_glif_are_frozen() -> None:
    neuron = by_name["glif"]
    _, grads = gradients(neuron, make(neuron, (4, 2, 4)))
    for name in neuron.frozen:
        assert not grads[name].any()
    for name in neuron.parameters:
        assert grads[name].any()


@pytest.mark.parametrize("neuron", GATED, ids=str)
def test_gradient_detach_cuts_the_way_through_the_gates(neuron: Neuron) -> None:
    given = make(neuron, (2, 2, 4, 3, 3))
    attached = gradients(neuron, given, gradient_detach=False, detach_reset=True)[1]
    detached = gradients(neuron, given, gradient_detach=True, detach_reset=True)[1]
    assert attached["spikes"].any()
    assert not detached["spikes"].any()
    assert detached["temporal_weight"].any()
    assert detached["spatial_weight"].any()


# --- special cases --------------------------------------------------------------------------------------------------

SHAPE = (6, 2, 4, 3, 3)


def test_an_untrained_stc_lmh_is_an_stc_lif_in_forward() -> None:
    given = make(by_name["stc_lif"], SHAPE)
    logits = dict.fromkeys(LMH, torch.zeros(1, dtype=torch.float64))
    # Whatever the dendrite was: nothing of it stays.
    lmh = by_name["stc_lmh"]({**given, **logits, "dendrite": torch.ones(SHAPE[1:], dtype=torch.float64)})
    expected = by_name["stc_lif"](given)
    assert torch.equal(lmh["spikes"], expected["spikes"])
    assert torch.equal(lmh["v"], expected["v"])


def test_an_untrained_lmh_is_an_integrate_and_fire_neuron_in_forward() -> None:
    given = make(by_name["integrate_fire"], SHAPE)
    logits = dict.fromkeys(LMH, torch.zeros(1, dtype=torch.float64))
    assert_equal(by_name["integrate_fire"](given), by_name["lmh"]({**given, **logits}), 0)


@pytest.mark.parametrize(("gated", "plain"), [("stc_lif", "integrate_fire"), ("stc_plif", "plif"), ("stc_lmh", "lmh")])
@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_gates_at_one_leave_the_plain_neuron(gated: str, plain: str, v_reset: float | None) -> None:
    given = make(by_name[plain], SHAPE)
    options: dict[str, Any] = {"v_reset": v_reset, "detach_reset": False}
    textbook = {"textbook": True} if plain == "plif" else {}
    zero = torch.zeros(4, 2, 3, 3, dtype=torch.float64)
    outputs, grads = gradients(by_name[plain], given, **options, **textbook)
    gates = {"temporal_weight": zero, "spatial_weight": zero}
    found, found_grads = gradients(by_name[gated], {**given, **gates}, groups=GROUPS, **options)
    assert_equal(found, outputs)
    assert_equal({name: found_grads[name] for name in grads}, grads, 1e-10)


def test_lif_forgets_everything_at_tau_one_and_nothing_at_infinity() -> None:
    given = make(by_name["integrate_fire"], SHAPE)
    memoryless = reference.lif(**given, tau=1.0)
    assert torch.equal(memoryless[0], (given["current"] >= given["v_threshold"].view(-1, 1, 1)).double())
    endless = reference.lif(**given, tau=math.inf, decay_input=False)
    for found, expected in zip(endless, reference.integrate_fire(**given), strict=True):
        assert torch.equal(found, expected)


def test_lif_by_default_halves_what_was_and_what_comes() -> None:
    current = torch.tensor([1.0, 1.0, 2.0, 0.5], dtype=torch.float64).view(4, 1, 1)
    spikes, _, v_seq = reference.lif(current, store_v_seq=True)
    assert v_seq.flatten().tolist() == [0.5, 0.75, 0.375, 0.4375]
    assert spikes.flatten().tolist() == [0, 0, 1, 0]


def test_a_textbook_plif_is_a_lif_of_the_same_time_constant() -> None:
    given = make(by_name["integrate_fire"], SHAPE)
    logit = torch.tensor([math.log(2.0)], dtype=torch.float64)  # keep = 2/3, tau = 3
    textbook = by_name["plif"]({**given, "decay_logit": logit, "textbook": True})
    assert_equal(textbook, dict(zip(("spikes", "v"), reference.lif(**given, tau=3.0), strict=True)))
    # The authors' begins with keep = 1/2 and the whole input.
    zero = torch.zeros(1, dtype=torch.float64)
    authors = by_name["plif"]({**given, "decay_logit": zero})
    expected = reference.lif(**given, tau=2.0, decay_input=False)
    assert_equal(authors, dict(zip(("spikes", "v"), expected, strict=True)))


def test_only_glif_is_silent_at_its_threshold() -> None:
    half = torch.zeros(1, dtype=torch.float64)  # sigmoid 1/2
    names = ("gate_alpha", "gate_beta", "gate_gamma", "tau", "threshold", "leak", "conduct", "reset")
    # u = 3/4 x - 1/4
    current = torch.tensor([1.0, 1 + 2**-40], dtype=torch.float64).view(1, 1, 1, 2).requires_grad_()
    spikes, u = reference.glif(current, **dict.fromkeys(names, half))
    assert u[..., 0].item() == 0.5
    assert spikes.flatten().tolist() == [0, 1]
    (slope,) = torch.autograd.grad(spikes.sum(), current)
    assert slope.flatten().tolist() == [0.75, 0.75]
    assert reference.integrate_fire(torch.ones(1, 1, 1))[0].item() == 1


@pytest.mark.parametrize("name", sorted({n.name for n in NEURONS}))
def test_an_unknown_surrogate_is_refused_by_name(name: str) -> None:
    neuron = next(n for n in NEURONS if n.name == name)
    with pytest.raises(ValueError, match="surrogate: got 'step'"):
        neuron({**make(neuron, (1, 1, 2, 1, 1)), "surrogate": "step"})


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_the_table_of_neurons_has_every_argument(neuron: Neuron) -> None:
    given = set(make(neuron, (1, 1, 2, 1, 1)))
    options = {"v_reset", "surrogate", "alpha", "detach_reset", "spiking", "store_v_seq", "gradient_detach"}
    options |= {"tau", "decay_input"} if neuron.name == "lif" else {"textbook", "norm_groups", "eps"}
    assert set(inspect.signature(getattr(reference, neuron.name)).parameters) - options == given
