"""The autograd Functions around the operators of circuits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._autograd import in_order, saved_tensors, wants_grad
from ._bits import pack_spikes, unpack_spikes
from ._checks import state_dtype
from .backends import select_backend
from .config import STCConfig

# The tensors of a circuit in the order of the Functions: those of the operators up to the coefficients, then states.
_SPIKES, _NORMS, _THRESHOLD, _COEFFICIENTS, _STATES = 3, slice(4, 10), 10, 11, 12


class CircuitFunction(torch.autograd.Function):
    """A circuit neuron over a sequence: ``run_circuit`` with gradients.

    Saved for backward: the current (the caller's tensor, not a copy), the potentials of every step and the norms' means
    and deviations. Spikes and gates are computed again from them.
    """

    @staticmethod
    def forward(ctx: Any, neuron: str, config: STCConfig, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        save = any(ctx.needs_input_grad)
        spikes, states, v_seq, potentials, norm_stats = _forward(neuron, config, tensors, config.store_v_seq, save)
        if save:
            ctx.save_for_backward(potentials, norm_stats, *tensors)
            ctx.neuron, ctx.config = neuron, config
        ctx.set_materialize_grads(False)
        return in_order(spikes, states, v_seq, config)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        potentials, norm_stats, *tensors = saved_tensors(ctx)
        assert potentials is not None
        assert norm_stats is not None
        config: STCConfig = ctx.config
        states = len(tensors) - _STATES
        needed = ctx.needs_input_grad[2:]
        upstream = (grad_spikes, list(grads[:states]), grads[states] if config.store_v_seq else None)
        found = _backward(
            ctx.neuron, config, tensors, potentials, norm_stats, upstream, needed[_THRESHOLD], needed[_COEFFICIENTS]
        )
        return (None, None, *_gradients(config, found, needed))


class RecomputedCircuitFunction(torch.autograd.Function):
    """The same with ``config.recompute_every``: the steps run in parts of so many, and the backward pass runs each part
    once more before it goes back through it.

    Saved for backward: the current, and for each part but the first the states and the spikes before it, as bits.
    """

    @staticmethod
    def forward(ctx: Any, neuron: str, config: STCConfig, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        current = _current(tensors)
        parts = _parts(current, config)
        states: Sequence[Tensor | None] = tensors[_STATES:]
        spikes = tensors[_SPIKES]
        kept: list[Tensor | None] = []
        whole: list[Tensor] = []  # spikes, and v_seq where that is stored, of all parts
        for part in parts:
            if part.start:
                assert spikes is not None
                kept += [*states, pack_spikes(spikes, config.groups) if config.spiking else spikes.clone()]
            inputs = _of_part(tensors, part, states, spikes)
            spikes, after, v_seq, _, _ = _forward(neuron, config, inputs, config.store_v_seq, save=False)
            states = after
            pieces = [spikes, v_seq] if config.store_v_seq else [spikes]
            if len(parts) == 1:
                whole = pieces
                break
            whole = whole or [x.new_empty(current.shape) for x in pieces]
            for sequence, piece in zip(whole, pieces, strict=True):
                sequence[part] = piece
            spikes = spikes[-1]
        ctx.save_for_backward(*kept, *tensors)
        ctx.neuron, ctx.config, ctx.tensors = neuron, config, len(tensors)
        ctx.set_materialize_grads(False)
        return (whole[0], *after, *whole[1:])

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = saved_tensors(ctx)
        config: STCConfig = ctx.config
        kept, tensors = saved[: -ctx.tensors], saved[-ctx.tensors :]
        current = _current(tensors)
        states = len(tensors) - _STATES
        needed = ctx.needs_input_grad[2:]
        grad_states, grad_v_seq = list(grads[:states]), grads[states] if config.store_v_seq else None
        grad_current = current.new_empty(current.shape)
        found: list[Tensor] = []
        sums: list[Tensor] = []
        for index, part in reversed(list(enumerate(_parts(current, config)))):
            before, spikes = list(tensors[_STATES:]), tensors[_SPIKES]
            if part.start:
                *before, spikes = kept[(index - 1) * (states + 1) : index * (states + 1)]
                assert spikes is not None
                if config.spiking:
                    spikes = unpack_spikes(spikes, current.shape[2], current.dtype)
            inputs = _of_part(tensors, part, before, spikes)
            _, _, _, potentials, norm_stats = _forward(ctx.neuron, config, inputs, store_v_seq=False, save=True)
            upstream = None if grad_spikes is None else grad_spikes[part]
            if found and not config.gradient_detach:  # what the part after says of this one's last spikes
                upstream = torch.zeros_like(_current(inputs)) if upstream is None else upstream.clone()
                upstream[-1] += found[_SPIKES]
            found = _backward(
                ctx.neuron,
                config,
                inputs,
                potentials,
                norm_stats,
                (upstream, grad_states, None if grad_v_seq is None else grad_v_seq[part]),
                needed[_THRESHOLD],
                needed[_COEFFICIENTS],
            )
            del inputs, potentials, norm_stats, upstream  # before the next part makes its own
            grad_current[part] = found[0]
            found[0] = grad_current
            grad_states = list(found[_STATES:])
            # In the type of the state: a sum of 16-bit numbers would lose digits.
            terms = [x.to(state_dtype(x.dtype)) for x in found[1:_STATES]]
            terms[_SPIKES - 1] = found[_SPIKES].new_empty(0)  # not of a parameter
            sums = [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms
        totals = [x.to(like.dtype) for x, like in zip(sums, found[1:_STATES], strict=True)]
        totals[_SPIKES - 1] = found[_SPIKES]
        return (None, None, *_gradients(config, [grad_current, *totals, *grad_states], needed))


def run_circuit(neuron: str, config: STCConfig, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Runs the kernels of a circuit neuron on checked inputs: ``(spikes, *states[, v_seq])``.

    ``tensors``: current, temporal_weight, spatial_weight, spikes, the six norm parameters, threshold, coefficients,
    states.
    """
    if wants_grad(tensors):
        if config.packed_spikes:
            raise ValueError(
                "packed_spikes: got True while gradients are needed, but packed spikes cannot carry a gradient; "
                "run under torch.no_grad() or pass packed_spikes=False"
            )
        function = CircuitFunction if config.recompute_every is None else RecomputedCircuitFunction
        return function.apply(neuron, config, *tensors)
    spikes, states, v_seq, _, _ = _forward(neuron, config, tensors, config.store_v_seq, save=False)
    return in_order(spikes, states, v_seq, config)


def _current(tensors: Sequence[Tensor | None]) -> Tensor:
    current = tensors[0]
    assert current is not None
    return current


def _parts(current: Tensor, config: STCConfig) -> list[slice]:
    """The steps in parts of ``recompute_every``; an empty sequence is one part."""
    assert config.recompute_every is not None
    steps = len(current)
    starts = range(0, max(steps, 1), config.recompute_every)
    return [slice(start, min(start + config.recompute_every, steps)) for start in starts]


def _of_part(
    tensors: Sequence[Tensor | None], part: slice, states: Sequence[Tensor | None], spikes: Tensor | None
) -> list[Tensor | None]:
    """The tensors of a call that runs some of the steps, from the state before them on."""
    current = _current(tensors)[part]
    return [current, *tensors[1:_SPIKES], spikes, *tensors[_SPIKES + 1 : _STATES], *states]


def _forward(
    neuron: str, config: STCConfig, tensors: Sequence[Tensor | None], store_v_seq: bool, save: bool
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """Spikes, states, v_seq, potentials and statistics as the operator gives them."""
    return select_backend(config.backend, _current(tensors).device).forward(
        neuron,
        *tensors[:_SPIKES],
        list(tensors[_STATES:]),
        tensors[_SPIKES],
        *tensors[_NORMS],
        tensors[_THRESHOLD],
        tensors[_COEFFICIENTS],
        config.groups,
        config.resolved_norm_groups,
        config.eps,
        *config.cell_options,
        store_v_seq,
        config.packed_spikes,
        save,
    )


def _backward(
    neuron: str,
    config: STCConfig,
    tensors: Sequence[Tensor | None],
    potentials: Tensor,
    norm_stats: Tensor,
    upstream: tuple[Tensor | None, list[Tensor | None], Tensor | None],
    learns_threshold: bool,
    learns_coefficients: bool,
) -> list[Tensor]:
    """Gradients of ``tensors``, in their order; ``upstream``: those of the spikes, of the states and of v_seq."""
    *found, grad_states, grad_s, gx, bx, ga, ba, gb, bb, grad_threshold, grad_coefficients = select_backend(
        config.backend, potentials.device
    ).backward(
        neuron,
        *upstream,
        *tensors[:_SPIKES],
        list(tensors[_STATES:]),
        tensors[_SPIKES],
        *tensors[_NORMS],
        tensors[_THRESHOLD],
        tensors[_COEFFICIENTS],
        potentials,
        norm_stats,
        config.groups,
        config.resolved_norm_groups,
        config.eps,
        *config.cell_options,
        config.detach_reset,
        config.gradient_detach,
        learns_threshold,
        learns_coefficients,
    )
    return [*found, grad_s, gx, bx, ga, ba, gb, bb, grad_threshold, grad_coefficients, *grad_states]


def _gradients(config: STCConfig, found: Sequence[Tensor | None], needed: Sequence[bool]) -> Iterator[Tensor | None]:
    """Those of ``found`` that autograd asked for."""
    for place, (grad, need) in enumerate(zip(found, needed, strict=True)):
        # Detached spikes enter the gates, so nothing flows to those before the first step.
        yield grad if need and not (place == _SPIKES and config.gradient_detach) else None
