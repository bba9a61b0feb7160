"""Metrics of the spatio-temporal prediction benchmarks, as OpenSTL defines them."""

from .accumulate import VideoMetrics, evaluate
from .perceptual import LPIPS
from .video import METRICS, mae, mse, psnr, rmse, ssim, ssim_openstl

__all__ = ["LPIPS", "METRICS", "VideoMetrics", "evaluate", "mae", "mse", "psnr", "rmse", "ssim", "ssim_openstl"]
