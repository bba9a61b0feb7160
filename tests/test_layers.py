"""The layers of the family: parameters, state between calls, step modes, copies."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from oracle import error, size
from torch import Tensor

import stc_cuda
from stc_cuda import reference
from stc_cuda.neurons import NEURONS, NeuronLayer

FEED_FORWARD = {"conv_x.0.weight": (8, 3, 5, 5), "conv_x.1.weight": (8,), "conv_x.1.bias": (8,)}
CIRCUIT = {
    **FEED_FORWARD,
    "conv_h.0.weight": (8, 4, 5, 5),
    "conv_h.1.weight": (8,),
    "conv_h.1.bias": (8,),
    "conv_v.0.weight": (8, 4, 5, 5),
    "conv_v.1.weight": (8,),
    "conv_v.1.bias": (8,),
}
SCALARS = dict.fromkeys(("t_m", "s_u", "s_p", "d_u", "d_p"), (1,))
GLIF = {f"glif.{name}": (8,) for name in ("alpha", "beta", "gamma", "tau", "Vth", "leak", "reVth")}
KEYS: dict[str, dict[str, tuple[int, ...]]] = {
    "lif": FEED_FORWARD,
    "plif": {**FEED_FORWARD, "t_m": (1,)},
    "glif": {**FEED_FORWARD, **GLIF, "glif.conduct": (1, 8)},
    "tclif": {**FEED_FORWARD, **SCALARS},
    "lmh": {**FEED_FORWARD, **SCALARS},
    "stclif": CIRCUIT,
    "stcplif": {**CIRCUIT, "t_m": (1,)},
    "stclmh": {**CIRCUIT, **SCALARS},
}
LMH = {"dendrite_decay": "d_u", "soma_to_dendrite": "s_u", "dendrite_to_soma": "d_p", "soma_decay": "s_p"}
# Parameters of the reference's functions by their names in the state dict.
PARAMETERS: dict[str, dict[str, str]] = {
    "lif": {},
    "plif": {"decay_logit": "t_m"},
    "glif": {
        "gate_alpha": "glif.alpha",
        "gate_beta": "glif.beta",
        "gate_gamma": "glif.gamma",
        "tau": "glif.tau",
        "threshold": "glif.Vth",
        "leak": "glif.leak",
        "conduct": "glif.conduct",
        "reset": "glif.reVth",
    },
    "tclif": {"soma_to_dendrite": "s_u", "dendrite_to_soma": "s_p", "reset_gain": "t_m"},
    "lmh": LMH,
    "stclif": {},
    "stcplif": {"decay_logit": "t_m"},
    "stclmh": LMH,
}
STATES = {
    "lif": ("v",),
    "plif": ("v",),
    "glif": ("v", "spikes"),
    "tclif": ("v", "dendrite", "spikes"),
    "lmh": ("v", "dendrite"),
    "stclif": ("v", "spikes"),
    "stcplif": ("v", "spikes"),
    "stclmh": ("v", "dendrite", "spikes"),
}
CIRCUITS = [name for name in KEYS if name.startswith("stc")]
RESETTING = [name for name in KEYS if name not in ("tclif", "glif")]

every_neuron = pytest.mark.parametrize("neuron", KEYS)


def layer(neuron: str = "stclif", **options: object) -> NeuronLayer:
    """3 -> 8 channels with parameters away from their special initial values."""
    torch.manual_seed(1)
    made = NEURONS[neuron](**{"in_channels": 3, "channels": 8, "groups": 2, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def sequence(steps: int = 4, samples: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(steps, samples, 3, 6, 7, generator=rng) * 2).to(dtype)


def states(module: NeuronLayer) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.state_names}


def expected_of(neuron: str, module: NeuronLayer, x: Tensor, **options: object) -> dict[str, Tensor]:
    """Spikes, states and v_seq by name, from the state dict and the equations alone."""
    p = dict(module.named_parameters())
    k = p["conv_x.0.weight"].shape[-1]
    current = torch.stack([torch.conv2d(frame, p["conv_x.0.weight"], padding=k // 2) for frame in x])
    given = {name: p[key].flatten() for name, key in PARAMETERS[neuron].items()}
    norms = {
        f"{pathway}_norm": (p[f"{conv}.1.weight"], p[f"{conv}.1.bias"])
        for pathway, conv in (("current", "conv_x"), ("temporal", "conv_h"), ("spatial", "conv_v"))
        if f"{conv}.1.weight" in p
    }
    weights: list[Tensor] = []
    if neuron in CIRCUITS:
        weights = [p["conv_h.0.weight"], p["conv_v.0.weight"]]
        options = {"groups": 2, **norms, **options}
    else:
        current = torch.stack([torch.group_norm(frame, 2, *norms["current_norm"], 1e-5) for frame in current])
    function = getattr(reference, neuron.replace("stc", "stc_"))
    outputs = function(current, *weights, store_v_seq=True, **given, **options)
    found = dict(zip(("spikes", *(n for n in STATES[neuron] if n != "spikes"), "v_seq"), outputs, strict=True))
    return found


# --- parameters -----------------------------------------------------------------------------------------------------


@every_neuron
def test_state_dict_keys_and_shapes(neuron: str) -> None:
    assert {name: tuple(x.shape) for name, x in layer(neuron).state_dict().items()} == KEYS[neuron]
    assert layer(neuron).state_names == STATES[neuron]


def test_the_family_is_complete() -> None:
    assert list(NEURONS) == list(KEYS)


def test_paper_layer_parameters() -> None:
    """Moving MNIST's first layer: 256 x 4 x 25 + 2 (256 x 16 x 25) + 3 (2 x 256)."""
    assert sum(p.numel() for p in NEURONS["stclif"](4, 256).parameters()) == 256 * 4 * 25 + 2 * 256 * 16 * 25 + 6 * 256


@every_neuron
def test_strict_load(neuron: str) -> None:
    keys = KEYS[neuron]
    state = {name: torch.randn(shape) for name, shape in keys.items()}
    made = layer(neuron)
    made(sequence())
    made.load_state_dict(state, strict=True)
    for name, x in made.state_dict().items():
        assert torch.equal(x, state[name])
    for key in keys:
        with pytest.raises(RuntimeError, match="Missing key"):
            made.load_state_dict({k: v for k, v in state.items() if k != key}, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        made.load_state_dict({**state, "v": torch.zeros(1)}, strict=True)


@every_neuron
def test_initial_parameters(neuron: str) -> None:
    made = NEURONS[neuron](3, 8, groups=2)
    for name in ("conv_x", "conv_h", "conv_v") if neuron in CIRCUITS else ("conv_x",):
        conv, norm = getattr(made, name)
        assert conv.bias is None
        assert torch.equal(norm.weight, torch.ones(8))
        assert torch.equal(norm.bias, torch.zeros(8))
    p = dict(made.named_parameters())
    for name in SCALARS.keys() & p.keys():
        assert torch.equal(p[name], torch.zeros(1))
    if neuron == "glif":
        starts = {"alpha": 0.55, "beta": 0.65, "gamma": 0.55, "tau": 0.25, "Vth": 0.5, "leak": 0.0625, "reVth": 0.5}
        for name, value in {**starts, "conduct": 0.5}.items():
            torch.testing.assert_close(p[f"glif.{name}"].sigmoid(), torch.full_like(p[f"glif.{name}"], value))
    used = {"conv_x.0.weight", *PARAMETERS[neuron].values()} - {"glif.alpha", "glif.beta", "glif.gamma"}
    assert all(p[name].requires_grad == (name in used) for name in p if not name.startswith("conv_"))


@pytest.mark.parametrize("neuron", [name for name in KEYS if name != "glif"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_learnt_thresholds(neuron: str, per_channel: bool) -> None:
    made = layer(neuron, v_threshold=0.6, learn_threshold=True, per_channel=per_channel, store_v_seq=True).double()
    threshold = made.threshold
    assert threshold is not None
    assert tuple(threshold.shape) == ((8,) if per_channel else (1,))
    assert "threshold" in made.state_dict()
    x = sequence(dtype=torch.float64)
    expected = expected_of(neuron, made, x, v_threshold=threshold)
    (want,) = torch.autograd.grad(expected["spikes"].sum() + expected["v"].sin().sum(), threshold)
    found = made(x)
    (grad,) = torch.autograd.grad(found.sum() + made.v.sin().sum(), threshold)
    assert torch.equal(found, expected["spikes"])
    assert found.any()
    assert size(want) > 0
    assert error(grad, want) <= 1e-10 * size(want)
    learnt = {name for name in PARAMETERS[neuron].values() if name != "t_m" or neuron != "lmh"}
    for name in learnt:
        assert tuple(getattr(made, name).shape) == ((8,) if per_channel else (1,))


# --- values ---------------------------------------------------------------------------------------------------------

SOFT = stc_cuda.Surrogate("sigmoid", alpha=2.5, spiking=False)


@every_neuron
@pytest.mark.parametrize(
    ("module_options", "options"),
    [
        ({}, {}),
        ({"v_threshold": 0.7}, {"v_threshold": 0.7}),
        ({"v_threshold": 0.7, "v_reset": 0.1}, {"v_threshold": 0.7, "v_reset": 0.1}),
        ({"surrogate_function": "atan", "gradient_detach": True}, {"surrogate": "atan", "gradient_detach": True}),
        ({"detach_reset": True, "kernel_size": 3}, {"detach_reset": True}),
        ({"detach_reset": False}, {"detach_reset": False}),
        ({"surrogate_function": SOFT}, {"surrogate": "sigmoid", "alpha": 2.5, "spiking": False}),
    ],
    ids=lambda options: ",".join(options),
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_forward_and_gradients(
    backend: str, module_options: dict[str, object], options: dict[str, object], neuron: str
) -> None:
    if "v_reset" in options and neuron not in RESETTING:
        pytest.skip("has a reset of its own")
    if neuron not in CIRCUITS:
        options = {name: x for name, x in options.items() if name != "gradient_detach"}
    if neuron == "glif":  # learns its threshold from the start
        options = {name: x for name, x in options.items() if name != "v_threshold"}
    made = layer(neuron, backend=backend, store_v_seq=True, **module_options).double()
    leaves = [p for p in made.parameters() if p.requires_grad]
    x = sequence(dtype=torch.float64).requires_grad_()
    expected = expected_of(neuron, made, x, **options)
    spikes, v = expected["spikes"], expected["v"]
    weight = torch.randn(spikes.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad((spikes * weight).sum() + v.sin().sum(), [x, *leaves])
    found = made(x)
    grads = torch.autograd.grad((found * weight).sum() + made.v.sin().sum(), [x, *leaves])
    assert 0.02 < spikes.mean() < 0.98
    assert error(found, spikes) <= 1e-12 * size(spikes)
    for name in STATES[neuron]:
        last = spikes[-1] if name == "spikes" else expected[name]
        assert error(getattr(made, name), last) <= 1e-12 * size(last)
    assert error(made.v_seq, expected["v_seq"]) <= 1e-12 * size(expected["v_seq"])
    for grad, want in zip(grads, wanted, strict=True):
        assert error(grad, want) <= 1e-10 * size(want)


def test_textbook_plif() -> None:
    made = layer("plif", textbook=True).double()
    x = sequence(dtype=torch.float64)
    assert torch.equal(made(x), expected_of("plif", made, x, textbook=True)["spikes"])
    assert not torch.equal(expected_of("plif", made, x)["v_seq"], expected_of("plif", made, x, textbook=True)["v_seq"])


@every_neuron
def test_single_steps_equal_a_sequence(neuron: str) -> None:
    many, single = layer(neuron), layer(neuron, step_mode="s")
    single.load_state_dict(many.state_dict())
    x = sequence()
    expected = many(x)
    found = torch.stack([single(frame) for frame in x])
    assert found.shape == expected.shape == (4, 2, 8, 6, 7)
    assert torch.equal(found, expected)
    for name in STATES[neuron]:
        assert torch.equal(getattr(single, name), getattr(many, name))
    weight = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    for a, b in zip(single.parameters(), many.parameters(), strict=True):
        if a.requires_grad:
            assert error(a.grad, b.grad) <= 1e-5 * size(b.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("v_reset", [None, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_untrained_stclmh_fires_like_stclif(dtype: torch.dtype, v_reset: float | None) -> None:
    """All its logits are 0; the sums are the same in another order, so a step at a time and from the same state."""
    options = {"in_channels": 3, "channels": 8, "groups": 2, "v_reset": v_reset}
    one, other = (NEURONS[name](**options).to(dtype) for name in ("stclmh", "stclif"))  # type: ignore[arg-type]
    other.load_state_dict({name: x for name, x in one.state_dict().items() if name in KEYS["stclif"]})
    band = {torch.float32: oracle.BAND, torch.float64: 1e-14}[dtype]
    rates = []
    for x in sequence(steps=8, dtype=dtype).split(1):
        one.v, one.spikes = other.v, other.spikes
        found, expected = one(x), other(x)
        rates.append(expected.mean())
        assert torch.equal(found, expected)
        assert ((one.v - other.v).abs() <= band * (1 + other.v.abs())).all()
    assert 0.05 < torch.stack(rates).mean() < 0.95


@every_neuron
def test_v_seq_is_kept_only_when_asked_for(neuron: str) -> None:
    made = layer(neuron)
    made(sequence())
    assert getattr(made, "v_seq", None) is None
    made = layer(neuron, store_v_seq=True)
    made(sequence())
    assert made.v_seq.shape == (4, 2, 8, 6, 7)
    assert torch.equal(made.v_seq[-1], made.v)
    made.reset()
    assert made.v_seq is None


@pytest.mark.parametrize("neuron", ["lif", "tclif", "stclmh"])
def test_layers_compile_into_one_graph(neuron: str) -> None:
    made, plain = layer(neuron), layer(neuron)
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    x = sequence()
    for _ in range(2):  # from zero, and from the state
        expected, found = plain(x), compiled(x)
        assert torch.equal(found, expected)
        for module in (plain, made):
            module.detach()
    made.reset(), plain.reset()
    compiled(x).sum().backward()
    plain(x).sum().backward()
    for a, b in zip(made.parameters(), plain.parameters(), strict=True):
        if a.requires_grad:
            assert error(a.grad, b.grad) <= 1e-6 * size(b.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", ["function", "lambda", "Function.apply"])
@pytest.mark.parametrize("neuron", ["lif", "stclif"])
def test_layers_with_a_function_as_surrogate_compile(neuron: str, function: str) -> None:
    given = {"function": fired_with_sigmoid, "lambda": lambda z: fired_with_sigmoid(z), "Function.apply": Fire.apply}
    made, plain = (layer(neuron, surrogate_function=given[function]) for _ in range(2))
    torch.compiler.reset()  # or the layers of other tests count towards the limit of graphs
    x = sequence()
    found = torch.compile(made, fullgraph=True, backend="aot_eager")(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(found, plain(x))


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2


def fired_with_sigmoid(z: Tensor) -> Tensor:
    soft = torch.sigmoid(4 * z)
    return (z >= 0).to(z.dtype) + soft - soft.detach()


# --- state ----------------------------------------------------------------------------------------------------------


@every_neuron
def test_state_is_carried_and_reset(neuron: str) -> None:
    made = layer(neuron)
    x = sequence()
    assert not any(state is not None for state in states(made).values())
    whole = made(x)
    assert all(state is not None for state in states(made).values())
    made.reset()
    assert not any(state is not None for state in states(made).values())
    halves = torch.cat([made(x[:2]), made(x[2:])])
    assert torch.equal(halves, whole)
    assert not torch.equal(made(x), whole)  # without a reset the second sequence starts elsewhere
    made.reset()
    assert torch.equal(made(x), whole)


@every_neuron
def test_gradients_flow_through_the_kept_state_until_detach(neuron: str) -> None:
    made = layer(neuron)
    x = sequence().requires_grad_()
    made(x[:2]).sum().backward(retain_graph=True)
    x.grad = None
    made(x[2:]).sum().backward()
    assert size(x.grad[:2]) > 0
    made.reset()
    x.grad = None
    made(x[:2])
    kept = {name: state.clone() for name, state in states(made).items()}
    made.detach()
    for name, state in states(made).items():
        assert torch.equal(state, kept[name])
        assert not state.requires_grad
    made(x[2:]).sum().backward()
    assert size(x.grad[:2]) == 0
    assert size(x.grad[2:]) > 0


@every_neuron
def test_forgotten_reset_says_what_to_do(neuron: str) -> None:
    made = layer(neuron)
    made(sequence()).sum().backward()
    with pytest.raises(RuntimeError, match=r"detach\(\).*reset\(\)"):
        made(sequence()).sum().backward()
    for mend in (made.reset, made.detach):
        made.reset()
        made(sequence()).sum().backward()
        mend()
        made(sequence()).sum().backward()


@every_neuron
def test_reset_and_detach_before_the_first_call(neuron: str) -> None:
    made = layer(neuron)
    made.reset()
    made.detach()
    assert made.v is None


@every_neuron
@pytest.mark.parametrize(("samples", "height"), [(3, 6), (2, 5)])
def test_another_batch_or_map_asks_for_a_reset(samples: int, height: int, neuron: str) -> None:
    made = layer(neuron)
    made(sequence(samples=2))
    other = sequence(samples=samples)[..., :height, :]
    with pytest.raises(ValueError, match=rf"v: .*\[2, 8, 6, 7\].*\[{samples}, 8, {height}, 7\].*reset\(\)"):
        made(other)
    made.reset()
    assert made(other).shape == (4, samples, 8, height, 7)


@every_neuron
def test_state_follows_to(neuron: str) -> None:
    made = layer(neuron)
    made(sequence())
    made.double()
    assert {state.dtype for state in states(made).values()} == {torch.float64}
    assert made(sequence(dtype=torch.float64)).dtype == torch.float64
    made.to("meta")
    assert {state.device.type for state in states(made).values()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_neuron
def test_potentials_stay_in_single_precision(dtype: torch.dtype, neuron: str) -> None:
    """They outgrow 16-bit numbers."""
    made = layer(neuron)
    made(sequence())
    assert made.v is not None
    made.v = made.v + 1e6
    made.to(dtype)
    assert made.v.dtype == torch.float32
    assert made.v.isfinite().all()


@every_neuron
def test_a_kept_v_seq_follows_a_memory_format(neuron: str) -> None:
    made = layer(neuron, store_v_seq=True)
    made(sequence())
    assert made.v_seq is not None
    before = made.v_seq.clone()
    made.to(memory_format=torch.channels_last)
    assert torch.equal(made.v_seq, before)
    assert made.v_seq[0].is_contiguous(memory_format=torch.channels_last)


@every_neuron
def test_options_can_be_changed_later(neuron: str) -> None:
    made = layer(neuron)
    assert not made.store_v_seq
    made.store_v_seq = True
    made(sequence())
    assert made.v_seq is not None
    with pytest.raises(ValueError, match="step_mode: got 'multi'"):
        made.step_mode = "multi"
    with pytest.raises(TypeError, match="store_v_seq: got int"):
        made.store_v_seq = 1


@every_neuron
def test_state_is_not_in_the_state_dict(neuron: str) -> None:
    made = layer(neuron)
    made(sequence())
    assert set(made.state_dict()) == set(KEYS[neuron])
    assert not list(made.buffers())


@every_neuron
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_copies_and_pickles_leave_the_state(store_v_seq: bool, neuron: str) -> None:
    made = layer(neuron, v_reset=0.1 if neuron in RESETTING else None, store_v_seq=store_v_seq)
    expected = made(sequence())
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.load(buffer, weights_only=False)]
    for other in copies:
        assert not any(state is not None for state in states(other).values())
        assert getattr(other, "v_seq", None) is None
        assert torch.equal(other(sequence()), expected)
        assert other.conv_x[0].weight.data_ptr() != made.conv_x[0].weight.data_ptr()
    assert all(state is not None for state in states(made).values())


@every_neuron
def test_state_does_not_hold_the_sequence(neuron: str) -> None:
    """Between sequences a module keeps one map a state, whatever the length of the sequence."""
    for needs_grad in (False, True):
        made = layer(neuron)
        with torch.set_grad_enabled(needs_grad):
            made(sequence(steps=9))
        made.detach()
        kept = list(states(made).values())
        for state in kept:
            assert state.untyped_storage().nbytes() == 4 * 2 * 8 * 6 * 7
        assert len({state.untyped_storage().data_ptr() for state in kept}) == len(kept)


@every_neuron
def test_changing_the_output_does_not_change_the_state(neuron: str) -> None:
    for steps in (1, 4):
        made = layer(neuron)
        with torch.no_grad():
            out = made(sequence(steps=steps))
            kept = {name: state.clone() for name, state in states(made).items()}
            out.fill_(7)
        for name, state in states(made).items():
            assert torch.equal(state, kept[name])


@every_neuron
def test_empty_sequence_keeps_the_state(neuron: str) -> None:
    made = layer(neuron, store_v_seq=True)
    made(sequence())
    kept = {name: state.clone() for name, state in states(made).items()}
    assert made(sequence(steps=0)).shape == (0, 2, 8, 6, 7)
    assert made.v_seq.shape == (0, 2, 8, 6, 7)
    for name, state in states(made).items():
        assert torch.equal(state, kept[name])
    made.reset()
    assert made(sequence(steps=0)).shape == (0, 2, 8, 6, 7)
    made.reset()
    assert made(sequence(samples=0)).shape == (4, 0, 8, 6, 7)


@every_neuron
def test_a_kept_v_seq_is_cut_by_detach(neuron: str) -> None:
    made = layer(neuron, store_v_seq=True)
    made(sequence())
    assert made.v_seq.requires_grad
    made.detach()
    assert made.v_seq is None or not made.v_seq.requires_grad


@every_neuron
@pytest.mark.parametrize("weights_too", [False, True])
def test_channels_last(neuron: str, weights_too: bool) -> None:
    made = layer(neuron).double()
    x = sequence(dtype=torch.float64)
    expected = made(x)
    kept = states(made)
    made.reset()
    if weights_too:
        made.to(memory_format=torch.channels_last)
    found = made(x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 2)))
    assert torch.equal(found, expected)
    for name, state in states(made).items():
        assert error(state, kept[name]) <= 1e-12 * size(kept[name])


# --- surrogates -----------------------------------------------------------------------------------------------------


class Sigmoid:
    """What SNN users pass: an object of SpikingJelly's with alpha and spiking, named after the function."""

    __module__ = "spikingjelly.activation_based.surrogate"

    def __init__(self, alpha: float = 4.0, spiking: bool = True) -> None:
        self.alpha = alpha
        self.spiking = spiking


class ATan(Sigmoid):
    __module__ = Sigmoid.__module__


class PiecewiseQuadratic(Sigmoid):
    __module__ = Sigmoid.__module__


class LeakyKReLU(Sigmoid):
    pass


@pytest.mark.parametrize(
    ("given", "name", "alpha", "spiking"),
    [
        (Sigmoid(), "sigmoid", 4.0, True),
        (Sigmoid(alpha=1.5, spiking=False), "sigmoid", 1.5, False),
        (ATan(alpha=3), "atan", 3.0, True),
        (PiecewiseQuadratic(alpha=1.5), "piecewise_quadratic", 1.5, True),
        ("fast_sigmoid", "fast_sigmoid", None, True),
        ("atan", "atan", None, True),
        (stc_cuda.surrogate.Surrogate("atan", 1.0), "atan", 1.0, True),
    ],
    ids=lambda v: type(v).__name__,
)
def test_surrogate_objects(given: object, name: str, alpha: float | None, spiking: bool) -> None:
    made = layer(surrogate_function=given)
    plain = layer(surrogate_function=stc_cuda.surrogate.Surrogate(name, alpha, spiking))
    x = sequence().requires_grad_()
    found, expected = made(x), plain(x)
    assert torch.equal(found, expected)
    assert bool(((expected == 0) | (expected == 1)).all()) == spiking
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)]
    assert torch.equal(*grads)


def test_surrogate_objects_matter() -> None:
    x = sequence().requires_grad_()
    grads = [
        torch.autograd.grad(layer(surrogate_function=s)(x).sum(), x)[0] for s in (Sigmoid(4.0), Sigmoid(2.0), ATan(2.0))
    ]
    assert not torch.equal(grads[0], grads[1])
    assert not torch.equal(grads[1], grads[2])


class Rect(Sigmoid):
    """Called like a surrogate that kernels know, and with another meaning of alpha: the width."""

    __module__ = __name__

    def __call__(self, z: Tensor) -> Tensor:
        slope = (z.abs() < self.alpha / 2).to(z.dtype) / self.alpha * z
        return (z >= 0).to(z.dtype) + slope - slope.detach()


def test_a_class_of_ones_own_is_a_function_whatever_it_is_called() -> None:
    current = torch.tensor([1.0, 1.4, 3.2]).reshape(1, 1, 3).requires_grad_()
    (found,) = torch.autograd.grad(
        stc_cuda.integrate_fire(current, surrogate=Rect(4.0), backend="reference")[0].sum(), current
    )
    assert torch.equal(found.flatten(), torch.tensor([0.25, 0.25, 0.0]))
    with pytest.raises(ValueError, match="no kernel knows the surrogate Rect"):
        stc_cuda.integrate_fire(current, surrogate=Rect(4.0), backend="cpu")


class OwnSurrogate:
    """No kernel knows it: the Heaviside step with the derivative of the sigmoid of 4 z."""

    def __call__(self, z: Tensor) -> Tensor:
        soft = torch.sigmoid(4 * z)
        return (z >= 0).to(z.dtype) + soft - soft.detach()


@every_neuron
def test_an_unknown_surrogate_runs_on_the_reference(neuron: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stc_cuda.backends, "_warned_of", set())
    made, known = layer(neuron, surrogate_function=OwnSurrogate()).double(), layer(neuron, backend="reference").double()
    if neuron == "glif":
        known = layer(neuron, surrogate_function="sigmoid", backend="reference").double()
    x = sequence(dtype=torch.float64).requires_grad_()
    with pytest.warns(UserWarning, match="no kernel knows the surrogate OwnSurrogate"):
        made(x)
    made.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = made(x)  # warned of once
    expected = known(x)
    assert error(found, expected) <= 1e-12 * size(expected)
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)]
    assert error(*grads) <= 1e-10 * size(grads[1])


@every_neuron
def test_an_unknown_surrogate_is_refused_by_kernels_asked_for_by_name(neuron: str) -> None:
    made = layer(neuron, surrogate_function=OwnSurrogate(), backend="cpu")
    with pytest.raises(ValueError, match=r"backend: 'cpu' was asked for, and no kernel knows .*OwnSurrogate.*by name"):
        made(sequence())


@pytest.mark.parametrize("given", [None, 3, "relu", Sigmoid, torch.nn.Sigmoid])
def test_what_is_no_surrogate_is_refused(given: object) -> None:
    with pytest.raises(
        ValueError, match=r"surrogate_function: got .* expected one of 'sigmoid', 'atan'.*or a function"
    ):
        layer(surrogate_function=given)


@pytest.mark.parametrize("neuron", ["tclif", "glif"])
def test_a_reset_that_the_neuron_has_not_is_refused(neuron: str) -> None:
    with pytest.raises(ValueError, match=r"v_reset: got 0.0, expected None: (TCLIF|GLIF) has a reset of its own"):
        layer(neuron, v_reset=0.0)


@pytest.mark.parametrize("options", [{"learn_threshold": False}, {"per_channel": False}, {"v_threshold": 1.0}])
def test_glif_learns_all_it_has_a_channel(options: dict[str, object]) -> None:
    with pytest.raises(
        ValueError, match=r"learns its parameters|v_threshold: got 1.0, expected a number between 0 and"
    ):
        layer("glif", **options)


@pytest.mark.parametrize("flag", ["learn_threshold", "per_channel"])
def test_flags_are_flags(flag: str) -> None:
    with pytest.raises(TypeError, match=rf"{flag}: got int, expected True or False"):
        layer("lif", **{flag: 1})
    with pytest.raises(TypeError, match=r"textbook: got int, expected True or False"):
        layer("plif", textbook=1)


def test_repr_shows_the_options() -> None:
    text = repr(layer(v_threshold=0.7, v_reset=0.1, gradient_detach=True))
    for part in ("v_threshold=0.7", "v_reset=0.1", "gradient_detach=True", "groups=2", "surrogate='sigmoid'"):
        assert part in text
    assert "OwnSurrogate" in repr(layer("lif", surrogate_function=OwnSurrogate()))


@every_neuron
def test_training_lowers_a_loss(neuron: str) -> None:
    """The gradients point the right way: a layer learns to fire at a given rate."""
    made = layer(neuron)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    x = sequence(steps=5, samples=3)
    target = (torch.rand(8, 1, 1, generator=torch.Generator().manual_seed(4)) * 0.8).expand(3, 8, 6, 7)
    losses = []
    for _ in range(30):
        made.reset()
        loss = (made(x).mean(0) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("part", ["conv_x", "conv_x.1", "conv_h", "conv_h.0", "conv_h.1", "conv_v", "conv_v.0"])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_pre_hook",
        "register_forward_hook",
        "register_full_backward_pre_hook",
        "register_full_backward_hook",
    ],
)
def test_hooks_on_parts_that_are_not_called_are_refused(part: str, register: str) -> None:
    made = layer()
    made(sequence())
    handle = getattr(made.get_submodule(part), register)(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"hooks: got one on (Sequential|Conv2d|GroupNorm)\("):
        made(sequence())
    handle.remove()
    made(sequence())


def test_hooks_on_the_convolution_that_is_called_run() -> None:
    made, ran = layer(), []
    made.conv_x[0].register_forward_hook(lambda *_: ran.append("forward"))
    made.conv_x[0].register_full_backward_hook(lambda *_: ran.append("backward"))
    made(sequence().requires_grad_()).sum().backward()
    assert ran == ["forward", "backward"]


class Standardized(torch.nn.Conv2d):
    """With another forward, of which its weight does not tell."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.weight.std()


class Negated(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return -weight


def test_parts_that_are_the_same_otherwise_are_read() -> None:
    made, plain = layer(), layer()
    made.conv_h[0] = torch.nn.Conv2d(8, 8, 5, padding="same", groups=2, bias=False)
    made.load_state_dict(plain.state_dict())
    expected = plain(sequence())
    assert torch.equal(made(sequence()), expected)
    torch.nn.utils.parametrize.register_parametrization(plain.conv_h[0], "weight", Negated())
    plain.reset(), made.reset()
    with torch.no_grad():
        made.conv_h[0].weight.neg_()
    found = plain(sequence())
    assert torch.equal(found, made(sequence()))
    assert not torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: setattr(m.conv_x[1], "eps", 0.1), r"conv_x\[1\]: got GroupNorm\(.*expected a GroupNorm of 2 groups"),
        (lambda m: setattr(m.conv_h[1], "num_groups", 4), r"conv_h\[1\]: got GroupNorm\(4"),
        (lambda m: m.conv_v.__setitem__(1, torch.nn.GroupNorm(2, 8, affine=False)), r"conv_v\[1\]: .*weight and bias"),
        (lambda m: m.conv_x.__setitem__(1, torch.nn.BatchNorm2d(8)), r"conv_x\[1\]: got BatchNorm2d"),
        (lambda m: m.conv_x.append(torch.nn.Dropout()), r"conv_x: got 3 modules, expected a convolution and its norm"),
        (lambda m: m.conv_h.append(torch.nn.Dropout()), r"conv_h: got 3 modules"),
        (lambda m: setattr(m.conv_h[0], "dilation", (2, 2)), r"conv_h\[0\]: got Conv2d\(.*dilation"),
        (lambda m: setattr(m.conv_v[0], "bias", torch.nn.Parameter(torch.ones(8))), r"conv_v\[0\]: .*without bias"),
        (lambda m: m.conv_v.__setitem__(0, torch.nn.Identity()), r"conv_v\[0\]: got Identity"),
        (lambda m: setattr(m, "conv_h", torch.nn.Identity()), r"conv_h: got Identity\(\), expected a Sequential"),
        (lambda m: setattr(m, "conv_v", None), r"conv_v: got None, expected a Sequential"),
        (
            lambda m: setattr(m.conv_v[0], "__class__", Standardized),
            r"conv_v\[0\]: got Standardized.*forward of its own",
        ),
        (lambda m: setattr(m.conv_h[1], "forward", torch.sigmoid), r"conv_h\[1\]: got GroupNorm.*forward of its own"),
    ],
    ids=range(13),
)
def test_parts_that_the_circuit_would_read_as_others_are_refused(
    change: Callable[[stc_cuda.STCLIF], object], match: str
) -> None:
    made = layer()
    made(sequence())
    change(made)
    made.reset()
    with pytest.raises(RuntimeError, match=match):
        made(sequence())
    assert made.v is None


@pytest.mark.parametrize("neuron", ["stclif", "stcplif", "stclmh", "glif"])
def test_autocast_does_not_reach_the_reference(neuron: str) -> None:
    """Its convolutions would round the gates to 16 bits, which kernels do not."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = []
        for backend in ("cpu", "reference"):
            made = layer(neuron, backend=backend)
            made(sequence())
            states.append(made.v)
    assert error(*states) <= 1e-5 * size(states[0])


@every_neuron
def test_a_state_from_inference_mode_asks_for_reset(neuron: str) -> None:
    made = layer(neuron)
    with torch.inference_mode():
        made(sequence())
    with pytest.raises(RuntimeError, match=r"inference_mode.*reset\(\)"):
        made(sequence())
    made.reset()
    made(sequence()).sum().backward()


@every_neuron
def test_autocast_keeps_the_state_in_single_precision(neuron: str) -> None:
    made = layer(neuron)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spikes = made(sequence())
        made(sequence())
    assert made.v.dtype == torch.float32
    if "dendrite" in STATES[neuron]:
        assert made.dendrite.dtype == torch.float32
    assert spikes.dtype == torch.bfloat16
    spikes.sum().backward()
    made(sequence())  # outside, with the state from inside
    assert made.conv_x[0].weight.grad.dtype == torch.float32


def test_function_without_gradients_saves_nothing_and_packs() -> None:
    current = torch.randn(2, 1, 4, 5, 5, generator=torch.Generator().manual_seed(5))
    weights = [torch.ones(4, 2, 3, 3, requires_grad=True) for _ in range(2)]
    config = stc_cuda.STCConfig(groups=2, packed_spikes=True)
    with torch.no_grad():
        packed, v = stc_cuda.STCFunction.apply(current, *weights, *[None] * 8, config)
    spikes, expected_v = stc_cuda.stc_lif(current, *weights, groups=2)
    assert torch.equal(stc_cuda.unpack_spikes(packed, 4), spikes)
    assert torch.equal(v, expected_v)
    with pytest.raises(TypeError, match=r"got 11 arguments, expected 12: current"):
        stc_cuda.STCFunction.apply(current, *weights, *[None] * 8)
