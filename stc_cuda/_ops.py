"""The compiled operators: their shapes for tracing, and the backends made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._build import build_info  # loads the extension, which registers the operators
from ._checks import state_dtype
from ._extension import extension
from .backends import Backend, register_backend


def _require_one_device(tensors: Sequence[Tensor | None]) -> None:
    """A fake kernel also runs when a single argument is on the meta device; the others then hold real data."""
    devices = {x.device for x in tensors if x is not None}
    if len(devices) > 1:
        raise ValueError(f"stc_cuda: got tensors on {' and '.join(sorted(map(str, devices)))}, expected one device")


# Arguments in the order of the schemas in csrc/ops.h: the name of the neuron, thirteen tensors that both operators take
# (one of them is the list of states), then options. A circuit has as many potentials as states.


@torch.library.register_fake("stc_cuda::stc_forward")
def _forward_fake(*args: Any) -> tuple[Tensor | list[Tensor], ...]:
    inputs, (groups, norm_groups, *_, store_v_seq, packed_spikes, save_for_backward) = args[1:14], args[14:]
    current, _, _, states, *_ = inputs
    _require_one_device((*inputs[:3], *states, *inputs[4:]))
    steps, samples, channels, height, width = sequence = current.shape
    state = state_dtype(current.dtype)
    packed = (steps, samples, groups, height, width, (channels // groups + 7) // 8)
    return (
        current.new_empty(packed, dtype=torch.uint8) if packed_spikes else current.new_empty(sequence),
        [current.new_empty(sequence[1:], dtype=state) for _ in states],
        current.new_empty(sequence if store_v_seq else (0,), dtype=state),
        current.new_empty((len(states), *sequence) if save_for_backward else (0,), dtype=state),
        current.new_empty((steps, samples, norm_groups, 3, 2) if save_for_backward else (0,), dtype=torch.float64),
    )


@torch.library.register_fake("stc_cuda::stc_backward")
def _backward_fake(*args: Any) -> tuple[Tensor | list[Tensor], ...]:
    inputs, saved, (gradient_detach, learns_threshold, learns_coefficients) = args[4:17], args[17:19], args[-3:]
    current, temporal_weight, spatial_weight, states, spikes, *norms, _, coefficients = inputs
    _require_one_device((*inputs[:3], *states, *inputs[4:], *saved))
    state, dtype = current.shape[1:], state_dtype(current.dtype)
    return (
        current.new_empty(current.shape),
        temporal_weight.new_empty(temporal_weight.shape),
        spatial_weight.new_empty(spatial_weight.shape),
        [current.new_empty(state, dtype=dtype) for _ in states],
        current.new_empty(state if spikes is not None and not gradient_detach else (0,)),
        *(current.new_empty((0,), dtype=dtype) if x is None else x.new_empty(x.shape) for x in norms),
        current.new_empty((current.shape[2] if learns_threshold else 0,), dtype=dtype),
        current.new_empty(
            coefficients.shape if learns_coefficients and coefficients is not None else (0,), dtype=dtype
        ),
    )


def _scan_layout(sizes: Sequence[int], strides: Sequence[int]) -> tuple[list[int], int]:
    """Strides within a step, and its neurons, as ScanLayout in csrc/scan_ops.h finds them."""
    dense, neurons = True, 1
    for stride, size in sorted(zip(strides, sizes, strict=True), key=lambda dim: dim[0]):
        dense = dense and (size == 1 or stride == neurons)
        neurons *= size
    if dense and neurons > 0:
        return list(strides), neurons
    contiguous = [1]
    for size in reversed(sizes[1:]):
        contiguous.insert(0, contiguous[0] * max(size, 1))
    return contiguous, neurons


@torch.library.register_fake("stc_cuda::scan_forward")
def _scan_forward_fake(*args: Any) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    neuron, current, states, threshold, coefficients, *_, store_v_seq, save_for_backward = args
    _require_one_device((current, *states, threshold, coefficients))
    state, dtype = current.shape[1:], state_dtype(current.dtype)
    strides, neurons = _scan_layout(state, current.stride()[1:])
    potentials = extension.cells()[neuron]["potentials"]

    def sequence(dtype: torch.dtype) -> Tensor:
        return current.new_empty_strided(current.shape, (neurons, *strides), dtype=dtype)

    nothing = current.new_empty((0,), dtype=dtype)
    return (
        sequence(current.dtype),
        [current.new_empty_strided(state, strides, dtype=dtype) for _ in states],
        sequence(dtype) if store_v_seq else nothing,
        current.new_empty_strided(
            (potentials, *current.shape), (current.shape[0] * neurons, neurons, *strides), dtype=dtype
        )
        if save_for_backward
        else nothing.clone(),
    )


@torch.library.register_fake("stc_cuda::scan")
def _scan_fake(*args: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    *inputs, _, store_v_seq = args
    return _scan_forward_fake(*inputs, store_v_seq, False)[:3]


@torch.library.register_fake("stc_cuda::scan_backward")
def _scan_backward_fake(*args: Any) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    _, grad_spikes, grad_states, grad_v_seq, current, states, threshold, coefficients, potentials, dtype, *_ = args
    learns_threshold, learns_coefficients = args[-2:]
    _require_one_device((grad_spikes, *grad_states, grad_v_seq, current, *states, threshold, coefficients, potentials))
    sequence, state = potentials.shape[1:], potentials.shape[2:]
    strides, neurons = _scan_layout(state, potentials.stride()[2:])
    return (
        potentials.new_empty_strided(sequence, (neurons, *strides), dtype=dtype),
        [potentials.new_empty_strided(state, strides) for _ in states],
        potentials.new_empty(threshold.shape if learns_threshold else (0,)),
        potentials.new_empty(coefficients.shape if learns_coefficients else (0,)),
    )


@torch.library.register_fake("stc_cuda::scan_backward_in_place")
def _scan_backward_in_place_fake(*args: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    potentials = args[8]
    return _scan_backward_fake(*args[:9], potentials.dtype, *args[9:])[1:]


@torch.library.register_fake("stc_cuda::spike_conv")
def _spike_conv_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, _, _ = args
    _require_one_device((x, weight, bias))
    samples, channels, height, width = x.shape
    transposed = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return (
        x.new_empty((samples, weight.shape[0], height, width), dtype=weight.dtype).contiguous(
            memory_format=torch.channels_last if transposed else torch.contiguous_format
        ),
        x.new_empty((samples, 1, height, width, (channels + 7) // 8), dtype=torch.uint8),
        x.new_empty((2,), dtype=torch.int64),
    )


@torch.library.register_fake("stc_cuda::spike_conv_weight_gradient")
def _spike_conv_weight_gradient_fake(*args: Any) -> tuple[Tensor, Tensor]:
    grad_out, spikes, channels, kernel_size, _ = args
    _require_one_device((grad_out, spikes))
    return (
        grad_out.new_empty((grad_out.shape[1], channels, kernel_size, kernel_size)),
        grad_out.new_empty((2,), dtype=torch.int64),
    )


for _device in ("cpu", "cuda") if build_info()["cuda"] else ("cpu",):
    register_backend(
        Backend(
            name=_device,
            forward=torch.ops.stc_cuda.stc_forward,
            backward=torch.ops.stc_cuda.stc_backward,
            scan_forward=torch.ops.stc_cuda.scan_forward,
            scan_backward=torch.ops.stc_cuda.scan_backward,
            scan_backward_in_place=torch.ops.stc_cuda.scan_backward_in_place,
            scan=torch.ops.stc_cuda.scan.default,
            device_types=frozenset({_device}),
            checks_spikes=_device == "cpu",
        )
    )
