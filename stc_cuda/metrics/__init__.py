"""Metrics of the spatio-temporal prediction benchmarks, as OpenSTL defines them."""

from .video import mae, mse, psnr, rmse, ssim, ssim_openstl

__all__ = ["mae", "mse", "psnr", "rmse", "ssim", "ssim_openstl"]
