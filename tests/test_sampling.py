"""Scheduled sampling: the schedules' numbers, and masks that hide given frames."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stc_cuda.models import (
    NoSampling,
    ReverseScheduledSampling,
    ScheduledSampling,
    SpikingPredictor,
    frames_to_patches,
    patches_to_frames,
)

T_IN, T_OUT, SAMPLES = 4, 3, 2
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def build(**changes: Any) -> SpikingPredictor:
    torch.manual_seed(0)
    arguments = {"in_shape": (T_IN, 1, 8, 8), "out_frames": T_OUT, "hidden": (8, 8), "groups": 2, "kernel_size": 3}
    return SpikingPredictor(**{**arguments, **changes}).double()


def video(model: SpikingPredictor) -> Tensor:
    shape = (SAMPLES, model.in_shape[0] + model.out_frames, *model.in_shape[1:])
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def step_by_step(model: SpikingPredictor, frames: Tensor, mask: Tensor) -> Tensor:
    """PredRNN's loop: frame t is ``mask[:, t - 1]`` true and the rest predicted, from the second one on."""
    patches = frames_to_patches(frames, model.patch_size)
    for cell in model.cell_list:
        cell.step_mode = "s"
    predictions: list[Tensor] = []
    for t in range(frames.shape[1] - 1):
        x = patches[:, t]
        if t:
            weight = mask[:, t - 1, None, None, None].double()
            x = weight * x + (1 - weight) * predictions[-1]
        for cell in model.cell_list:
            x = cell(x)
        predictions.append(model.conv_last(x))
    model.reset()
    for cell in model.cell_list:
        cell.step_mode = "m"
    return patches_to_frames(torch.stack(predictions, 1), model.patch_size)


MASKS = {
    "some given frames hidden": [[1, 0, 1, 1, 0], [1, 1, 0, 0, 1]],
    "all hidden": [[0] * 5] * 2,
    "all shown": [[1] * 5] * 2,
    "given ones shown": [[1, 1, 1, 0, 1], [1, 1, 1, 1, 0]],
    "fractions": [[0.5, 1, 0.25, 0, 0.75], [1, 0.1, 0.9, 1, 0]],
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_every_step_equals_predrnn_s_loop(name: str) -> None:
    model = build()
    frames, mask = video(model), torch.tensor(MASKS[name], dtype=torch.float64)
    found = model(frames, mask)
    expected = step_by_step(model, frames, mask)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.rand(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    learnt = [p for p in model.parameters() if p.requires_grad]
    for got, want in zip(
        torch.autograd.grad(found, learnt, upstream), torch.autograd.grad(expected, learnt, upstream), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_both_kinds_of_mask_agree_where_the_given_frames_are_shown() -> None:
    model = build()
    frames = video(model)
    short = torch.tensor([[True, False], [False, True]])
    wide = torch.cat((torch.ones(SAMPLES, T_IN - 1, dtype=torch.bool), short), 1)
    assert torch.equal(model(frames, wide), model(frames, short))
    hidden = wide.clone()
    hidden[0, 1] = False
    assert not torch.equal(model(frames, hidden), model(frames, short))


def test_with_one_given_frame_the_kinds_are_one() -> None:
    model = build(in_shape=(1, 1, 8, 8))
    frames = video(model)
    mask = torch.tensor([[True, False], [True, True]])
    torch.testing.assert_close(model(frames, mask), step_by_step(model, frames, mask), rtol=1e-11, atol=1e-11)


def test_neither_kind_of_mask() -> None:
    with pytest.raises(ValueError, match=r"expected \[2, 2\] = .*, or \[2, 5\] = \[N, T_in \+ T_out - 2\]"):
        build()(video(build()), torch.ones(2, 3))


def test_scheduled() -> None:
    schedule = ScheduledSampling()
    assert [schedule.probability(i) for i in (0, 25_000, 49_999, 50_000, 10**6)] == pytest.approx(
        [1.0, 0.5, 2e-5, 0.0, 0.0]
    )
    assert schedule.probability(50_000) == 0
    assert schedule.teacher_mask(0, 5, T_IN, T_OUT).all()
    assert not schedule.teacher_mask(50_000, 5, T_IN, T_OUT).any()
    mask = schedule.teacher_mask(25_000, 4000, T_IN, T_OUT, torch.Generator().manual_seed(0))
    assert mask.shape == (4000, T_OUT - 1)
    assert mask.float().mean(0).sub(0.5).abs().max() < 0.04  # 5 standard deviations


def test_reverse_scheduled() -> None:
    schedule = ReverseScheduledSampling()
    given = [schedule.given_probability(i) for i in (0, 25_000, 30_000, 49_999, 50_000)]
    assert given == pytest.approx([0.5, 0.5, 1 - 0.5 * math.exp(-1), 1 - 0.5 * math.exp(-24_999 / 5_000), 1.0])
    ahead = [schedule.probability(i) for i in (0, 25_000, 37_500, 50_000, 90_000)]
    assert ahead == pytest.approx([0.5, 0.5, 0.25, 0.0, 0.0])
    mask = schedule.teacher_mask(50_000, 3, T_IN, T_OUT)
    assert mask.tolist() == [[True] * (T_IN - 1) + [False] * (T_OUT - 1)] * 3
    mask = schedule.teacher_mask(30_000, 4000, T_IN, T_OUT, torch.Generator().manual_seed(0)).float().mean(0)
    assert mask[: T_IN - 1].sub(given[2]).abs().max() < 0.04
    assert mask[T_IN - 1 :].sub(schedule.probability(30_000)).abs().max() < 0.04


def test_masks_follow_their_generator_and_fit_the_predictor() -> None:
    model = build()
    for schedule in (ScheduledSampling(rate=1e-2), ReverseScheduledSampling(begin=5, end=30), NoSampling()):
        masks = [schedule.teacher_mask(20, 2, T_IN, T_OUT, torch.Generator().manual_seed(s)) for s in (3, 3)]
        assert torch.equal(*masks)
        assert model(video(model), masks[0]).shape == (2, T_IN + T_OUT - 1, 1, 8, 8)
    assert not NoSampling().teacher_mask(0, 2, T_IN, T_OUT).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScheduledSampling(start=1.5), "start: got 1.5, expected a probability"),
        (lambda: ScheduledSampling(rate=-1), "rate: got -1, expected at least 0"),
        (lambda: ScheduledSampling(rate=math.nan), "rate: got nan"),
        (lambda: ReverseScheduledSampling(begin=9, end=9), "begin, end: got 9 and 9"),
        (lambda: ReverseScheduledSampling(scale=0), "scale: got 0"),
    ],
)
def test_bad_schedules(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neuron", ["lif", "stclif", "stclmh"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_autocast_keeps_the_states_in_float32(device: str, neuron: str, dtype: torch.dtype) -> None:
    model = build(neuron=neuron).float().to(device)
    frames = video(model).float().to(device)
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    for cell in model.cell_list:
        cell.register_forward_hook(lambda cell, _, spikes: seen.append((cell.v.dtype, spikes.dtype)))
    mask = torch.tensor([[True, False]] * 2, device=device)
    with torch.autocast(device, dtype):
        predictions = model(frames, mask)
    assert predictions.dtype == torch.float32
    assert {v for v, _ in seen} == {torch.float32}
    # Autocast runs the norm of an element-wise neuron's current in float32 on a GPU, and spikes are as the current.
    wide = device == "cuda" and neuron == "lif"
    assert {spikes for _, spikes in seen} == {torch.float32 if wide else dtype}
    predictions.sub(frames[:, 1:]).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()
