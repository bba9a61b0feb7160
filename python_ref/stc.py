"""STC-LIF, STC-PLIF and STC-LM-H over a sequence, one line of code per equation.

Source: "Autaptic Synaptic Circuit Enhances Spatio-temporal Predictive Learning of Spiking Neural Networks", ICML 2024,
and its authors' code.

    I_t = GN_x(y_t)                                    y: the feed-forward current, conv_x(x)
    a_t = GN_a(gconv(s_{t-1}; W_temporal))             temporal pathway
    b_t = GN_b(gconv(s_{t-1}; W_spatial))              spatial pathway

STC-LIF
    u_t = (1 + tanh a_t) v_{t-1} + (1 + tanh b_t) I_t
STC-PLIF, lam = sigmoid(decay_logit)
    u_t = lam (1 + tanh a_t) v_{t-1} + (1 - lam) (1 + tanh b_t) I_t
STC-LM-H, two compartments with sig = sigmoid; the dendrite sees the soma ungated
    d_t = d_{t-1} (sig(dendrite_decay) - 1/2) + v_{t-1} (sig(soma_to_dendrite) - 1/2) + (1 + tanh b_t) I_t
    u_t = d_t (sig(dendrite_to_soma) + 1/2) + (1 + tanh a_t) v_{t-1} (sig(soma_decay) + 1/2)

s_t and v_t follow from u_t as in sequence.py. Shapes and options are those of :func:`stc_cuda.stc_lif`; beyond them,
parameters and ``v_threshold`` may be tensors ``[1]`` or ``[C]``, and ``surrogate`` a callable (see ``fire``).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .sequence import FireAndReset, Threshold, over_time, per_channel
from .surrogate import Surrogate

Norm = tuple[torch.Tensor, torch.Tensor] | None


@dataclass  # not frozen: torch.compile of torch 2.11 cannot trace that
class _Pathways:
    """``(I_t, a_t, b_t)`` of ``y_t`` and ``s_{t-1}``."""

    temporal_weight: torch.Tensor
    spatial_weight: torch.Tensor
    groups: int
    current_norm: Norm
    temporal_norm: Norm
    spatial_norm: Norm
    norm_groups: int | None
    eps: float
    gradient_detach: bool

    def __call__(self, y: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        s = s.detach() if self.gradient_detach else s
        i = self._group_norm(y, self.current_norm)
        a = self._group_norm(self._gconv(s, self.temporal_weight), self.temporal_norm)
        b = self._group_norm(self._gconv(s, self.spatial_weight), self.spatial_norm)
        return i, a, b

    def _gconv(self, s: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(s, weight, padding=weight.shape[-1] // 2, groups=self.groups)

    def _group_norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        groups = self.groups if self.norm_groups is None else self.norm_groups
        return x if norm is None else torch.group_norm(x, groups, norm[0], norm[1], self.eps)


def stc_lif(
    current: torch.Tensor,
    temporal_weight: torch.Tensor,
    spatial_weight: torch.Tensor,
    *,
    groups: int,
    current_norm: Norm = None,
    temporal_norm: Norm = None,
    spatial_norm: Norm = None,
    norm_groups: int | None = None,
    eps: float = 1e-5,
    v: torch.Tensor | None = None,
    spikes: torch.Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: Surrogate = "sigmoid",
    alpha: float | None = None,
    gradient_detach: bool = False,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v)`` or ``(spikes, v, v_seq)``."""
    norms = current_norm, temporal_norm, spatial_norm, norm_groups, eps
    pathways = _Pathways(temporal_weight, spatial_weight, groups, *norms, gradient_detach)
    theta = per_channel(v_threshold, current)
    fire_and_reset = FireAndReset(theta, v_reset, surrogate, alpha, detach_reset, spiking)

    def step(y: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        i, a, b = pathways(y, s)
        u = (1 + torch.tanh(a)) * v + (1 + torch.tanh(b)) * i
        return fire_and_reset(u)

    return over_time(step, current, (spikes, v), store_v_seq)


def stc_plif(
    current: torch.Tensor,
    temporal_weight: torch.Tensor,
    spatial_weight: torch.Tensor,
    decay_logit: torch.Tensor,
    *,
    groups: int,
    current_norm: Norm = None,
    temporal_norm: Norm = None,
    spatial_norm: Norm = None,
    norm_groups: int | None = None,
    eps: float = 1e-5,
    v: torch.Tensor | None = None,
    spikes: torch.Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: Surrogate = "sigmoid",
    alpha: float | None = None,
    gradient_detach: bool = False,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v)`` or ``(spikes, v, v_seq)``."""
    norms = current_norm, temporal_norm, spatial_norm, norm_groups, eps
    pathways = _Pathways(temporal_weight, spatial_weight, groups, *norms, gradient_detach)
    theta = per_channel(v_threshold, current)
    fire_and_reset = FireAndReset(theta, v_reset, surrogate, alpha, detach_reset, spiking)
    lam = torch.sigmoid(per_channel(decay_logit, current))

    def step(y: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        i, a, b = pathways(y, s)
        u = lam * (1 + torch.tanh(a)) * v + (1 - lam) * (1 + torch.tanh(b)) * i
        return fire_and_reset(u)

    return over_time(step, current, (spikes, v), store_v_seq)


def stc_lmh(
    current: torch.Tensor,
    temporal_weight: torch.Tensor,
    spatial_weight: torch.Tensor,
    *,
    dendrite_decay: torch.Tensor,
    soma_to_dendrite: torch.Tensor,
    dendrite_to_soma: torch.Tensor,
    soma_decay: torch.Tensor,
    groups: int,
    current_norm: Norm = None,
    temporal_norm: Norm = None,
    spatial_norm: Norm = None,
    norm_groups: int | None = None,
    eps: float = 1e-5,
    v: torch.Tensor | None = None,
    dendrite: torch.Tensor | None = None,
    spikes: torch.Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: Surrogate = "sigmoid",
    alpha: float | None = None,
    gradient_detach: bool = False,
    detach_reset: bool = True,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v, dendrite)`` or ``(spikes, v, dendrite, v_seq)``."""
    norms = current_norm, temporal_norm, spatial_norm, norm_groups, eps
    pathways = _Pathways(temporal_weight, spatial_weight, groups, *norms, gradient_detach)
    theta = per_channel(v_threshold, current)
    fire_and_reset = FireAndReset(theta, v_reset, surrogate, alpha, detach_reset, spiking)
    d_to_d = torch.sigmoid(per_channel(dendrite_decay, current)) - 0.5
    v_to_d = torch.sigmoid(per_channel(soma_to_dendrite, current)) - 0.5
    d_to_v = torch.sigmoid(per_channel(dendrite_to_soma, current)) + 0.5
    v_to_v = torch.sigmoid(per_channel(soma_decay, current)) + 0.5

    def step(y: torch.Tensor, s: torch.Tensor, v: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, ...]:
        i, a, b = pathways(y, s)
        d = d * d_to_d + v * v_to_d + (1 + torch.tanh(b)) * i
        u = d * d_to_v + (1 + torch.tanh(a)) * v * v_to_v
        return *fire_and_reset(u), d

    return over_time(step, current, (spikes, v, dendrite), store_v_seq)
