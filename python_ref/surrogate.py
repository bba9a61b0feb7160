"""Spike functions: the Heaviside step with a surrogate gradient, and the smooth primitive of that gradient.

A surrogate is a smooth step ``p(z)``, its *primitive*. Hard mode spikes with ``z >= 0`` (``z > 0`` where a neuron is
strict) and differentiates ``p``; soft mode replaces the step by ``p`` itself, so that gradients can be checked by
finite differences.

``sigmoid``
    p(z) = sigmoid(alpha z), alpha = 4 (Neftci et al., "Surrogate gradient learning in spiking neural networks", 2019).
``atan``
    p(z) = atan(pi/2 alpha z) / pi + 1/2, alpha = 2 (Fang et al., "Incorporating learnable membrane
    time constant", 2021).
``piecewise_quadratic``
    p(z) = 1/2 + alpha z - alpha^2 z |z| / 2 for |z| < 1/alpha, 0 and 1 beyond; alpha = 1 (Bohte, "Error-backpropagation
    in networks of fractionally predictive spiking neurons", 2011; Esser et al., 2016).
``piecewise_exp``
    p(z) = exp(alpha z) / 2 for z < 0, else 1 - exp(-alpha z) / 2; alpha = 1 (Shrestha and Orchard, "SLAYER", 2018).
``softsign``
    p(z) = (1 + alpha z / (1 + |alpha z|)) / 2, alpha = 2 (as in SpikingJelly).
``superspike``
    p(z) = 1/2 + alpha z / (1 + |z|), alpha = 1 (Zenke and Ganguli, "SuperSpike", 2018, with alpha as in SpikingJelly,
    which gives no primitive); not confined to [0, 1].
``erf``
    p(z) = (1 + erf(alpha z)) / 2, alpha = 2 (Yin et al., "Effective and efficient computation with multiple-timescale
    spiking recurrent neural networks", 2020).
``rect``
    p(z) = alpha z + 1/2, cut off at 0 and 1; alpha = 1 (Wu et al., "Spatio-temporal backpropagation for training
    high-performance spiking neural networks", 2018).
``fast_sigmoid``
    p(z) = 1/2 + z / (1 + alpha |z|), alpha = 25 (Zenke and Ganguli, 2018, as in snnTorch); within 1/alpha of 1/2.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

Surrogate = str | Callable[[torch.Tensor], torch.Tensor]

DEFAULT_ALPHA = {
    "sigmoid": 4.0,
    "atan": 2.0,
    "piecewise_quadratic": 1.0,
    "piecewise_exp": 1.0,
    "softsign": 2.0,
    "superspike": 1.0,
    "erf": 2.0,
    "rect": 1.0,
    "fast_sigmoid": 25.0,
}


def _check(surrogate: str) -> None:
    if surrogate not in DEFAULT_ALPHA:
        raise ValueError(f"surrogate: got {surrogate!r}, expected one of {sorted(DEFAULT_ALPHA)}")


def primitive(z: torch.Tensor, surrogate: str, alpha: float) -> torch.Tensor:
    """The smooth step p(z); p(0) = 1/2."""
    _check(surrogate)
    if surrogate == "sigmoid":
        return torch.sigmoid(alpha * z)
    if surrogate == "atan":
        return torch.atan(math.pi / 2 * alpha * z) / math.pi + 0.5
    if surrogate == "piecewise_quadratic":
        x = (alpha * z).clamp(-1, 1)
        return 0.5 + x - 0.5 * x * x.abs()
    if surrogate == "piecewise_exp":
        tail = 0.5 * torch.exp(-alpha * z.abs())
        return torch.where(z < 0, tail, 1 - tail)
    if surrogate == "softsign":
        return 0.5 + 0.5 * alpha * z / (1 + (alpha * z).abs())
    if surrogate == "superspike":
        return 0.5 + alpha * z / (1 + z.abs())
    if surrogate == "erf":
        return 0.5 * (1 + torch.erf(alpha * z))
    if surrogate == "rect":
        return (alpha * z + 0.5).clamp(0, 1)
    return 0.5 + z / (1 + alpha * z.abs())  # fast_sigmoid


def derivative(z: torch.Tensor, surrogate: str, alpha: float) -> torch.Tensor:
    """p'(z), the surrogate gradient."""
    _check(surrogate)
    if surrogate == "sigmoid":
        p = torch.sigmoid(alpha * z)
        return alpha * p * (1 - p)
    if surrogate == "atan":
        return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)
    if surrogate == "piecewise_quadratic":
        return alpha * (1 - alpha * z.abs()).clamp(min=0)
    if surrogate == "piecewise_exp":
        return alpha / 2 * torch.exp(-alpha * z.abs())
    if surrogate == "softsign":
        return alpha / 2 / (1 + (alpha * z).abs()) ** 2
    if surrogate == "superspike":
        return alpha / (1 + z.abs()) ** 2
    if surrogate == "erf":
        return alpha / math.sqrt(math.pi) * torch.exp(-((alpha * z) ** 2))
    if surrogate == "rect":
        return alpha * (alpha * z.abs() < 0.5).to(z.dtype)
    return 1 / (1 + alpha * z.abs()) ** 2  # fast_sigmoid


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, surrogate: str, alpha: float, strict: bool) -> torch.Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return (z > 0 if strict else z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (z,) = ctx.saved_tensors
        return grad * derivative(z, ctx.surrogate, ctx.alpha), None, None, None


def fire(
    z: torch.Tensor,
    surrogate: Surrogate,
    alpha: float | None = None,
    spiking: bool = True,
    strict: bool = False,
) -> torch.Tensor:
    """Spikes for ``z = u - v_threshold``: 0/1 with a surrogate gradient, or the primitive when not ``spiking``.

    ``alpha=None`` is the surrogate's own default. A callable makes spikes of ``z`` itself, and the other options are
    not used.
    """
    if callable(surrogate):
        return surrogate(z)
    _check(surrogate)
    alpha = DEFAULT_ALPHA[surrogate] if alpha is None else alpha
    return _Heaviside.apply(z, surrogate, alpha, strict) if spiking else primitive(z, surrogate, alpha)
