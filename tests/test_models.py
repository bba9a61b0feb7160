"""The predictor against the authors' network written out step by step from the equations (authors.py)."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import authors
import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import device_of
from parity import Float32Report
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


def build(dtype: torch.dtype = torch.float64, backend: str = "auto", seed: int = 0, **changes: Any) -> SpikingPredictor:
    """A small predictor whose norms and neurons' own parameters are not at their initial values."""
    torch.manual_seed(seed)
    model = SpikingPredictor(**{**SMALL, **changes}, backend=backend).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(".0.weight") and name != "conv_last.weight":
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


def authors_model_of(model: SpikingPredictor, neuron: str, settings: dict[str, Any]) -> authors.Model:
    """With the weights of ``model``, and gradients for the same ones."""
    other = authors.build(neuron, settings)
    other.load_state_dict(model.state_dict(), strict=True)
    return other


def check_float64(
    neuron: str, backend: str, changes: dict[str, Any], mask_kind: str | None, tolerance: float = 1e-10
) -> None:
    """Spikes, predictions, loss and all gradients of a predictor against those of the authors' model."""
    model = build(neuron=neuron, backend=backend, **changes)
    other = authors_model_of(model, neuron, {**SMALL, **changes})
    frames = video(model).requires_grad_()
    expected_frames = frames.detach().cpu().requires_grad_()
    mask = make_mask(mask_kind, (2, model.out_frames - 1))
    with recorded_spikes(model) as spikes, recorded_spikes(other) as expected_spikes:
        found = model(frames, None if mask is None else mask.to(frames.device))
        expected, expected_loss = authors.predict(other, expected_frames, mask)
    for layer, (mine, theirs) in enumerate(zip(spikes(), expected_spikes(), strict=True)):
        assert torch.equal(mine.cpu(), theirs), f"layer {layer}: {int((mine.cpu() != theirs).sum())} spikes differ"
        assert 0 < theirs.mean() < 1
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)
    loss = F.mse_loss(found, frames[:, 1:])
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=tolerance, atol=0.0)

    loss.backward()
    expected_loss.backward()
    pairs = {"frames": (frames, expected_frames)}
    pairs |= {name: (mine, other.get_parameter(name)) for name, mine in model.named_parameters()}
    assert pairs.keys() - {"frames"} == dict(other.named_parameters()).keys()
    for name, (mine, theirs) in pairs.items():
        if theirs.grad is None:
            assert mine.grad is None or not mine.grad.any(), f"{name}: a gradient, and the authors' has none"
            continue
        assert mine.grad is not None, f"{name}: no gradient"
        error = (mine.grad.cpu() - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-12)
        assert error < 1e-9, f"{name}: relative error {error:.1e}"


@contextmanager
def recorded_spikes(model: torch.nn.Module) -> Iterator[Callable[[], list[Tensor]]]:
    """A function that gives the spikes ``[T, N, C, H, W]`` of each layer while the block lasts."""
    steps: list[list[Tensor]] = [[] for _ in model.cell_list]

    def record(found: list[Tensor], output: Any) -> None:
        found.append(output[0][None] if isinstance(output, tuple) else output)

    hooks = [
        cell.register_forward_hook(lambda _m, _x, output, found=found: record(found, output))
        for cell, found in zip(model.cell_list, steps, strict=True)
    ]
    try:
        yield lambda: [torch.cat(found).detach() for found in steps]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_loop(any_backend: str, case: str) -> None:
    changes, mask_kind = CASES[case]
    check_float64("stclif", any_backend, changes, mask_kind)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("neuron", authors.CELLS)
def test_every_neuron_equals_the_authors_model(any_backend: str, neuron: str, detach: bool) -> None:
    changes = {"in_shape": (3, 1, 8, 12), "hidden": (8, 8, 8), "gradient_detach": detach}
    check_float64(neuron, any_backend, changes, "bernoulli")


@pytest.mark.parametrize("neuron", authors.CELLS)
def test_predictions_depend_on_every_parameter_that_the_neuron_uses(neuron: str) -> None:
    """So that nothing of the authors' model is compared without having had a part in it."""
    model = build(neuron=neuron, hidden=(8, 8))
    other, frames = authors_model_of(model, neuron, {**SMALL, "hidden": (8, 8)}), video(model)
    expected, _ = authors.predict(other, frames, None)
    unused = {"lmh": ("t_m",), "stclmh": ("t_m",), "tclif": ("d_u", "d_p")}.get(neuron, ())
    for name, parameter in other.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.5 * torch.randn(kept.shape, generator=torch.Generator().manual_seed(4))
            found, _ = authors.predict(other, frames, None)
            parameter.copy_(kept)
        assert torch.equal(found, expected) == (name.rpartition(".")[2] in unused), name


# --- single precision, by the numerics policy -----------------------------------------------------------------------

MIRRORS = ((), (-1,), (-2,), (-1, -2))  # what is flipped: equal mathematically, rounded differently


def mirrored(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Frames, or the weights of a model whose patches are pixels."""
    return tensor.flip(dims) if tensor.dim() >= 4 else tensor


def single(model: torch.nn.Module, call: Callable[[], Tensor], dims: tuple[int, ...] = ()) -> oracle.Outcome:
    """Spikes of all layers ``[T * layers, N, C, H, W]``, predictions and gradients in float64, flipped back."""
    with recorded_spikes(model) as spikes:
        predictions = call()
    layers = torch.stack(spikes(), 1).flatten(0, 1)
    outputs = {"spikes": layers, "predictions": predictions}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    upstream = torch.randn(predictions.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    upstream = mirrored(upstream, dims).to(predictions)
    grads = torch.autograd.grad(predictions, list(parameters.values()), upstream, allow_unused=True)
    named = {name: g for name, g in zip(parameters, grads, strict=True) if g is not None}

    def back(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: mirrored(x.detach().double().cpu(), dims) for name, x in found.items()}

    return oracle.Outcome(back(outputs), back(named))


def compare_single(neuron: str, backend: str, seed: int, detach: bool) -> Float32Report:
    """A predictor in float32, free-running over seven steps, against the authors' model in float64."""
    settings = {
        **SMALL, "in_shape": (4, 2, 6, 8), "out_frames": 4, "hidden": (8, 8), "patch_size": 1,
        "gradient_detach": detach,
    }  # fmt: skip
    model = build(torch.float32, backend, seed, neuron=neuron, **settings)
    frames, mask = video(model, seed=seed + 100), make_mask("bernoulli", (2, 3))
    assert mask is not None
    answering = authors_model_of(model, neuron, settings)
    answer = single(answering, lambda: authors.predict(answering, frames.double().cpu(), mask)[0])
    traces = [torch.stack(x) for cell in answering.cell_list for x in zip(*cell.trace, strict=True)]
    above, magnitude = (torch.stack(traces[k::2], 1).flatten(0, 1) for k in (0, 1))
    found = single(model, lambda: model(frames, mask.to(frames.device)))

    report = Float32Report(spikes=found.outputs["spikes"].numel())
    undecided = above.abs() <= oracle.BAND * magnitude
    flips = oracle.free_running_flips(found.outputs["spikes"], answer.outputs["spikes"], undecided)
    report.flips, report.outside_band = flips.inside, flips.outside
    peers = []
    for dims in MIRRORS:
        peer = authors_model_of(model, neuron, settings).float()
        with torch.no_grad():
            for parameter in peer.parameters():
                parameter.copy_(mirrored(parameter, dims))
        seen = mirrored(frames.cpu(), dims)
        outcome = single(peer, lambda peer=peer, seen=seen: authors.predict(peer, seen, mask)[0], dims)  # type: ignore[misc]
        if torch.equal(outcome.outputs["spikes"], answer.outputs["spikes"]):
            peers.append(outcome)
    if flips.any or not peers:
        report.skipped_gradients = 1
        return report
    assert found.grads.keys() == answer.grads.keys()
    sizes = {name: oracle.size(grad) for name, grad in answer.grads.items()}

    def joined(outcome: oracle.Outcome) -> Tensor:
        """All gradients, each in parts of its size: the rounding of one predictor is one draw for all of them."""
        return torch.cat([outcome.grads[name].flatten() / size for name, size in sizes.items()])

    label = f"{neuron}, seed {seed}"
    exact, theirs = answer.outputs["predictions"], [peer.outputs["predictions"] for peer in peers]
    report.compare(f"{label}: predictions", found.outputs["predictions"], exact, oracle.size(exact), theirs)
    exact, theirs = joined(answer), [joined(peer) for peer in peers]
    report.compare(f"{label}: gradients", joined(found), exact, oracle.size(exact), theirs)
    return report


@pytest.mark.parametrize("neuron", authors.CELLS)
def test_single_precision_by_the_numerics_policy(
    any_backend: str, neuron: str, record_property: Callable[[str, object], None]
) -> None:
    report = Float32Report()
    for seed in range(2 if any_backend == oracle.EMULATED else 8):
        report.add(compare_single(neuron, any_backend, seed, detach=seed % 2 == 1))
    report.record(record_property, f"predictor of {neuron}")
    report.check()


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
    assert torch.equal(patches, authors.patches(frames, 2).movedim(-1, -3))
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
