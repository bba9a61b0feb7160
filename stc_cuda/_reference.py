"""The backend ``"reference"``: plain PyTorch behind the operators' signatures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._bits import pack_spikes
from ._checks import check_binary, state_dtype
from .backends import Backend, register_backend
from .config import STCConfig

Inputs = tuple[Tensor | None, ...]


def call(inputs: Inputs, config: STCConfig) -> tuple[Tensor, ...]:
    """Runs the reference under ordinary autograd; ``inputs`` are the eleven tensors of ``STCFunction``."""
    check_binary(inputs[4], config.spiking)
    return _run(
        inputs,
        (
            config.groups,
            config.resolved_norm_groups,
            config.eps,
            config.v_threshold,
            config.v_reset,
            config.surrogate,
            config.resolved_alpha,
            config.spiking,
        ),
        detach_reset=config.detach_reset,
        gradient_detach=config.gradient_detach,
        store_v_seq=config.store_v_seq,
        packed_spikes=config.packed_spikes,
    )


def _run(
    inputs: Inputs,
    options: tuple[Any, ...],
    *,
    detach_reset: bool = False,
    gradient_detach: bool = False,
    store_v_seq: bool = True,
    packed_spikes: bool = False,
) -> tuple[Tensor, ...]:
    current, temporal_weight, spatial_weight, v, spikes, *norms = inputs
    groups, norm_groups, eps, v_threshold, v_reset, surrogate, alpha, spiking = options
    # The state is never of 16 bits, and the equations are written for one dtype.
    assert current is not None
    dtype, state = current.dtype, state_dtype(current.dtype)
    current, temporal_weight, spatial_weight, spikes, *norms = (
        None if x is None else x.to(state) for x in (current, temporal_weight, spatial_weight, spikes, *norms)
    )
    pairs = [None if norms[i] is None else (norms[i], norms[i + 1]) for i in (0, 2, 4)]
    spike_seq, *states = reference.stc_lif(
        current,
        temporal_weight,
        spatial_weight,
        groups=groups,
        current_norm=pairs[0],
        temporal_norm=pairs[1],
        spatial_norm=pairs[2],
        norm_groups=norm_groups,
        eps=eps,
        v=v,
        spikes=spikes,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate=surrogate,
        alpha=alpha,
        gradient_detach=gradient_detach,
        detach_reset=detach_reset,
        spiking=spiking,
        store_v_seq=store_v_seq,
    )
    return (pack_spikes(spike_seq, groups) if packed_spikes else spike_seq.to(dtype), *states)


def _forward(*args: Any) -> tuple[Tensor, ...]:
    inputs, options = args[:11], args[11:19]
    check_binary(inputs[4], spiking=options[7])
    store_v_seq, packed_spikes, _ = args[19:]
    with torch.no_grad():
        outputs = _run(inputs, options, store_v_seq=store_v_seq, packed_spikes=packed_spikes)
    spike_seq, v_last = outputs[:2]
    nothing = v_last.new_empty((0,))
    return spike_seq, v_last.clone(), outputs[2] if store_v_seq else nothing, nothing, nothing.double()


def _backward(*args: Any) -> tuple[Tensor | None, ...]:
    """Replays the sequence under autograd; nothing of the forward pass is needed but its inputs."""
    grads, inputs, options = args[:3], args[3:14], args[16:24]
    detach_reset, gradient_detach = args[24:]
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
        # The state before the first step is zero when it is not given, and has no gradient to return then.
        outputs = _run(tuple(leaves), options, detach_reset=detach_reset, gradient_detach=gradient_detach)
        used = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
        wanted = [x for x in leaves if x is not None]
        found = iter(torch.autograd.grad([o for o, _ in used], wanted, [g for _, g in used], allow_unused=True))
    return tuple(None if x is None else _or_zero(next(found), x) for x in leaves)


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


register_backend(Backend("reference", _forward, _backward, device_types=frozenset(), checks_spikes=True))
