"""The module STCLIF: parameters, state between calls, step modes, copies."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from oracle import error, size
from torch import Tensor

import stc_cuda
from stc_cuda import STCLIF, reference

KEYS = {
    "conv_x.0.weight": (8, 3, 5, 5),
    "conv_x.1.weight": (8,),
    "conv_x.1.bias": (8,),
    "conv_h.0.weight": (8, 4, 5, 5),
    "conv_h.1.weight": (8,),
    "conv_h.1.bias": (8,),
    "conv_v.0.weight": (8, 4, 5, 5),
    "conv_v.1.weight": (8,),
    "conv_v.1.bias": (8,),
}


def layer(**options: object) -> STCLIF:
    """3 -> 8 channels with parameters away from their special initial values."""
    torch.manual_seed(1)
    made = STCLIF(**{"in_channels": 3, "channels": 8, "groups": 2, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def sequence(steps: int = 4, samples: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(steps, samples, 3, 6, 7, generator=rng) * 2).to(dtype)


def expected_of(module: STCLIF, x: Tensor, **options: object) -> tuple[Tensor, ...]:
    """From the state dict and the equations alone."""
    p = dict(module.named_parameters())
    k = p["conv_x.0.weight"].shape[-1]
    current = torch.stack([torch.conv2d(frame, p["conv_x.0.weight"], padding=k // 2) for frame in x])
    norms = {
        f"{pathway}_norm": (p[f"{conv}.1.weight"], p[f"{conv}.1.bias"])
        for pathway, conv in (("current", "conv_x"), ("temporal", "conv_h"), ("spatial", "conv_v"))
    }
    return reference.stc_lif(
        current, p["conv_h.0.weight"], p["conv_v.0.weight"], groups=2, store_v_seq=True, **norms, **options
    )


# --- parameters -----------------------------------------------------------------------------------------------------


def test_state_dict_keys_and_shapes() -> None:
    assert {name: tuple(x.shape) for name, x in layer().state_dict().items()} == KEYS


def test_paper_layer_parameters() -> None:
    """Moving MNIST's first layer: 256 x 4 x 25 + 2 (256 x 16 x 25) + 3 (2 x 256)."""
    assert sum(p.numel() for p in STCLIF(4, 256).parameters()) == 256 * 4 * 25 + 2 * 256 * 16 * 25 + 6 * 256


def test_strict_load() -> None:
    state = {name: torch.randn(shape) for name, shape in KEYS.items()}
    made = STCLIF(3, 8, groups=2)
    made(sequence())
    made.load_state_dict(state, strict=True)
    for name, x in made.state_dict().items():
        assert torch.equal(x, state[name])
    for key in KEYS:
        with pytest.raises(RuntimeError, match="Missing key"):
            made.load_state_dict({k: v for k, v in state.items() if k != key}, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        made.load_state_dict({**state, "v": torch.zeros(1)}, strict=True)


def test_initial_norms_and_no_biases() -> None:
    made = STCLIF(3, 8, groups=2)
    for name in ("conv_x", "conv_h", "conv_v"):
        conv, norm = getattr(made, name)
        assert conv.bias is None
        assert torch.equal(norm.weight, torch.ones(8))
        assert torch.equal(norm.bias, torch.zeros(8))


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module_options", "options"),
    [
        ({}, {}),
        ({"v_threshold": 0.7, "v_reset": 0.1}, {"v_threshold": 0.7, "v_reset": 0.1}),
        ({"surrogate_function": "atan", "gradient_detach": True}, {"surrogate": "atan", "gradient_detach": True}),
        ({"detach_reset": True, "kernel_size": 3}, {"detach_reset": True}),
        (
            {"surrogate_function": stc_cuda.surrogate.Surrogate("sigmoid", alpha=2.5, spiking=False)},
            {"alpha": 2.5, "spiking": False},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_forward_and_gradients(backend: str, module_options: dict[str, object], options: dict[str, object]) -> None:
    made = layer(backend=backend, store_v_seq=True, **module_options).double()
    x = sequence(dtype=torch.float64).requires_grad_()
    spikes, v, v_seq = expected_of(made, x, **options)
    weight = torch.randn(spikes.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((spikes * weight).sum() + v.sin().sum(), [x, *made.parameters()])
    found = made(x)
    grads = torch.autograd.grad((found * weight).sum() + made.v.sin().sum(), [x, *made.parameters()])
    assert 0.05 < spikes.mean() < 0.95
    assert error(found, spikes) <= 1e-12 * size(spikes)
    assert error(made.v, v) <= 1e-12 * size(v)
    assert error(made.v_seq, v_seq) <= 1e-12 * size(v_seq)
    assert error(made.spikes, spikes[-1]) <= 1e-12 * size(spikes[-1])
    for grad, want in zip(grads, expected, strict=True):
        assert error(grad, want) <= 1e-10 * size(want)


def test_single_steps_equal_a_sequence() -> None:
    many, single = layer(), layer(step_mode="s")
    single.load_state_dict(many.state_dict())
    x = sequence()
    expected = many(x)
    found = torch.stack([single(frame) for frame in x])
    assert found.shape == expected.shape == (4, 2, 8, 6, 7)
    assert torch.equal(found, expected)
    assert torch.equal(single.v, many.v)
    assert torch.equal(single.spikes, many.spikes)
    weight = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    for a, b in zip(single.parameters(), many.parameters(), strict=True):
        assert error(a.grad, b.grad) <= 1e-5 * size(b.grad)  # type: ignore[arg-type]


def test_v_seq_is_kept_only_when_asked_for() -> None:
    made = layer()
    made(sequence())
    assert getattr(made, "v_seq", None) is None
    made = layer(store_v_seq=True)
    made(sequence())
    assert made.v_seq.shape == (4, 2, 8, 6, 7)
    assert torch.equal(made.v_seq[-1], made.v)
    made.reset()
    assert made.v_seq is None


# --- state ----------------------------------------------------------------------------------------------------------


def test_state_is_carried_and_reset() -> None:
    made = layer()
    x = sequence()
    assert made.v is None
    assert made.spikes is None
    whole = made(x)
    made.reset()
    assert made.v is None
    assert made.spikes is None
    halves = torch.cat([made(x[:2]), made(x[2:])])
    assert torch.equal(halves, whole)
    assert not torch.equal(made(x), whole)  # without a reset the second sequence starts elsewhere
    made.reset()
    assert torch.equal(made(x), whole)


def test_gradients_flow_through_the_kept_state_until_detach() -> None:
    made = layer()
    x = sequence().requires_grad_()
    made(x[:2])
    made.spikes.sum().backward(retain_graph=True)
    x.grad = None
    made(x[2:]).sum().backward()
    assert size(x.grad[:2]) > 0
    made.reset()
    x.grad = None
    made(x[:2])
    v, spikes = made.v.clone(), made.spikes.clone()
    made.detach()
    assert torch.equal(made.v, v)
    assert torch.equal(made.spikes, spikes)
    assert not made.v.requires_grad
    assert not made.spikes.requires_grad
    made(x[2:]).sum().backward()
    assert size(x.grad[:2]) == 0
    assert size(x.grad[2:]) > 0


def test_forgotten_reset_says_what_to_do() -> None:
    made = layer()
    made(sequence()).sum().backward()
    with pytest.raises(RuntimeError, match=r"detach\(\).*reset\(\)"):
        made(sequence()).sum().backward()
    for mend in (made.reset, made.detach):
        made.reset()
        made(sequence()).sum().backward()
        mend()
        made(sequence()).sum().backward()


def test_reset_and_detach_before_the_first_call() -> None:
    made = layer()
    made.reset()
    made.detach()
    assert made.v is None


@pytest.mark.parametrize(("samples", "height"), [(3, 6), (2, 5)])
def test_another_batch_or_map_asks_for_a_reset(samples: int, height: int) -> None:
    made = layer()
    made(sequence(samples=2))
    other = sequence(samples=samples)[..., :height, :]
    with pytest.raises(ValueError, match=rf"v: .*\[2, 8, 6, 7\].*\[{samples}, 8, {height}, 7\].*reset\(\)"):
        made(other)
    made.reset()
    assert made(other).shape == (4, samples, 8, height, 7)


def test_state_follows_to() -> None:
    made = layer()
    made(sequence())
    made.double()
    assert made.v.dtype == made.spikes.dtype == torch.float64
    assert made(sequence(dtype=torch.float64)).dtype == torch.float64
    made.to("meta")
    assert made.v.device.type == made.spikes.device.type == "meta"


def test_state_is_not_in_the_state_dict() -> None:
    made = layer()
    made(sequence())
    assert set(made.state_dict()) == set(KEYS)
    assert not list(made.buffers())


@pytest.mark.parametrize("store_v_seq", [False, True])
def test_copies_and_pickles_leave_the_state(store_v_seq: bool) -> None:
    made = layer(v_reset=0.1, store_v_seq=store_v_seq)
    expected = made(sequence())
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.load(buffer, weights_only=False)]
    for other in copies:
        assert other.v is None
        assert other.spikes is None
        assert getattr(other, "v_seq", None) is None
        assert torch.equal(other(sequence()), expected)
        assert other.conv_x[0].weight.data_ptr() != made.conv_x[0].weight.data_ptr()
    assert made.v is not None


def test_state_does_not_hold_the_sequence() -> None:
    """Between sequences a module keeps two maps, whatever the length of the sequence."""
    for needs_grad in (False, True):
        made = layer()
        with torch.set_grad_enabled(needs_grad):
            made(sequence(steps=9))
        made.detach()
        for state in (made.v, made.spikes):
            assert state.untyped_storage().nbytes() == 4 * 2 * 8 * 6 * 7
        assert made.v.untyped_storage().data_ptr() != made.spikes.untyped_storage().data_ptr()


def test_changing_the_output_does_not_change_the_state() -> None:
    for steps in (1, 4):
        made = layer()
        with torch.no_grad():
            out = made(sequence(steps=steps))
            spikes = made.spikes.clone()
            out.zero_()
        assert torch.equal(made.spikes, spikes)
        assert spikes.any()


def test_empty_sequence_keeps_the_state() -> None:
    made = layer()
    made(sequence())
    v, spikes = made.v.clone(), made.spikes.clone()
    assert made(sequence(steps=0)).shape == (0, 2, 8, 6, 7)
    assert torch.equal(made.v, v)
    assert torch.equal(made.spikes, spikes)
    made.reset()
    assert made(sequence(steps=0)).shape == (0, 2, 8, 6, 7)
    made.reset()
    assert made(sequence(samples=0)).shape == (4, 0, 8, 6, 7)


def test_a_kept_v_seq_is_cut_by_detach() -> None:
    made = layer(store_v_seq=True)
    made(sequence())
    assert made.v_seq.requires_grad
    made.detach()
    assert made.v_seq is None or not made.v_seq.requires_grad


def test_channels_last_model() -> None:
    made = layer()
    x = sequence()
    expected = made(x)
    made.reset()
    made.to(memory_format=torch.channels_last)
    found = made(x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 2)))
    assert (found != expected).float().mean() <= 1e-3  # conv_x sums in another order
    assert error(made.v, expected_of(made, x)[1]) <= 1e-4 * size(made.v)


# --- surrogates -----------------------------------------------------------------------------------------------------


class Sigmoid:
    """What SNN users pass: an object with alpha and spiking, named after the function."""

    def __init__(self, alpha: float = 4.0, spiking: bool = True) -> None:
        self.alpha = alpha
        self.spiking = spiking


class ATan(Sigmoid):
    pass


class PiecewiseQuadratic(Sigmoid):
    pass


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


def test_unknown_surrogate_object_is_refused() -> None:
    with pytest.raises(ValueError, match=r"surrogate_function: got .*LeakyKReLU.* expected one of 'sigmoid', 'atan'"):
        layer(surrogate_function=LeakyKReLU())


def test_repr_shows_the_options() -> None:
    text = repr(layer(v_threshold=0.7, v_reset=0.1, gradient_detach=True))
    for part in ("v_threshold=0.7", "v_reset=0.1", "gradient_detach=True", "groups=2"):
        assert part in text


def test_training_lowers_a_loss() -> None:
    """The gradients point the right way: a layer learns to fire at a given rate."""
    made = layer()
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


def test_hooks_on_parts_that_are_not_called_are_refused() -> None:
    made = layer()
    made.conv_h[0].register_forward_pre_hook(lambda module, inputs: None)
    with pytest.raises(RuntimeError, match=r"hooks: got a forward hook on Conv2d"):
        made(sequence())


def test_a_state_from_inference_mode_asks_for_reset() -> None:
    made = layer()
    with torch.inference_mode():
        made(sequence())
    with pytest.raises(RuntimeError, match=r"inference_mode.*reset\(\)"):
        made(sequence())
    made.reset()
    made(sequence()).sum().backward()


def test_autocast_keeps_the_state_in_single_precision() -> None:
    made = layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spikes = made(sequence())
        made(sequence())
    assert made.v is not None
    assert made.v.dtype == torch.float32
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
