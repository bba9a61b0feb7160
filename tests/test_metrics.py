"""Metrics against scikit-image and against NumPy written out from the definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from stc_cuda import metrics

ALL = ("mse", "mae", "rmse", "psnr", "ssim", "ssim_openstl")
SHAPES = ((2, 3, 1, 16, 16), (3, 2, 3, 9, 21), (1, 1, 2, 7, 7), (1, 2, 1, 64, 64))


def videos(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A prediction that leaves [0, 1] in places, and a truth with flat areas."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.rand(shape, generator=generator, dtype=torch.float64)
    true = torch.where(true < 0.3, torch.zeros(()).double(), true)
    pred = true + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    true[..., 0, 0] = 1.1  # as TaxiBJ has it: only the prediction is clipped
    assert pred.min() < 0
    assert pred.max() > 1
    return pred.to(dtype), true.to(dtype)


def frame_values(name: str, pred: Tensor, true: Tensor) -> np.ndarray:
    """The metric of every frame ``[B, T]``, one at a time."""

    def one(p: np.ndarray, t: np.ndarray) -> float:
        if name == "mse":
            return float(((p - t) ** 2).sum())
        if name == "mae":
            return float(np.abs(p - t).sum())
        p = np.clip(p, 0, 1)
        if name == "psnr":
            return float(peak_signal_noise_ratio(t, p, data_range=1))
        return float(structural_similarity(p, t, channel_axis=0, data_range=1 if name == "ssim" else 2))

    pairs = zip(pred.double().numpy(), true.double().numpy(), strict=True)
    return np.array([[one(p, t) for p, t in zip(a, b, strict=True)] for a, b in pairs])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ALL)
def test_equals_the_definition(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pred, true = videos(shape, dtype)
    metric: Callable[..., Tensor] = getattr(metrics, name)
    root = np.sqrt if name == "rmse" else np.asarray
    frames = frame_values("mse" if name == "rmse" else name, pred, true)
    found, per_frame = metric(pred, true), metric(pred, true, per_frame=True)
    assert found.shape == ()
    assert per_frame.shape == (shape[1],)
    assert found.dtype == per_frame.dtype == torch.float64
    np.testing.assert_allclose(float(found), root(frames.mean()), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(per_frame.numpy(), root(frames.mean(0)), rtol=1e-10, atol=1e-12)


def test_known_values() -> None:
    true = torch.zeros(2, 2, 1, 8, 8)
    pred = torch.full_like(true, 0.5)
    pred[1] = 2.0
    assert float(metrics.mse(pred, true)) == pytest.approx((64 * 0.25 + 64 * 4) / 2)
    assert float(metrics.mae(pred, true)) == pytest.approx((64 * 0.5 + 64 * 2) / 2)
    assert float(metrics.rmse(pred, true)) == pytest.approx(136**0.5)
    # 2 is clipped to 1: an error of 1, which is 0 dB.
    assert float(metrics.psnr(pred, true)) == pytest.approx((20 * np.log10(2) + 0) / 2)
    assert float(metrics.ssim(true, true)) == pytest.approx(1)
    assert metrics.psnr(true, true) == torch.inf


def test_the_openstl_range_flatters() -> None:
    pred, true = videos(SHAPES[0])
    assert metrics.ssim_openstl(pred, true) > metrics.ssim(pred, true)


def test_strides_and_gradients_do_not_matter() -> None:
    pred, true = videos(SHAPES[1])
    strided = torch.zeros(3, 4, 3, 9, 42, dtype=torch.float64)[:, ::2, :, :, ::2].copy_(pred)
    for name in ALL:
        metric = getattr(metrics, name)
        found = metric(strided.clone().as_strided(pred.shape, pred.stride()).copy_(pred).requires_grad_(), true)
        assert not found.requires_grad
        assert found == metric(strided, true) == metric(pred, true)


GOOD = torch.zeros(2, 3, 1, 8, 8)


@pytest.mark.parametrize(
    ("pred", "true", "error", "message"),
    [
        (GOOD.numpy(), GOOD, TypeError, "pred: got ndarray, expected a tensor"),
        (GOOD, None, TypeError, "true: got NoneType, expected a tensor"),
        (GOOD, GOOD.to(torch.uint8), TypeError, r"true: got dtype torch.uint8, .* \[0, 1\]"),
        (GOOD[0], GOOD[0], ValueError, r"pred: got shape \[3, 1, 8, 8\], expected a \[B, T, C, H, W\]"),
        (GOOD[:0], GOOD[:0], ValueError, r"pred: got shape \[0, 3, 1, 8, 8\]"),
        (GOOD, GOOD[:, :1], ValueError, r"true: got shape \[2, 1, 1, 8, 8\], expected \[2, 3, 1, 8, 8\]"),
        (GOOD, GOOD.to("meta"), ValueError, "true: got device meta, expected cpu"),
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_bad_input(name: str, pred: Any, true: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(metrics, name)(pred, true)


@pytest.mark.parametrize("name", ["ssim", "ssim_openstl"])
def test_ssim_needs_its_window(name: str) -> None:
    with pytest.raises(ValueError, match="pred: got frames of 6 x 8 pixels, expected at least 7 x 7"):
        getattr(metrics, name)(GOOD[..., :6, :], GOOD[..., :6, :])
