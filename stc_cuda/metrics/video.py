"""Metrics of predicted videos ``[B, T, C, H, W]`` with pixels in [0, 1].

The definitions are OpenSTL's, so that figures can stand beside published ones (Tan et al., "OpenSTL: A Comprehensive
Benchmark of Spatio-Temporal Predictive Learning", NeurIPS 2023). All are computed in float64 and carry no gradient.
Errors are sums over the pixels of a frame and see the predictions as they are; PSNR and SSIM clip them to [0, 1].
The truth is never clipped.

All take ``pred`` and ``true`` (floating, same shape and device, at least one sample and frame) and return a float64
tensor on that device: a scalar, or ``[T]`` with one value per predicted frame if ``per_frame``. All raise ``TypeError``
for what is not a floating tensor and ``ValueError`` for a wrong rank, empty or different shapes or devices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .perceptual import LPIPS

#: Names of the metrics that need nothing but the frames. A larger value is better of "psnr", "ssim" and "ssim_openstl".
METRICS = ("mse", "mae", "rmse", "psnr", "ssim", "ssim_openstl")

_SSIM_WINDOW = 7
_SSIM_K1, _SSIM_K2 = 0.01, 0.03
_SSIM_RANGES = {"ssim": 1.0, "ssim_openstl": 2.0}
# Elements that are float64 at a time: copies stay small beside a whole test set, and in a cache.
_CHUNK = 1 << 18


def mse(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Squared error summed over C, H, W; mean over samples (and frames)."""
    return _mean(pred, true, "mse", per_frame)


def mae(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Absolute error summed over C, H, W; mean over samples (and frames)."""
    return _mean(pred, true, "mae", per_frame)


def rmse(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Square root of :func:`mse` (of each frame's, if ``per_frame``)."""
    return mse(pred, true, per_frame=per_frame).sqrt()


def psnr(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``-10 log10`` of the mean squared error of a frame; mean over frames.

    Predictions are clipped to [0, 1]. A frame without error has an infinite PSNR, and so has the mean then.
    """
    return _mean(pred, true, "psnr", per_frame)


def ssim(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Structural similarity with the data range of the pixels, 1; mean over channels and frames.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, with a uniform 7 x 7
    window and the sample covariance; equal to scikit-image's ``structural_similarity`` of predictions clipped to
    [0, 1]. For figures to compare with published ones use :func:`ssim_openstl`.

    Raises:
        ValueError: also if a frame is smaller than 7 x 7 pixels.
    """
    return _mean(pred, true, "ssim", per_frame)


def ssim_openstl(pred: Tensor, true: Tensor, *, per_frame: bool = False) -> Tensor:
    """Structural similarity as published with OpenSTL: :func:`ssim` with a data range of 2.

    The range of 2 is what old versions of scikit-image assumed for floating images. It flatters (constants four times
    as large), and all published SSIM figures of these benchmarks share it.

    Raises:
        ValueError: also if a frame is smaller than 7 x 7 pixels.
    """
    return _mean(pred, true, "ssim_openstl", per_frame)


def _mean(pred: Tensor, true: Tensor, name: str, per_frame: bool) -> Tensor:
    values = frame_values(pred, true, (name,))[name]
    return values.mean(0) if per_frame else values.mean()


def frame_values(pred: Tensor, true: Tensor, names: Collection[str], lpips: LPIPS | None = None) -> dict[str, Tensor]:
    """The metrics ``names`` of each frame, float64 ``[B, T]``; of RMSE, which has none, those of MSE."""
    check_videos(pred, true)
    ranges = {name: data_range for name, data_range in _SSIM_RANGES.items() if name in names}
    if ranges and min(pred.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"pred: got frames of {pred.shape[-2]} x {pred.shape[-1]} pixels, expected at least "
            f"{_SSIM_WINDOW} x {_SSIM_WINDOW}, the window of SSIM"
        )
    pixels = (-3, -2, -1)
    parts = []
    for p, t in chunks(pred.detach(), true.detach()):
        x, y = p.double(), t.double()
        part: dict[str, Tensor] = {}
        if "mse" in names or "rmse" in names:
            part["mse"] = (x - y).square().sum(pixels)
        if "mae" in names:
            part["mae"] = (x - y).abs().sum(pixels)
        x = x.clamp(0, 1)
        if "psnr" in names:
            part["psnr"] = -10 * torch.log10((x - y).square().mean(pixels))
        if ranges:
            part.update(_ssim(x, y, ranges))
        parts.append(part)
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if lpips is not None and "lpips" in names:
        values["lpips"] = lpips(pred, true)
    return values


def _ssim(x: Tensor, y: Tensor, ranges: dict[str, float]) -> dict[str, Tensor]:
    """SSIM of each frame ``[B, T]``, for each data range by name."""
    moments = torch.stack((x, y, x * x, y * y, x * y))
    means = F.avg_pool2d(moments.flatten(0, 2), _SSIM_WINDOW, stride=1).unflatten(0, moments.shape[:3])
    mx, my, mxx, myy, mxy = means
    sample = _SSIM_WINDOW**2 / (_SSIM_WINDOW**2 - 1)
    variances, covariance = sample * (mxx - mx * mx + myy - my * my), sample * (mxy - mx * my)
    squares, product = mx * mx + my * my, mx * my
    similarities = {}
    for name, data_range in ranges.items():
        c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2
        similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
        similarities[name] = similarity.mean((-3, -2, -1))
    return similarities


def chunks(pred: Tensor, true: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some samples at a time."""
    samples = max(1, _CHUNK // pred[0].numel())
    return zip(pred.split(samples), true.split(samples), strict=True)


def check_videos(pred: object, true: object) -> None:
    """``pred`` and ``true`` are floating ``[B, T, C, H, W]`` of one shape and device."""
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
