"""The autograd Functions around the operators of element-wise neurons and of the spike convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._bits import pack_spikes, unpack_spikes
from ._extension import extension
from .backends import Backend, select_backend
from .config import NeuronConfig


def saved_tensors(ctx: Any) -> tuple[Tensor | None, ...]:
    """What ``forward`` saved, for a backward pass that has no derivative of its own."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True: gradients of gradients
        raise NotImplementedError(extension.NO_SECOND_DERIVATIVE)
    return _saved(ctx)


def _saved(ctx: Any) -> tuple[Tensor | None, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "second time" in str(error):
            raise RuntimeError(extension.GRAPH_IS_FREED) from error
        raise


def _scan_backend(config: NeuronConfig, device: torch.device) -> Backend:
    backend = select_backend(config.backend, device)
    if backend.scan_forward is None or backend.scan_backward is None:
        raise NotImplementedError(f"backend: {backend.name!r} has no kernels of element-wise neurons")
    return backend


def in_order(spikes: Tensor, states: list[Tensor], v_seq: Tensor, config: NeuronConfig) -> tuple[Tensor, ...]:
    return (spikes, *states, v_seq) if config.store_v_seq else (spikes, *states)


def wants_grad(tensors: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


# PyTorch's own compiled backward passes reuse what they saved on the same two conditions (its "donated buffers").


def _hands_out_saved_tensors() -> bool:
    """Whether somebody else gets hold of what a forward pass saves: a hook, or a tracer."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _is_last_use() -> bool:
    """Whether the backward pass that runs frees what it has used."""
    return not torch.compiler.is_compiling() and not torch._C._autograd._get_current_graph_task_keep_graph()


class ScanFunction(torch.autograd.Function):
    """An element-wise neuron over a sequence with gradients, on backends without an operator that has them.

    That of the compiled backends, csrc/scan_autograd.cpp, does the same.

    Saved for backward: the potentials of every step and, where coefficients learn, the current. A backward pass that
    leaves no graph behind puts the gradient of the current in the place of the potentials, so it allocates nothing.
    """

    @staticmethod
    def forward(ctx: Any, neuron: str, config: NeuronConfig, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        save = any(ctx.needs_input_grad)
        spikes, states, v_seq, potentials = _scan_forward(neuron, config, tensors, save)
        current, threshold, coefficients, *before = tensors
        if save:
            assert current is not None
            learns = ctx.needs_input_grad[4]
            ctx.save_for_backward(current if learns else None, threshold, coefficients, potentials, *before)
            ctx.neuron, ctx.config, ctx.dtype = neuron, config, current.dtype
            ctx.owns_saved = not _hands_out_saved_tensors()
        ctx.set_materialize_grads(False)
        return in_order(spikes, states, v_seq, config)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        current, threshold, coefficients, potentials, *before = saved_tensors(ctx)
        assert potentials is not None
        config: NeuronConfig = ctx.config
        backend = _scan_backend(config, potentials.device)
        needed = ctx.needs_input_grad[2:]
        upstream = (grad_spikes, list(grads[: len(before)]), grads[len(before)] if config.store_v_seq else None)
        arguments = (ctx.neuron, *upstream, current, before, threshold, coefficients, potentials)
        options = (*config.cell_options, config.detach_reset, needed[1], needed[2])
        # a backward pass that is captured on a GPU may be replayed twice after one forward pass
        in_place = backend.scan_backward_in_place if potentials.device.type == "cpu" else None
        if in_place and ctx.owns_saved and _is_last_use() and len(potentials) == 1 and potentials.dtype == ctx.dtype:
            torch.autograd.graph.increment_version(potentials)
            grad_states, grad_threshold, grad_coefficients = in_place(*arguments, *options)
            grad_current = potentials[0]
        else:
            assert backend.scan_backward is not None
            found = backend.scan_backward(*arguments, ctx.dtype, *options)
            grad_current, grad_states, grad_threshold, grad_coefficients = found
        found = (grad_current, grad_threshold, grad_coefficients, *grad_states)
        return (None, None, *(grad if need else None for grad, need in zip(found, needed, strict=True)))


def _scan_forward(
    neuron: str, config: NeuronConfig, tensors: tuple[Tensor | None, ...], save: bool
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    current, threshold, coefficients, *states = tensors
    assert current is not None
    forward = _scan_backend(config, current.device).scan_forward
    assert forward is not None
    return forward(neuron, current, states, threshold, coefficients, *config.cell_options, config.store_v_seq, save)


def run_scan(
    neuron: str,
    config: NeuronConfig,
    current: Tensor,
    threshold: Tensor | None,
    coefficients: Tensor | None,
    states: list[Tensor | None],
) -> tuple[Tensor, ...]:
    """Runs the kernels of an element-wise neuron on checked inputs: ``(spikes, *states[, v_seq])``."""
    scan = scan_of(config, current.device)
    if scan is not None:
        return scan(neuron, current, states, threshold, coefficients)
    tensors = (current, threshold, coefficients, *states)
    if wants_grad(tensors):
        return ScanFunction.apply(neuron, config, *tensors)
    spikes, after, v_seq, _ = _scan_forward(neuron, config, tensors, save=False)
    return in_order(spikes, after, v_seq, config)


def scan_of(config: NeuronConfig, device: torch.device) -> Callable[..., tuple[Tensor, ...]] | None:
    """``run_scan`` of backends with an operator that has gradients, but for the config; None for others."""
    operator = _scan_backend(config, device).scan
    if operator is None:
        return None
    options, store_v_seq = (*config.cell_options, config.detach_reset, config.store_v_seq), config.store_v_seq

    def run(
        neuron: str,
        current: Tensor,
        states: list[Tensor | None],
        threshold: Tensor | None,
        coefficients: Tensor | None,
    ) -> tuple[Tensor, ...]:
        spikes, after, v_seq = operator(neuron, current, states, threshold, coefficients, *options)
        return (spikes, *after, v_seq) if store_v_seq else (spikes, *after)

    return run


#: What ``stc_cuda::spike_conv`` tells of itself by number.
_SPIKE_CONV_PATHS = ("events", "dense", "real")
_DENSE, _REAL = 1, 2


def _dense_gradient(grad: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> Tensor:
    padding = [weight.shape[-1] // 2] * 2
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [of_input, not of_input, False]
    )
    return found[0 if of_input else 1]


def _is_traced(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or isinstance(x, torch._subclasses.FakeTensor)


class SpikeConvFunction(torch.autograd.Function):
    """The convolution of 0/1 spikes with stride 1 and padding K // 2: ``run_spike_conv`` with gradients.

    Saved for backward: the spikes as bits, where the weight learns, and the weight, where the input does. An input that
    is not spikes is saved as it is; a traced call cannot know that, and raises when it runs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, path: str) -> tuple[Tensor, Tensor]:
        of_input, of_weight, *_ = ctx.needs_input_grad
        traced = _is_traced(x)
        out, bits, report = _spike_conv_forward(x, weight, bias, traced and of_weight, path)
        real = not traced and int(report[0]) == _REAL
        ctx.save_for_backward((x if real else bits) if of_weight else None, weight if of_input else None)
        ctx.shape, ctx.dtype, ctx.real, ctx.path = x.shape, x.dtype, real, path
        ctx.weight_shape = weight.shape
        ctx.mark_non_differentiable(report)
        ctx.set_materialize_grads(False)
        return out, report

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = _saved(ctx)
        if grad is None:
            return None, None, None, None
        of_input, of_weight, of_bias, _ = ctx.needs_input_grad
        grad_input = grad_weight = None
        if of_input:
            assert weight is not None
            like = grad.new_empty(ctx.shape)  # only its shape is read, but an expanded one would be copied
            grad_input = _dense_gradient(grad, like, weight, of_input=True).to(ctx.dtype)
        if of_weight:
            assert x is not None
            if ctx.real:
                like = grad.new_empty(ctx.weight_shape)
                grad_weight = _dense_gradient(grad, x.to(grad.dtype), like, of_input=False)
            else:
                on_cpu = x.device.type == "cpu"
                gradient = torch.ops.stc_cuda.spike_conv_weight_gradient if on_cpu else _torch_weight_gradient
                grad_weight, _ = gradient(grad, x, ctx.shape[1], ctx.weight_shape[-1], ctx.path)
        return grad_input, grad_weight, grad.sum((0, 2, 3)) if of_bias else None, None


def _spike_conv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, require_spikes: bool, path: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Result, bits and report as the operator gives them; on a GPU the convolution is PyTorch's."""
    if x.device.type == "cpu":
        return torch.ops.stc_cuda.spike_conv(x, weight, bias, require_spikes, path)
    return _torch_spike_conv(x, weight, bias)


def _torch_spike_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.nn.functional.conv2d(x.to(weight.dtype), weight, bias, padding=weight.shape[-1] // 2)
    spikes = bool(((x == 0) | (x == 1)).all())  # waits for the device
    return out, pack_spikes(x, 1) if spikes else x.new_empty(0), torch.tensor([_DENSE if spikes else _REAL, -1])


def _torch_weight_gradient(
    grad: Tensor, bits: Tensor, channels: int, kernel_size: int, path: str
) -> tuple[Tensor, Tensor]:
    like = grad.new_empty(grad.shape[1], channels, kernel_size, kernel_size)  # only its shape is read
    dense = unpack_spikes(bits, channels, grad.dtype)
    return _dense_gradient(grad, dense, like, of_input=False), torch.tensor([_DENSE, -1])


def run_spike_conv(x: Tensor, weight: Tensor, bias: Tensor | None, path: str) -> tuple[Tensor, str | None]:
    """The result and the path: ``"events"``, ``"dense"``, ``"real"`` for no spikes, None where it cannot be known."""
    if wants_grad((x, weight, bias)):
        out, report = SpikeConvFunction.apply(x, weight, bias, path)
    else:
        out, _, report = _spike_conv_forward(x, weight, bias, False, path)
    return out, None if _is_traced(x) else _SPIKE_CONV_PATHS[int(report[0])]
