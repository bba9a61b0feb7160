"""The predictor against the authors' network written out step by step from the equations."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import device_of
from torch import Tensor

from stc_cuda.models import SpikingPredictor, frames_to_patches, patches_to_frames

SMALL: dict[str, Any] = {
    "in_shape": (3, 2, 8, 12), "out_frames": 4, "hidden": (8, 16), "patch_size": 2, "kernel_size": 3, "groups": 4,
}  # fmt: skip
DATA_SETS = {
    "moving_mnist": ({"in_shape": (10, 1, 64, 64), "out_frames": 10, "patch_size": 2}, 3_922_432),
    "taxibj": ({"in_shape": (4, 2, 32, 32), "out_frames": 4, "patch_size": 1}, 3_909_120),
    "kth": ({"in_shape": (10, 1, 128, 128), "out_frames": 20, "patch_size": 4}, 4_002_304),
}


# --- the oracle: shares nothing with the package --------------------------------------------------------------------


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        sigmoid = torch.sigmoid(4 * ctx.saved_tensors[0])
        return grad * 4 * sigmoid * (1 - sigmoid)


def patch_by_loop(frame: Tensor, p: int) -> Tensor:
    n, channels, height, width = frame.shape
    out = frame.new_empty(n, p * p * channels, height // p, width // p)
    for row in range(p):
        for column in range(p):
            for c in range(channels):
                out[:, (row * p + column) * channels + c] = frame[:, c, row::p, column::p]
    return out


def unpatch_by_loop(patches: Tensor, p: int) -> Tensor:
    n, depth, height, width = patches.shape
    channels = depth // p**2
    out = patches.new_empty(n, channels, height * p, width * p)
    for row in range(p):
        for column in range(p):
            for c in range(channels):
                out[:, c, row::p, column::p] = patches[:, (row * p + column) * channels + c]
    return out


def oracle(
    weights: dict[str, Tensor],
    frames: Tensor,
    mask: Tensor | None,
    given: int,
    patch_size: int,
    groups: int,
    detach: bool,
    layers: int,
) -> Tensor:
    """Every layer at every step, frame after frame, as the authors' loop does it."""

    def conv_norm(x: Tensor, key: str, conv_groups: int) -> Tensor:
        weight = weights[f"{key}.0.weight"]
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=conv_groups)
        return F.group_norm(y, groups, weights[f"{key}.1.weight"], weights[f"{key}.1.bias"], 1e-5)

    state: dict[int, tuple[Tensor, Tensor]] = {}
    predictions: list[Tensor] = []
    shown = frames
    for t in range(frames.shape[1] - 1):
        if t < given:
            shown = patch_by_loop(frames[:, t], patch_size)
        else:
            m = torch.zeros(len(frames), dtype=frames.dtype) if mask is None else mask[:, t - given]
            m = m.view(-1, 1, 1, 1)
            shown = m * patch_by_loop(frames[:, t], patch_size) + (1 - m) * shown
        x = shown
        for i in range(layers):
            key = f"cell_list.{i}"
            current = conv_norm(x, f"{key}.conv_x", 1)
            v, s = state.get(i, (torch.zeros_like(current), torch.zeros_like(current)))
            gate_input = s.detach() if detach else s
            temporal = torch.tanh(conv_norm(gate_input, f"{key}.conv_h", groups))
            spatial = torch.tanh(conv_norm(gate_input, f"{key}.conv_v", groups))
            v = v * (1 + temporal) + current * (1 + spatial)
            x = Spike.apply(v - 1.0)
            state[i] = (v - x, x)
        shown = F.conv2d(x, weights["conv_last.weight"])
        predictions.append(unpatch_by_loop(shown, patch_size))
    return torch.stack(predictions, 1)


def build(dtype: torch.dtype = torch.float64, backend: str = "auto", seed: int = 0, **changes: Any) -> SpikingPredictor:
    """A small predictor whose norms are not at their initial ones and zeros."""
    torch.manual_seed(seed)
    model = SpikingPredictor(**{**SMALL, **changes}, backend=backend).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".1.weight", ".1.bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(device_of(backend))


def video(model: SpikingPredictor, samples: int = 2, extra: int | None = None, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    given, *frame = model.in_shape
    count = given + (model.out_frames if extra is None else extra)
    weight = model.conv_last.weight
    return torch.rand(samples, count, *frame, generator=generator, dtype=torch.float64).to(weight.device, weight.dtype)


CASES = {
    "no mask": ({}, None),
    "no mask, detached gates": ({"gradient_detach": True}, None),
    "Bernoulli mask": ({}, "bernoulli"),
    "fractional mask": ({}, "fraction"),
    "whole frames shown, detached gates": ({"gradient_detach": True}, "ones"),
    "TaxiBJ-like, patch 1": ({"in_shape": (2, 2, 6, 5), "patch_size": 1, "kernel_size": 5}, "bernoulli"),
    "KTH-like, patch 4": ({"in_shape": (4, 1, 16, 12), "patch_size": 4, "hidden": (8, 8, 8)}, "bernoulli"),
    "one frame in, one out": ({"in_shape": (1, 2, 8, 8), "out_frames": 1}, None),
}


def make_mask(kind: str | None, shape: tuple[int, int]) -> Tensor | None:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return {
        None: None, "ones": torch.ones_like(uniform), "fraction": uniform, "bernoulli": (uniform < 0.5).double(),
    }[kind]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_loop(any_backend: str, case: str) -> None:
    changes, mask_kind = CASES[case]
    model = build(backend=any_backend, **changes)
    frames = video(model).requires_grad_()
    mask = make_mask(mask_kind, (2, model.out_frames - 1))
    weights = {k: p.detach().cpu().requires_grad_() for k, p in model.named_parameters()}
    settings = {**SMALL, **changes}
    expected_frames = frames.detach().cpu().requires_grad_()
    expected = oracle(
        weights,
        expected_frames,
        mask,
        given=settings["in_shape"][0],
        patch_size=settings["patch_size"],
        groups=settings["groups"],
        detach=settings.get("gradient_detach", False),
        layers=len(settings["hidden"]),
    )
    found = model(frames, None if mask is None else mask.to(frames.device))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-10)

    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found_grads = torch.autograd.grad(found, [frames, *model.parameters()], upstream.to(frames.device))
    expected_grads = torch.autograd.grad(expected, [expected_frames, *weights.values()], upstream)
    for name, got, want in zip(["frames", *weights], found_grads, expected_grads, strict=True):
        error = (got.cpu() - want).norm() / want.norm().clamp(min=1e-3)
        assert error < 1e-9, f"{name}: relative error {error:.1e}"


def test_given_frames_as_one_sequence_equal_single_steps(any_backend: str) -> None:
    model = build(backend=any_backend)
    frames = video(model)
    found = model(frames)
    given = frames_to_patches(frames, 2).transpose(0, 1)
    shown, predictions = given[0], []
    for cell in model.cell_list:
        cell.step_mode = "s"
    for t in range(frames.shape[1] - 1):
        x = given[t] if t < model.in_shape[0] else shown
        for cell in model.cell_list:
            x = cell(x)
        shown = model.conv_last(x)
        predictions.append(patches_to_frames(shown, 2))
    torch.testing.assert_close(found, torch.stack(predictions, 1), rtol=1e-12, atol=1e-12)


def test_gradcheck_through_the_roll_out(any_backend: str) -> None:
    model = build(backend=any_backend, in_shape=(2, 1, 4, 6), out_frames=3, hidden=(4, 4), groups=2, patch_size=2)
    for cell in model.cell_list:
        cell.config = dataclasses.replace(cell.config, spiking=False)
    frames = video(model, samples=1).requires_grad_()
    mask = torch.tensor([[1.0, 0.25]], dtype=torch.float64, device=frames.device)
    first = model.cell_list[0].conv_h[0].weight

    def call(frames: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            first.copy_(weight)
        return torch.func.functional_call(model, {"cell_list.0.conv_h.0.weight": weight}, (frames, mask))

    assert torch.autograd.gradcheck(call, (frames, first.detach().clone().requires_grad_()))


# --- names and sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA_SETS)
def test_keys_shapes_and_counts_are_the_authors(name: str) -> None:
    arguments, count = DATA_SETS[name]
    model = SpikingPredictor(**arguments)
    channels = arguments["patch_size"] ** 2 * arguments["in_shape"][1]
    expected: OrderedDict[str, tuple[int, ...]] = OrderedDict()
    for i in range(3):
        expected[f"cell_list.{i}.conv_x.0.weight"] = (256, channels if i == 0 else 256, 5, 5)
        for pathway in ("conv_h", "conv_v"):
            expected[f"cell_list.{i}.{pathway}.0.weight"] = (256, 16, 5, 5)
        for part in ("conv_x", "conv_h", "conv_v"):
            expected[f"cell_list.{i}.{part}.1.weight"] = (256,)
            expected[f"cell_list.{i}.{part}.1.bias"] = (256,)
    expected["conv_last.weight"] = (channels, 256, 1, 1)
    assert {k: tuple(w.shape) for k, w in model.state_dict().items()} == dict(expected)
    assert sum(p.numel() for p in model.parameters()) == count


def test_patch_order_is_openstl_s() -> None:
    frames = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = frames_to_patches(frames, 2)
    assert torch.equal(patches, patch_by_loop(frames, 2))
    assert not torch.equal(patches, F.pixel_unshuffle(frames.double(), 2).long())
    video = frames.expand(5, 2, 3, 4, 6)
    assert torch.equal(patches_to_frames(frames_to_patches(video, 2), 2), video)
    assert torch.equal(frames_to_patches(frames, 1), frames)


# --- behaviour ------------------------------------------------------------------------------------------------------


def test_predict_continues_without_labels(any_backend: str) -> None:
    model = build(backend=any_backend)
    frames = video(model)
    given = frames[:, : model.in_shape[0]]
    expected = model(frames)[:, -model.out_frames :]
    found = model.predict(given, model.out_frames)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
    longer = model.predict(given, 3 * model.out_frames)
    assert longer.shape == (2, 3 * model.out_frames, 2, 8, 12)
    torch.testing.assert_close(longer[:, : model.out_frames], found, rtol=1e-12, atol=1e-12)
    assert model.predict(given, 1).shape == (2, 1, 2, 8, 12)


def test_frames_after_the_given_ones_are_seen_only_through_the_mask() -> None:
    model = build()
    frames = video(model)
    other = frames.clone()
    other[:, model.in_shape[0] :] = 0.5
    with torch.no_grad():
        assert torch.equal(model(frames), model(other))
        mask = torch.zeros(2, 3, dtype=torch.float64)
        assert torch.equal(model(frames, mask), model(other))
        assert torch.equal(model(frames, mask.bool()), model(other))
        mask[1, 1] = 1
        changed = (model(frames, mask) != model(other, mask)).any(-1).any(-1).any(-1)
    assert changed.tolist() == [[False] * 6, [False] * 4 + [True] * 2]


def test_no_state_outlives_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    frames = video(model)
    first = model(frames)
    assert all(cell.v is None and cell.spikes is None for cell in model.cell_list)
    second = model(frames)
    assert torch.equal(first, second)
    first.sum().backward()
    second.sum().backward()
    model.predict(frames[:1, :3], 2)
    assert all(cell.v is None and cell.spikes is None for cell in model.cell_list)

    def broken(_: Tensor) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(model.conv_last, "forward", broken)
    with pytest.raises(MemoryError):
        model(frames)
    assert all(cell.v is None and cell.spikes is None for cell in model.cell_list)


def test_state_dict_round_trip_is_strict() -> None:
    model, other = build(seed=0), build(seed=5)
    frames = video(model)
    assert not torch.equal(model(frames), other(frames))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model(frames), other(frames))


def test_single_precision_and_other_layouts() -> None:
    model = build(torch.float32)
    frames = video(model)
    with torch.no_grad():
        expected = model(frames)
        assert expected.dtype == torch.float32
        sliced = torch.zeros(2, 9, 2, 8, 12)[:, 1:-1].copy_(frames)
        assert torch.equal(model(sliced), expected)
        last = frames.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, -1))
        assert torch.equal(model(last), expected)


def test_empty_batch() -> None:
    model = build()
    assert model(video(model, samples=0), torch.zeros(0, 3)).shape == (0, 6, 2, 8, 12)
    assert model.predict(video(model, samples=0, extra=0), 2).shape == (0, 2, 2, 8, 12)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"neuron": "resnet"}, ValueError, "neuron: got 'resnet', expected one of 'lif', .*'stclif'.*NeuronLayer"),
        ({"neuron": "LIF"}, ValueError, "neuron: got 'LIF', expected one of 'lif'"),
        ({"neuron": torch.nn.Conv2d}, ValueError, "neuron: got .*Conv2d"),
        ({"neuron": ["stclif"]}, ValueError, "neuron: got"),
        ({"in_shape": (3, 8, 12)}, ValueError, r"in_shape: got \(3, 8, 12\), expected 4 sizes"),
        ({"in_shape": (3, 1, 8, 0)}, ValueError, "in_shape: got 0, expected at least 1"),
        ({"in_shape": (3, 1, 8, 12.0)}, TypeError, "in_shape: got 12.0"),
        ({"in_shape": 64}, TypeError, "in_shape: got 64"),
        ({"out_frames": 0}, ValueError, "out_frames: got 0, expected at least 1"),
        ({"out_frames": True}, TypeError, "out_frames: got True"),
        ({"hidden": ()}, ValueError, "hidden: got no layer"),
        ({"hidden": (8, 10)}, ValueError, r"hidden: got \(8, 10\), expected multiples of groups = 4"),
        ({"hidden": 8}, TypeError, "hidden: got 8"),
        ({"patch_size": 0}, ValueError, "patch_size: got 0"),
        ({"patch_size": 3}, ValueError, "patch_size: got 3, expected a divisor of the 8 x 12 pixels"),
        ({"kernel_size": 4}, ValueError, "kernel_size: got 4, expected an odd"),
        ({"groups": -1}, ValueError, "groups: got -1"),
        ({"gradient_detach": "yes"}, TypeError, "gradient_detach: got str"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SpikingPredictor(**{**SMALL, **changes})


GOOD = torch.zeros(2, 7, 2, 8, 12, dtype=torch.float64)


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (GOOD.numpy(), TypeError, "frames: got ndarray, expected a tensor"),
        (GOOD[0], ValueError, r"frames: got 4 dimensions, .* expected 5: \[N, T_in \+ T_out, C, H, W\]"),
        (GOOD[:, :6], ValueError, r"frames: got 6 frames, expected 7 = T_in \+ T_out"),
        (GOOD[:, :, :1], ValueError, "frames: got 1 channels, .* expected 2"),
        (GOOD[..., :6, :], ValueError, "frames: got 6 rows, .* expected 8"),
        (GOOD[..., :8], ValueError, "frames: got 8 columns, .* expected 12"),
        (GOOD.transpose(-1, -2), ValueError, "frames: got 12 rows, .* expected 8"),
        (GOOD.float(), TypeError, "frames: got dtype torch.float32, expected torch.float64"),
        (GOOD.to(torch.uint8), TypeError, r"frames: got dtype torch.uint8, .* scale the pixels to \[0, 1\]"),
        (GOOD.to("meta"), ValueError, "frames: got device meta, expected cpu"),
    ],
)
def test_bad_frames(frames: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()(frames)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[1, 1, 1]] * 2, TypeError, "teacher_mask: got list"),
        (torch.zeros(2, 4), ValueError, r"teacher_mask: got shape \[2, 4\], expected \[2, 3\] = \[N, T_out - 1\]"),
        (torch.zeros(3), ValueError, r"teacher_mask: got shape \[3\]"),
        (torch.zeros(1, 3), ValueError, r"teacher_mask: got shape \[1, 3\], expected \[2, 3\]"),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError, "teacher_mask: got dtype torch.complex64"),
        (torch.zeros(2, 3, device="meta"), ValueError, "teacher_mask: got device meta"),
    ],
)
def test_bad_masks(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()(GOOD, mask)


@pytest.mark.parametrize(
    ("frames", "steps", "error", "message"),
    [
        (GOOD[:, :2], 4, ValueError, "frames: got 2 frames, expected 3 = T_in"),
        (GOOD[:, :3], 0, ValueError, "steps: got 0, expected at least 1"),
        (GOOD[:, :3], 2.0, TypeError, "steps: got 2.0"),
    ],
)
def test_bad_predict_arguments(frames: Tensor, steps: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build().predict(frames, steps)


def test_bad_patches() -> None:
    with pytest.raises(ValueError, match="patch_size: got 3, expected a divisor of the frame's 4 x 6 pixels"):
        frames_to_patches(torch.zeros(1, 4, 6), 3)
    with pytest.raises(ValueError, match="patch_size: got 2, expected its square to divide the 6 channels"):
        patches_to_frames(torch.zeros(6, 4, 6), 2)
    with pytest.raises(ValueError, match=r"frames: got shape \[4, 6\]"):
        frames_to_patches(torch.zeros(4, 6), 2)
