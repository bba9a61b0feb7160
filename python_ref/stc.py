"""STC-LIF over a sequence, one line of code per equation.

Source: "Autaptic Synaptic Circuit Enhances Spatio-temporal Predictive Learning of Spiking Neural Networks", ICML 2024.

    I_t = GN_x(y_t)                                    y: the feed-forward current, conv_x(x)
    a_t = GN_a(gconv(s_{t-1}; W_temporal))             temporal pathway
    b_t = GN_b(gconv(s_{t-1}; W_spatial))              spatial pathway
    u_t = (1 + tanh a_t) v_{t-1} + (1 + tanh b_t) I_t
    s_t = Heaviside(u_t - v_threshold)
    v_t = u_t - v_threshold s_t                        soft reset;  hard: u_t (1 - s_t) + v_reset s_t
"""

import torch
import torch.nn.functional as F

from .surrogate import DEFAULT_ALPHA, fire

Norm = tuple[torch.Tensor, torch.Tensor] | None


def _group_norm(x: torch.Tensor, norm: Norm, groups: int, eps: float) -> torch.Tensor:
    return x if norm is None else torch.group_norm(x, groups, norm[0], norm[1], eps)


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
    v_threshold: float = 1.0,
    v_reset: float | None = None,
    surrogate: str = "sigmoid",
    alpha: float | None = None,
    gradient_detach: bool = False,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Shapes and options as in :func:`stc_cuda.stc_lif`. Returns ``(spikes, v)`` or ``(spikes, v, v_seq)``."""
    norm_groups = groups if norm_groups is None else norm_groups
    alpha = DEFAULT_ALPHA[surrogate] if alpha is None else alpha
    padding = temporal_weight.shape[-1] // 2
    v = current.new_zeros(current.shape[1:]) if v is None else v
    s = torch.zeros_like(v) if spikes is None else spikes
    spike_seq, v_seq = [], []

    for y in current.unbind(0):
        gate_input = s.detach() if gradient_detach else s
        a = F.conv2d(gate_input, temporal_weight, padding=padding, groups=groups)
        b = F.conv2d(gate_input, spatial_weight, padding=padding, groups=groups)
        a = _group_norm(a, temporal_norm, norm_groups, eps)
        b = _group_norm(b, spatial_norm, norm_groups, eps)
        i = _group_norm(y, current_norm, norm_groups, eps)

        u = (1 + torch.tanh(a)) * v + (1 + torch.tanh(b)) * i
        s = fire(u - v_threshold, surrogate, alpha, spiking)
        s_reset = s.detach() if detach_reset else s
        v = u - v_threshold * s_reset if v_reset is None else u * (1 - s_reset) + v_reset * s_reset

        spike_seq.append(s)
        if store_v_seq:
            v_seq.append(v)

    def stack(steps: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(steps) if steps else current.new_zeros((0, *current.shape[1:]))

    return (stack(spike_seq), v, stack(v_seq)) if store_v_seq else (stack(spike_seq), v)
