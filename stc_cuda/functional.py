"""Functional forms of the neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _reference
from ._bits import unpack_spikes
from ._checks import Pair, check_call, check_norm_pair
from .config import STCConfig
from .function import STCRecurrence, check_initial_spikes, run_forward

__all__ = ["stc_lif", "unpack_spikes"]

Norm = tuple[Tensor, Tensor] | None


def stc_lif(
    current: Tensor,
    temporal_weight: Tensor,
    spatial_weight: Tensor,
    *,
    groups: int,
    current_norm: Norm = None,
    temporal_norm: Norm = None,
    spatial_norm: Norm = None,
    norm_groups: int | None = None,
    eps: float = 1e-5,
    v: Tensor | None = None,
    spikes: Tensor | None = None,
    v_threshold: float = 1.0,
    v_reset: float | None = None,
    surrogate: str = "sigmoid",
    alpha: float | None = None,
    gradient_detach: bool = False,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
    packed_spikes: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    r"""Runs the Spatio-Temporal Circuit LIF neuron over a sequence.

    Per step :math:`t`, with zero state before the first step unless ``v`` and ``spikes`` are given::

        I_t = GN_x(current_t)
        a_t = GN_a(gconv(s_{t-1}; temporal_weight))
        b_t = GN_b(gconv(s_{t-1}; spatial_weight))
        u_t = (1 + tanh a_t) v_{t-1} + (1 + tanh b_t) I_t
        s_t = Heaviside(u_t - v_threshold)
        v_t = u_t - v_threshold s_t                        (soft reset, v_reset None)
        v_t = u_t (1 - s_t) + v_reset s_t                  (hard reset)

    Source: "Autaptic Synaptic Circuit Enhances Spatio-temporal Predictive Learning of Spiking Neural Networks",
    ICML 2024.

    Args:
        current: feed-forward current ``[T, N, C, H, W]``, float32, float64, float16 or bfloat16, any strides. T and N
            may be 0.
        temporal_weight: grouped convolution of the temporal pathway ``[C, C/groups, K, K]``, K odd. Weights and norms
            are of the current's dtype or of the state's.
        spatial_weight: the same for the spatial pathway.
        groups: groups of both convolutions; divides C.
        current_norm: ``(weight [C], bias [C])`` of GN_x, or ``None`` for no norm.
        temporal_norm: the same for GN_a.
        spatial_norm: the same for GN_b.
        norm_groups: groups of the three GroupNorms; ``None`` means ``groups``.
        eps: added to the variance in the GroupNorms.
        v: membrane potential before the first step ``[N, C, H, W]``. The state is float64 for a float64 current and
            float32 for all others: it outgrows 16-bit numbers.
        spikes: spikes before the first step ``[N, C, H, W]``, 0 or 1 unless ``spiking=False``; dtype of ``current``. On
            a GPU the check of that waits for them.
        v_threshold: firing threshold, in units of the membrane potential.
        v_reset: ``None`` resets by subtraction of the threshold; a number is the potential after a spike.
        surrogate: name of the surrogate gradient: see :class:`stc_cuda.Surrogate`.
        alpha: its steepness; ``None`` is the surrogate's own default.
        gradient_detach: no gradient through the spikes that enter the gate convolutions (their weights still learn).
        detach_reset: no gradient through the spikes in the reset.
        spiking: ``False`` replaces the Heaviside step by the surrogate's primitive.
        store_v_seq: also return the membrane potential after reset of every step.
        packed_spikes: return the spikes as bits, uint8 ``[T, N, groups, H, W, ceil(C/groups/8)]`` (bit ``c % 8`` of
            byte ``c // 8`` is channel ``c`` of the group; :func:`unpack_spikes` reads them). Inference only.
        backend: ``"auto"`` (compiled kernels of the device), ``"cpu"``, ``"reference"`` (plain PyTorch, slow, with
            ordinary autograd) or a registered name.

    Returns:
        ``(spikes [T, N, C, H, W], v [N, C, H, W])``, with ``v_seq [T, N, C, H, W]`` after them if ``store_v_seq``;
        spikes of the current's dtype, potentials of the state's.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes do not fit.
        ValueError: a rank, shape, group count, device, option or initial spike is not as described here.
    """
    config = STCConfig(
        groups=groups,
        norm_groups=norm_groups,
        eps=eps,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate=surrogate,
        alpha=alpha,
        gradient_detach=gradient_detach,
        detach_reset=detach_reset,
        spiking=spiking,
        store_v_seq=store_v_seq,
        packed_spikes=packed_spikes,
        backend=backend,
    )
    norms = (
        check_norm_pair("current_norm", current_norm),
        check_norm_pair("temporal_norm", temporal_norm),
        check_norm_pair("spatial_norm", spatial_norm),
    )
    check_initial_spikes(spikes, config)
    return run_stc(current, temporal_weight, spatial_weight, v, spikes, norms, config)


def run_stc(
    current: Tensor,
    temporal_weight: Tensor,
    spatial_weight: Tensor,
    v: Tensor | None,
    spikes: Tensor | None,
    norms: tuple[Pair, Pair, Pair],
    config: STCConfig,
) -> tuple[Tensor, ...]:
    """:func:`stc_lif` with its options in a :class:`STCConfig` and spikes that are known to be 0 or 1 (or soft)."""
    inputs = (current, temporal_weight, spatial_weight, v, spikes, *norms[0], *norms[1], *norms[2])
    if config.backend == "reference":
        check_call(current, temporal_weight, spatial_weight, v, spikes, norms[0], norms[1], norms[2], config)
        return _reference.call(inputs, config)
    wants_grad = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    if wants_grad:
        return STCRecurrence.apply(*inputs, config)
    spike_seq, v_last, v_seq, _, _ = run_forward(inputs, config, save_for_backward=False)
    return (spike_seq, v_last, v_seq) if config.store_v_seq else (spike_seq, v_last)
