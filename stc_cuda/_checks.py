"""Every check of tensors given by the user, in one place and before any work.

The operators trust what passes here and only guard memory safety themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .config import STCConfig

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Pair = tuple[torch.Tensor | None, torch.Tensor | None]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of membrane potentials, for a current of ``dtype``: they outgrow 16-bit numbers."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_tensor(name: str, value: object, shape_hint: str) -> torch.Tensor:
    """``value`` as a dense floating-point tensor, or an error that names ``name``."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor {shape_hint}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got a tensor of layout {value.layout}, expected a dense one; call .to_dense()")
    if value.is_quantized:
        raise TypeError(
            f"{name}: got a quantized tensor ({value.dtype}), expected a floating-point one; call .dequantize()"
        )
    if value.dtype not in DTYPES:
        hint = "call .float()" if not value.is_complex() else "complex spikes have no meaning"
        raise TypeError(f"{name}: got dtype {value.dtype}, expected {' or '.join(map(str, DTYPES))}; {hint}")
    return value


def _check_like(
    name: str,
    value: object,
    shape: tuple[int, ...],
    shape_hint: str,
    current: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    tensor = check_tensor(name, value, shape_hint)
    if tensor.device != current.device:
        raise ValueError(f"{name}: got device {tensor.device}, expected {current.device}, the device of current")
    if tensor.dtype not in dtypes:
        expected = f"{dtypes[0]}, the dtype of {'current' if dtypes[0] == current.dtype else 'the state'}"
        if len(set(dtypes)) == 2:
            expected += f", or {dtypes[1]}, that of the state"
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {expected}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {list(shape)} = {shape_hint}")


def check_layer_input(x: object, step_mode: str, in_channels: int, weight: torch.Tensor) -> None:
    """The input of a layer whose feed-forward convolution has ``weight``.

    Raises:
        TypeError: not a dense floating-point tensor, or not of the layer's dtype.
        ValueError: rank, channels or device do not fit.
    """
    hint = "[T, N, C, H, W]" if step_mode == "m" else "[N, C, H, W]"
    tensor = check_tensor("x", x, hint)
    if tensor.dim() != (5 if step_mode == "m" else 4):
        raise ValueError(f"x: got shape {list(tensor.shape)}, expected {hint} in step_mode {step_mode!r}")
    if tensor.shape[-3] != in_channels:
        raise ValueError(
            f"x: got {tensor.shape[-3]} channels, shape {list(tensor.shape)}, "
            f"expected {in_channels}, the in_channels of the layer"
        )
    if tensor.device != weight.device:
        raise ValueError(f"x: got device {tensor.device}, expected {weight.device}, the device of the layer")
    if tensor.dtype != weight.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise TypeError(f"x: got dtype {tensor.dtype}, expected {weight.dtype}, the dtype of the layer")


def check_norm_pair(name: str, norm: object) -> Pair:
    """A GroupNorm argument as ``(weight, bias)``; ``None`` becomes ``(None, None)``."""
    if norm is None:
        return None, None
    if not isinstance(norm, (tuple, list)) or len(norm) != 2:
        got = f"{type(norm).__name__} of length {len(norm)}" if isinstance(norm, (tuple, list)) else type(norm).__name__
        raise TypeError(f"{name}: got {got}, expected a pair (weight [C], bias [C]) of tensors, or None for no norm")
    return norm[0], norm[1]


def _check_states(current: torch.Tensor, states: Mapping[str, torch.Tensor | None], shape_hint: str) -> None:
    for name, value in states.items():
        if value is not None:
            # Spikes among the states of an element-wise neuron are the kernel's own and so of the state's dtype; the
            # caller may give them in that of the spikes.
            dtypes = (state_dtype(current.dtype),) + ((current.dtype,) if name == "spikes" else ())
            _check_like(name, value, tuple(current.shape[1:]), shape_hint, current, dtypes)


def _check_parameters(current: torch.Tensor, channels: int, parameters: Mapping[str, object]) -> None:
    dtypes = (current.dtype, state_dtype(current.dtype))
    for name, value in parameters.items():
        if isinstance(value, torch.Tensor) and value.shape == (1,):
            _check_like(name, value, (1,), "[1]", current, dtypes)
        else:
            _check_like(name, value, (channels,), "[C], or [1] for all channels", current, dtypes)


def check_scan(
    current: torch.Tensor, states: Mapping[str, torch.Tensor | None], parameters: Mapping[str, object]
) -> None:
    """Checks one call of an element-wise neuron.

    Raises:
        TypeError: something is not a dense floating-point tensor, or dtypes do not fit.
        ValueError: ranks, shapes or devices do not fit.
    """
    check_tensor("current", current, "[T, N, *]")
    if current.dim() < 2:
        raise ValueError(f"current: got shape {list(current.shape)}, expected at least 2 dimensions: [T, N, *]")
    _check_states(current, states, "[N, *], the state before the first step")
    if parameters:
        _check_parameters(current, channels_of(current), parameters)


def channels_of(current: torch.Tensor) -> int:
    """C of ``[T, N, C, *]``; what has no channels counts as one."""
    return current.shape[2] if current.dim() > 2 else 1


def check_circuit(
    current: torch.Tensor,
    temporal_weight: torch.Tensor,
    spatial_weight: torch.Tensor,
    states: Mapping[str, torch.Tensor | None],
    spikes: torch.Tensor | None,
    norms: tuple[Pair, Pair, Pair],
    parameters: Mapping[str, object],
    config: STCConfig,
) -> None:
    """Checks one call of a circuit neuron.

    Raises:
        TypeError: something is not a dense floating-point tensor, or dtypes do not fit.
        ValueError: ranks, shapes, groups or devices do not fit.
    """
    if not isinstance(config, STCConfig):
        raise TypeError(f"config: got {type(config).__name__}, expected a stc_cuda.STCConfig")
    check_tensor("current", current, "[T, N, C, H, W]")
    if current.dim() != 5:
        raise ValueError(
            f"current: got {current.dim()} dimensions, shape {list(current.shape)}, expected 5: [T, N, C, H, W]"
        )
    channels, height, width = current.shape[2], current.shape[3], current.shape[4]
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"current: got shape {list(current.shape)}, expected at least one channel, row and column")
    for name, groups in (("groups", config.groups), ("norm_groups", config.resolved_norm_groups)):
        if channels % groups:
            raise ValueError(f"{name}: got {groups}, expected a divisor of the {channels} channels of current")

    check_tensor("temporal_weight", temporal_weight, "[C, C/groups, K, K]")
    if temporal_weight.dim() != 4:
        raise ValueError(
            f"temporal_weight: got {temporal_weight.dim()} dimensions, shape {list(temporal_weight.shape)}, "
            "expected 4: [C, C/groups, K, K]"
        )
    kernel = temporal_weight.shape[3]
    if kernel % 2 == 0:
        raise ValueError(
            f"temporal_weight: got kernel size {kernel}, expected an odd one, so that the map keeps its size"
        )
    weight_shape = (channels, channels // config.groups, kernel, kernel)
    stored, state = (current.dtype,), (state_dtype(current.dtype),)
    hint = "[C, C/groups, K, K]"
    _check_like("temporal_weight", temporal_weight, weight_shape, hint, current, stored + state)
    _check_like("spatial_weight", spatial_weight, weight_shape, f"{hint} of temporal_weight", current, stored + state)

    state_hint = "[N, C, H, W], the state before the first step"
    _check_states(current, states, state_hint)
    if spikes is not None:
        _check_like("spikes", spikes, tuple(current.shape[1:]), state_hint, current, stored)

    for name, (weight, bias) in zip(("current_norm", "temporal_norm", "spatial_norm"), norms, strict=True):
        if weight is None and bias is None:
            continue
        if weight is None or bias is None:
            missing = "weight" if weight is None else "bias"
            raise ValueError(f"{name}: got no {missing}, expected both weight and bias, or neither for no norm")
        _check_like(f"{name} weight", weight, (channels,), "[C]", current, stored + state)
        _check_like(f"{name} bias", bias, (channels,), "[C]", current, stored + state)
    _check_parameters(current, channels, parameters)


def check_binary(
    spikes: torch.Tensor | None, spiking: bool, name: str = "spikes", where: str = "unless spiking=False"
) -> None:
    """Initial spikes must be 0 or 1 in spiking mode. On a GPU this waits for them; not while a graph is captured."""
    if spikes is None or not spiking or torch.compiler.is_compiling():
        return
    if spikes.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not bool(((spikes == 0) | (spikes == 1)).all()):
        raise ValueError(f"{name}: got values other than 0 and 1, expected 0/1 spikes {where}")
