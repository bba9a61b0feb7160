"""The compiled operators: their shapes for tracing, and the backends made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _extension as _extension  # loading it registers the operators
from ._checks import state_dtype
from .backends import Backend, register_backend


def _require_one_device(current: Tensor, *others: Tensor | None) -> None:
    """A fake kernel also runs when a single argument is on the meta device; the others then hold real data."""
    for other in others:
        if other is not None and other.device != current.device:
            raise ValueError(f"stc_cuda: got tensors on {current.device} and {other.device}, expected one device")


@torch.library.register_fake("stc_cuda::stc_forward")
def _forward_fake(
    current: Tensor,
    temporal_weight: Tensor,
    spatial_weight: Tensor,
    v: Tensor | None,
    spikes: Tensor | None,
    current_norm_weight: Tensor | None,
    current_norm_bias: Tensor | None,
    temporal_norm_weight: Tensor | None,
    temporal_norm_bias: Tensor | None,
    spatial_norm_weight: Tensor | None,
    spatial_norm_bias: Tensor | None,
    groups: int,
    norm_groups: int,
    eps: float,
    v_threshold: float,
    v_reset: float | None,
    surrogate: str,
    alpha: float,
    spiking: bool,
    store_v_seq: bool,
    packed_spikes: bool,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _require_one_device(
        current,
        temporal_weight,
        spatial_weight,
        v,
        spikes,
        current_norm_weight,
        current_norm_bias,
        temporal_norm_weight,
        temporal_norm_bias,
        spatial_norm_weight,
        spatial_norm_bias,
    )
    steps, samples, channels, height, width = current.shape
    state = state_dtype(current.dtype)
    sequence = (steps, samples, channels, height, width)
    if packed_spikes:
        word = (channels // groups + 7) // 8
        out = current.new_empty((steps, samples, groups, height, width, word), dtype=torch.uint8)
    else:
        out = current.new_empty(sequence)
    return (
        out,
        current.new_empty(sequence[1:], dtype=state),
        current.new_empty(sequence if store_v_seq else (0,), dtype=state),
        current.new_empty(sequence if save_for_backward else (0,), dtype=state),
        current.new_empty((steps, samples, norm_groups, 3, 2) if save_for_backward else (0,), dtype=torch.float64),
    )


@torch.library.register_fake("stc_cuda::stc_backward")
def _backward_fake(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_v_seq: Tensor | None,
    current: Tensor,
    temporal_weight: Tensor,
    spatial_weight: Tensor,
    v: Tensor | None,
    spikes: Tensor | None,
    current_norm_weight: Tensor | None,
    current_norm_bias: Tensor | None,
    temporal_norm_weight: Tensor | None,
    temporal_norm_bias: Tensor | None,
    spatial_norm_weight: Tensor | None,
    spatial_norm_bias: Tensor | None,
    u: Tensor,
    norm_stats: Tensor,
    groups: int,
    norm_groups: int,
    eps: float,
    v_threshold: float,
    v_reset: float | None,
    surrogate: str,
    alpha: float,
    spiking: bool,
    detach_reset: bool,
    gradient_detach: bool,
) -> tuple[Tensor, ...]:
    _require_one_device(
        current,
        temporal_weight,
        spatial_weight,
        v,
        spikes,
        current_norm_weight,
        current_norm_bias,
        temporal_norm_weight,
        temporal_norm_bias,
        spatial_norm_weight,
        spatial_norm_bias,
        u,
        norm_stats,
    )
    state = current.shape[1:]
    dtype = state_dtype(current.dtype)
    norms = (
        current_norm_weight,
        current_norm_bias,
        temporal_norm_weight,
        temporal_norm_bias,
        spatial_norm_weight,
        spatial_norm_bias,
    )
    per_norm = [current.new_empty((0,), dtype=dtype) if x is None else x.new_empty(x.shape) for x in norms]
    return (
        current.new_empty(current.shape),
        temporal_weight.new_empty(temporal_weight.shape),
        spatial_weight.new_empty(spatial_weight.shape),
        current.new_empty(state, dtype=dtype),
        current.new_empty(state if spikes is not None and not gradient_detach else (0,)),
        *per_norm,
    )


register_backend(
    Backend(
        name="cpu",
        forward=torch.ops.stc_cuda.stc_forward,
        backward=torch.ops.stc_cuda.stc_backward,
        device_types=frozenset({"cpu"}),
        checks_spikes=True,
    )
)
