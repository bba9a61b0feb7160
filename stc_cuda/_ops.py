"""The compiled operators: their shapes for tracing, and the backends made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._build import build_info  # loads the extension, which registers the operators
from ._checks import state_dtype
from .backends import Backend, register_backend


def _require_one_device(tensors: Sequence[Tensor | None]) -> None:
    """A fake kernel also runs when a single argument is on the meta device; the others then hold real data."""
    devices = {x.device for x in tensors if x is not None}
    if len(devices) > 1:
        raise ValueError(f"stc_cuda: got tensors on {' and '.join(sorted(map(str, devices)))}, expected one device")


# Arguments in the order of the schemas in csrc/ops.h: eleven tensors that both operators take, the first being the
# current, then options.


@torch.library.register_fake("stc_cuda::stc_forward")
def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, (groups, norm_groups, *_, store_v_seq, packed_spikes, save_for_backward) = args[:11], args[11:]
    _require_one_device(inputs)
    current = inputs[0]
    steps, samples, channels, height, width = sequence = current.shape
    state = state_dtype(current.dtype)
    packed = (steps, samples, groups, height, width, (channels // groups + 7) // 8)
    return (
        current.new_empty(packed, dtype=torch.uint8) if packed_spikes else current.new_empty(sequence),
        current.new_empty(sequence[1:], dtype=state),
        current.new_empty(sequence if store_v_seq else (0,), dtype=state),
        current.new_empty(sequence if save_for_backward else (0,), dtype=state),
        current.new_empty((steps, samples, norm_groups, 3, 2) if save_for_backward else (0,), dtype=torch.float64),
    )


@torch.library.register_fake("stc_cuda::stc_backward")
def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, saved, gradient_detach = args[3:14], args[14:16], args[-1]
    _require_one_device((*inputs, *saved))
    current, temporal_weight, spatial_weight, _, spikes, *norms = inputs
    state, dtype = current.shape[1:], state_dtype(current.dtype)
    return (
        current.new_empty(current.shape),
        temporal_weight.new_empty(temporal_weight.shape),
        spatial_weight.new_empty(spatial_weight.shape),
        current.new_empty(state, dtype=dtype),
        current.new_empty(state if spikes is not None and not gradient_detach else (0,)),
        *(current.new_empty((0,), dtype=dtype) if x is None else x.new_empty(x.shape) for x in norms),
    )


for _device in ("cpu", "cuda") if build_info()["cuda"] else ("cpu",):
    register_backend(
        Backend(
            name=_device,
            forward=torch.ops.stc_cuda.stc_forward,
            backward=torch.ops.stc_cuda.stc_backward,
            device_types=frozenset({_device}),
            checks_spikes=_device == "cpu",
        )
    )
