"""Spike functions: the Heaviside step with a surrogate gradient, and the smooth primitive of that gradient.

A surrogate is a smooth step ``p(z)``, its *primitive*. Hard mode spikes with ``z >= 0`` and differentiates ``p``;
soft mode replaces the step by ``p`` itself, so that gradients can be checked by finite differences.

``sigmoid``
    p(z) = sigmoid(alpha z), alpha = 4 (Neftci et al., "Surrogate gradient learning in spiking neural networks", 2019).
``atan``
    p(z) = atan(pi/2 alpha z) / pi + 1/2, alpha = 2 (Fang et al., "Incorporating learnable membrane
    time constant", 2021).
"""

import math
from typing import Any

import torch

DEFAULT_ALPHA = {"sigmoid": 4.0, "atan": 2.0}


def primitive(z: torch.Tensor, surrogate: str, alpha: float) -> torch.Tensor:
    """The smooth step p(z); p(-inf) = 0, p(inf) = 1, p(0) = 1/2."""
    if surrogate == "sigmoid":
        return torch.sigmoid(alpha * z)
    if surrogate == "atan":
        return torch.atan(math.pi / 2 * alpha * z) / math.pi + 0.5
    raise ValueError(f"surrogate: got {surrogate!r}, expected one of {sorted(DEFAULT_ALPHA)}")


def derivative(z: torch.Tensor, surrogate: str, alpha: float) -> torch.Tensor:
    """p'(z), the surrogate gradient."""
    if surrogate == "sigmoid":
        p = torch.sigmoid(alpha * z)
        return alpha * p * (1 - p)
    if surrogate == "atan":
        return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)
    raise ValueError(f"surrogate: got {surrogate!r}, expected one of {sorted(DEFAULT_ALPHA)}")


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, surrogate: str, alpha: float) -> torch.Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return grad * derivative(z, ctx.surrogate, ctx.alpha), None, None


def fire(z: torch.Tensor, surrogate: str, alpha: float, spiking: bool) -> torch.Tensor:
    """Spikes for ``z = u - v_threshold``: 0/1 with a surrogate gradient, or the primitive when not ``spiking``."""
    return _Heaviside.apply(z, surrogate, alpha) if spiking else primitive(z, surrogate, alpha)
