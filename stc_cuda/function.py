"""The autograd Function around the forward and backward operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import Pair, check_binary, check_call
from .backends import select_backend
from .config import STCConfig

_FREED_HINT = (
    "stc_cuda: backward reached a sequence whose backward pass has run already. A state (v, spikes) kept from that "
    "sequence still carries its graph: call detach() on the neuron (or on the state tensors) to cut the graph between "
    "two sequences, or reset() to start from zero. (To differentiate one loss twice, pass retain_graph=True.)"
)


def run_forward(inputs: tuple[Tensor | None, ...], config: STCConfig, save_for_backward: bool) -> tuple[Tensor, ...]:
    """Checks the inputs, picks the backend and runs it: ``(spikes, v, v_seq, u, norm_stats)``.

    ``inputs`` are the eleven tensors of :class:`STCFunction` in order. ``v_seq`` is empty unless
    ``config.store_v_seq``; ``u`` and ``norm_stats`` are empty unless ``save_for_backward``.
    """
    current, temporal_weight, spatial_weight, v, spikes, *norms = inputs
    pairs: list[Pair] = [(norms[i], norms[i + 1]) for i in (0, 2, 4)]
    check_call(current, temporal_weight, spatial_weight, v, spikes, pairs[0], pairs[1], pairs[2], config)  # type: ignore[arg-type]
    if config.packed_spikes and save_for_backward:
        raise ValueError(
            "packed_spikes: got True while gradients are needed, but packed spikes cannot carry a gradient; "
            "run under torch.no_grad() or pass packed_spikes=False"
        )
    assert current is not None
    backend = select_backend(config.backend, current.device)
    return tuple(
        backend.forward(
            *inputs,
            config.groups,
            config.resolved_norm_groups,
            config.eps,
            config.v_threshold,
            config.v_reset,
            config.surrogate,
            config.resolved_alpha,
            config.spiking,
            config.store_v_seq,
            config.packed_spikes,
            save_for_backward,
        )
    )


def check_initial_spikes(spikes: object, config: object) -> None:
    """Raises ValueError for initial spikes that are neither 0 nor 1, unless the backend finds out by itself.

    What is not a dense tensor of numbers is left to the checks of the call.
    """
    if not isinstance(spikes, Tensor) or not isinstance(config, STCConfig):
        return
    readable = spikes.layout == torch.strided and spikes.is_floating_point() and not spikes.is_meta
    if readable and not select_backend(config.backend, spikes.device).checks_spikes:
        check_binary(spikes, config.spiking)


class STCRecurrence(torch.autograd.Function):
    """:class:`STCFunction` for callers whose initial spikes are known to be 0 or 1 (or soft)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        inputs, config = args[:-1], args[-1]
        save = any(ctx.needs_input_grad)
        spike_seq, v_last, v_seq, u, norm_stats = run_forward(inputs, config, save)
        if save:
            ctx.save_for_backward(*inputs, u, norm_stats)
            ctx.config = config
        ctx.set_materialize_grads(False)
        return (spike_seq, v_last, v_seq) if config.store_v_seq else (spike_seq, v_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        try:
            saved = ctx.saved_tensors
        except RuntimeError as error:
            if "second time" in str(error):
                raise RuntimeError(_FREED_HINT) from error
            raise
        config: STCConfig = ctx.config
        grad_spikes, grad_v, grad_v_seq = (*grads, None)[:3]
        current = saved[0]
        input_grads = select_backend(config.backend, current.device).backward(
            grad_spikes,
            grad_v,
            grad_v_seq,
            *saved,
            config.groups,
            config.resolved_norm_groups,
            config.eps,
            config.v_threshold,
            config.v_reset,
            config.surrogate,
            config.resolved_alpha,
            config.spiking,
            config.detach_reset,
            config.gradient_detach,
        )
        needed = list(ctx.needs_input_grad)
        if config.gradient_detach:
            needed[4] = False  # the gates saw detached spikes, so nothing flows to those before the first step
        return (*(grad if need else None for grad, need in zip(input_grads, needed, strict=False)), None)


class STCFunction(STCRecurrence):
    """The STC-LIF recurrence over a whole sequence as one differentiable call.

    ``STCFunction.apply(current, temporal_weight, spatial_weight, v, spikes, current_norm_weight, current_norm_bias,
    temporal_norm_weight, temporal_norm_bias, spatial_norm_weight, spatial_norm_bias, config)`` returns
    ``(spikes, v)``, or ``(spikes, v, v_seq)`` with ``config.store_v_seq``. Shapes, dtypes, equations and errors are
    those of :func:`stc_cuda.stc_lif`; a norm is a (weight, bias) pair of tensors or two ``None``.

    Saved for backward: the current (the caller's tensor, not a copy), the membrane potential before reset ``u`` and
    the norms' means and deviations. Spikes and gates are recomputed from them. Backward is differentiable once.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if len(args) != 12:
            raise TypeError(
                f"STCFunction.apply: got {len(args)} arguments, expected 12: current, temporal_weight, spatial_weight, "
                "v, spikes, current_norm_weight, current_norm_bias, temporal_norm_weight, temporal_norm_bias, "
                "spatial_norm_weight, spatial_norm_bias, config"
            )
        check_initial_spikes(args[4], args[-1])
        if not torch.is_grad_enabled():
            # Inside forward gradients are always off, and what needs one would be asked of the tensors alone.
            args = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
        return super().apply(*args)
