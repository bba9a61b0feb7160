"""Metrics of predicted videos ``[B, T, C, H, W]`` with pixels in [0, 1].

The definitions are OpenSTL's, so that figures can stand beside published ones (Tan et al., "OpenSTL: A Comprehensive
Benchmark of Spatio-Temporal Predictive Learning", NeurIPS 2023). All are computed in float64 and carry no gradient.
Errors are sums over the pixels of a frame and see the predictions as they are; PSNR and SSIM clip them to [0, 1].

All take ``pred`` and ``true`` (floating, same shape and device, at least one sample and frame) and return a float64
tensor on that device: a scalar, or ``[T]`` with one value per predicted frame if ``per_frame``. All raise ``TypeError``
for what is not a floating tensor and ``ValueError`` for a wrong rank, empty or different shapes or devices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SSIM_WINDOW = 7
_SSIM_K1, _SSIM_K2 = 0.01, 0.03


def mse(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Squared error summed over C, H, W; mean over samples (and frames)."""
    return _mean(_squared_error(pred, true), per_frame)


def mae(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Absolute error summed over C, H, W; mean over samples (and frames)."""
    _check(pred, true)
    frames = [(p.double() - t.double()).abs().sum((-3, -2, -1)) for p, t in _samples(pred, true)]
    return _mean(torch.stack(frames), per_frame)


def rmse(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Square root of :func:`mse` (of each frame's, if ``per_frame``)."""
    return mse(pred, true, per_frame=per_frame).sqrt()


def psnr(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``-10 log10`` of the mean squared error of a frame; mean over frames.

    Predictions are clipped to [0, 1]. A frame without error has an infinite PSNR, and so has the mean then.
    """
    pixels = pred.shape[-3:].numel() if isinstance(pred, Tensor) else 1
    return _mean(-10 * torch.log10(_squared_error(pred, true, clip=True) / pixels), per_frame)


def ssim(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Structural similarity with the data range of the pixels, 1; mean over channels and frames.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, with a uniform 7 x 7
    window and the sample covariance; equal to scikit-image's ``structural_similarity`` of frames clipped to [0, 1].
    For figures to compare with published ones use :func:`ssim_openstl`.

    Raises:
        ValueError: also if a frame is smaller than 7 x 7 pixels.
    """
    return _ssim(pred, true, data_range=1.0, per_frame=per_frame)


def ssim_openstl(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Structural similarity as published with OpenSTL: :func:`ssim` with a data range of 2.

    The range of 2 is what old versions of scikit-image assumed for floating images. It flatters (constants four times
    as large), and all published SSIM figures of these benchmarks share it.

    Raises:
        ValueError: also if a frame is smaller than 7 x 7 pixels.
    """
    return _ssim(pred, true, data_range=2.0, per_frame=per_frame)


def _ssim(pred: Tensor, true: Tensor, data_range: float, per_frame: bool) -> Tensor:
    _check(pred, true)
    if min(pred.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"pred: got frames of {pred.shape[-2]} x {pred.shape[-1]} pixels, expected at least "
            f"{_SSIM_WINDOW} x {_SSIM_WINDOW}, the window of SSIM"
        )
    c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2
    window_pixels = _SSIM_WINDOW**2
    frames = []
    for p, t in _samples(pred, true):
        x, y = p.double().clamp(0, 1), t.double().clamp(0, 1)
        moments = torch.stack((x, y, x * x, y * y, x * y))
        mx, my, mxx, myy, mxy = F.avg_pool2d(moments.flatten(0, 1), _SSIM_WINDOW, stride=1).unflatten(0, (5, -1))
        sample = window_pixels / (window_pixels - 1)
        vx, vy, vxy = sample * (mxx - mx * mx), sample * (myy - my * my), sample * (mxy - mx * my)
        similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        frames.append(similarity.mean((-3, -2, -1)))
    return _mean(torch.stack(frames), per_frame)


def _squared_error(pred: Tensor, true: Tensor, clip: bool = False) -> Tensor:
    """Squared error of each frame ``[B, T]``."""
    _check(pred, true)
    frames = []
    for p, t in _samples(pred, true):
        x, y = p.double(), t.double()
        if clip:
            x, y = x.clamp(0, 1), y.clamp(0, 1)
        frames.append((x - y).square().sum((-3, -2, -1)))
    return torch.stack(frames)


def _samples(pred: Tensor, true: Tensor) -> zip[tuple[Tensor, Tensor]]:
    # One sample at a time, so that the float64 copies stay small beside a whole test set.
    return zip(pred.detach(), true.detach(), strict=True)


def _mean(frames: Tensor, per_frame: bool) -> Tensor:
    return frames.mean(0) if per_frame else frames.mean()


def _check(pred: object, true: object) -> None:
    for name, value in (("pred", pred), ("true", true)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor [B, T, C, H, W]")
        if not value.is_floating_point():
            raise TypeError(f"{name}: got dtype {value.dtype}, expected a floating one with pixels in [0, 1]")
        if value.dim() != 5 or value.numel() == 0:
            raise ValueError(f"{name}: got shape {list(value.shape)}, expected a [B, T, C, H, W] that is not empty")
    assert isinstance(pred, Tensor)
    assert isinstance(true, Tensor)
    if pred.shape != true.shape:
        raise ValueError(f"true: got shape {list(true.shape)}, expected {list(pred.shape)}, the shape of pred")
    if pred.device != true.device:
        raise ValueError(f"true: got device {true.device}, expected {pred.device}, the device of pred")
