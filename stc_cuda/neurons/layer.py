"""Layers: a feed-forward convolution, its norm, and a neuron."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn

from .._call import call_circuit, call_scan
from .._checks import check_layer_input, state_dtype
from ..cells import Cell
from ..config import NeuronConfig, STCConfig
from ..spike_conv import SpikeConv2d
from ..surrogate import as_surrogate
from .base import SpikingNeuron

Module = TypeVar("Module", bound=nn.Module)


class NeuronLayer(SpikingNeuron):
    """What the layers share. A neuron is a subclass with a ``cell`` and, if it has parameters, :meth:`parameters_of`.

    ``x -> GN(conv_x(x))`` is the current of the neuron; the convolution is bias-free and keeps the map's size, the norm
    has ``groups`` groups and eps 1e-5. The convolution, ``conv_x[0]``, is a :class:`stc_cuda.SpikeConv2d` that looks at
    each input: spikes of a layer below take its fast paths, real numbers the ordinary one. Who knows what comes sets
    ``conv_x[0].expects_spikes``, as :class:`stc_cuda.models.SpikingPredictor` does. The state lives until
    :meth:`reset`. Names of parameters are those of the STC authors' models, so that their checkpoints load.

    Args:
        in_channels: channels of the input.
        channels: channels of the layer, divisible by ``groups``.
        kernel_size: K of the convolutions, odd.
        groups: groups of the norms and of the recurrent convolutions of circuits.
        v_threshold: firing threshold.
        v_reset: ``None`` = soft reset; a number = the potential after a spike.
        surrogate_function: a name, a :class:`stc_cuda.Surrogate`, a SpikingJelly surrogate object, or a function of
            ``u - v_threshold`` (slow, with a warning). An object is read here, once: later changes of it do not count.
        gradient_detach: circuits: no gradient through the spikes that enter the recurrent convolutions. Neurons without
            them do not read it.
        detach_reset: no gradient through the spikes in the reset; ``None`` = as the authors have it for the neuron.
        step_mode: ``"m"``: forward takes ``[T, N, in_channels, H, W]``; ``"s"``: ``[N, in_channels, H, W]``.
        store_v_seq: keep the membrane potential after reset of every step in :attr:`v_seq`.
        backend: see :func:`stc_cuda.lif`.
        learn_threshold: make the threshold a parameter (``threshold``).
        per_channel: learnt numbers, the threshold included, have the shape ``[channels]`` instead of ``[1]``.
        recompute_every: circuits: keep the state every so many steps instead of every step's, see
            :func:`stc_cuda.stc_lif`. Other neurons do not read it: they keep as little without.

    Shape:
        input ``[T, N, in_channels, H, W]`` of the layer's dtype, in any memory format; output spikes
        ``[T, N, channels, H, W]``. Under autocast the spikes are of the current's dtype; the state stays float32.

    Raises:
        ValueError, TypeError: as the neuron's functional form; a state kept from another batch size asks for
            ``reset()``.
    """

    cell: ClassVar[Cell]
    detaches_reset: ClassVar[bool] = False
    record_names = ("v_seq",)
    v: Tensor | None
    v_seq: Tensor | None
    spikes: Tensor | None
    threshold: nn.Parameter | None
    config: NeuronConfig

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 5,
        groups: int = 16,
        v_threshold: float = 1.0,
        v_reset: float | None = None,
        surrogate_function: object = "sigmoid",
        gradient_detach: bool = False,
        detach_reset: bool | None = None,
        step_mode: str = "m",
        store_v_seq: bool = False,
        backend: str = "auto",
        learn_threshold: bool = False,
        per_channel: bool = False,
        recompute_every: int | None = None,
    ) -> None:
        super().__init__(step_mode)
        if v_reset is not None and not self.cell.hard_reset:
            raise ValueError(f"v_reset: got {v_reset}, expected None: {type(self).__name__} has a reset of its own")
        for name, flag in (("learn_threshold", learn_threshold), ("per_channel", per_channel)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name}: got {type(flag).__name__}, expected True or False")
        self.config = self._make_config(
            groups=groups,
            gradient_detach=gradient_detach,
            recompute_every=recompute_every,
            v_threshold=v_threshold,
            v_reset=v_reset,
            detach_reset=self.detaches_reset if detach_reset is None else detach_reset,
            store_v_seq=store_v_seq,
            backend=backend,
            **as_surrogate(surrogate_function).options,
        )
        for name, size in (("in_channels", in_channels), ("channels", channels), ("kernel_size", kernel_size)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: got {size!r}, expected an int of at least 1")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
        if channels % groups:
            raise ValueError(f"channels: got {channels}, expected a multiple of groups = {groups}")
        self.in_channels = in_channels
        self.channels = channels
        self.per_channel = per_channel
        conv_x = SpikeConv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        conv_x.expects_spikes = None
        self.conv_x = nn.Sequential(conv_x, nn.GroupNorm(groups, channels, eps=1e-5))
        self._build(kernel_size, groups)
        self.register_parameter("threshold", self._learnt(v_threshold) if learn_threshold else None)

    def _build(self, kernel_size: int, groups: int) -> None:
        """Makes what the neuron has beside the feed-forward convolution and its norm."""

    @property
    def store_v_seq(self) -> bool:
        """Whether the membrane potential of every step is kept in ``v_seq``."""
        return self.config.store_v_seq

    @store_v_seq.setter
    def store_v_seq(self, store_v_seq: bool) -> None:
        self.config = dataclasses.replace(self.config, store_v_seq=store_v_seq)

    def parameters_of(self) -> dict[str, Any]:
        """The parameters of the neuron by the names that its cell's ``coefficients`` has for them."""
        return {}

    def check_input(self, x: Tensor) -> None:
        weight: Tensor = self.conv_x[0].weight  # type: ignore[assignment]
        check_layer_input(x, self.step_mode, self.in_channels, weight)

    def multi_step(self, x: Tensor) -> Tensor:
        current = self._current(x)
        self._check_state(tuple(current.shape[1:]))
        # The layer may have changed its dtype, or autocast that of the current.
        membranes = [name for name in self.cell.states if name != "spikes"]
        dtype = state_dtype(current.dtype)
        states = {name: None if getattr(self, name) is None else getattr(self, name).to(dtype) for name in membranes}
        spikes: Tensor | None = getattr(self, "spikes", None)
        spike_seq, *after = self._run(current, states, None if spikes is None else spikes.to(current.dtype))
        for name, state in zip(membranes, after, strict=False):
            setattr(self, name, state)
        if "spikes" in self.state_names and x.shape[0]:
            # A copy, so that the state neither keeps the whole sequence alive nor changes with the caller's output.
            self.spikes = spike_seq[-1].clone()
        self.v_seq = after[-1] if self.config.store_v_seq else None
        return spike_seq

    def extra_repr(self) -> str:
        c = self.config
        surrogate = c.surrogate if c.surrogate_function is None else c.surrogate_function
        threshold = c.v_threshold if self.threshold is None else "learnt"
        return (
            f"v_threshold={threshold}, v_reset={c.v_reset}, surrogate={surrogate!r}, "
            f"detach_reset={c.detach_reset}, step_mode={self.step_mode!r}, backend={c.backend!r}"
        )

    def _make_config(
        self, groups: int, gradient_detach: bool, recompute_every: int | None, **options: Any
    ) -> NeuronConfig:
        # The norms have these groups, and every neuron is held to the same rules.
        STCConfig(groups=groups, gradient_detach=gradient_detach, recompute_every=recompute_every)
        return NeuronConfig(**options)

    def _learnt(self, value: float) -> nn.Parameter:
        return nn.Parameter(torch.full((self.channels if self.per_channel else 1,), float(value)))

    @staticmethod
    def _unused() -> nn.Parameter:
        """A parameter that the authors' checkpoints have and the equations do not."""
        return nn.Parameter(torch.zeros(1), requires_grad=False)

    def _current(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _run(self, current: Tensor, states: dict[str, Tensor | None], spikes: Tensor | None) -> tuple[Tensor, ...]:
        raise NotImplementedError


class ElementwiseLayer(NeuronLayer):
    """A neuron without recurrent convolutions: one of ``ScanCells`` in csrc/cell.h."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "cell" in cls.__dict__:
            cls.state_names = cls.cell.states

    def _current(self, x: Tensor) -> Tensor:
        return self.conv_x(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def _run(self, current: Tensor, states: dict[str, Tensor | None], spikes: Tensor | None) -> tuple[Tensor, ...]:
        in_order = {name: spikes if name == "spikes" else states[name] for name in self.cell.states}
        return call_scan(
            self.cell, self.config, current, in_order, self.parameters_of(), self.threshold, binary_spikes=True
        )


class CircuitLayer(NeuronLayer):
    """A neuron of ``CircuitCells`` in csrc/cell.h, with both recurrent pathways.

    The temporal one is ``conv_h``, the spatial one ``conv_v`` (the authors' names), both with norms like ``conv_x``.

    Only ``conv_x[0]`` is called as a module; of the other parts the weights are read. What that would pass over is
    refused: hooks on them, and parts that are not what the layer made (another norm, a dilation, one more module).
    """

    config: STCConfig

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "cell" in cls.__dict__:
            cls.state_names = (*cls.cell.states, "spikes")

    def _build(self, kernel_size: int, groups: int) -> None:
        self.conv_h = self._pathway(kernel_size, groups)
        self.conv_v = self._pathway(kernel_size, groups)

    def _pathway(self, kernel_size: int, groups: int) -> nn.Sequential:
        conv = nn.Conv2d(self.channels, self.channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.GroupNorm(groups, self.channels, eps=1e-5))

    def _make_config(
        self, groups: int, gradient_detach: bool, recompute_every: int | None, **options: Any
    ) -> STCConfig:
        return STCConfig(groups=groups, gradient_detach=gradient_detach, recompute_every=recompute_every, **options)

    def _current(self, x: Tensor) -> Tensor:
        return self.conv_x[0](x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def _run(self, current: Tensor, states: dict[str, Tensor | None], spikes: Tensor | None) -> tuple[Tensor, ...]:
        (_, norm_x), (conv_h, norm_h), (conv_v, norm_v) = self._parts()
        return call_circuit(
            self.cell,
            self.config,
            current,
            (conv_h.weight, conv_v.weight),
            states,
            spikes,
            ((norm_x.weight, norm_x.bias), (norm_h.weight, norm_h.bias), (norm_v.weight, norm_v.bias)),
            self.parameters_of(),
            self.threshold,
            binary_spikes=True,
        )

    def extra_repr(self) -> str:
        return f"groups={self.config.groups}, gradient_detach={self.config.gradient_detach}, {super().extra_repr()}"

    def _parts(self) -> list[tuple[nn.Conv2d, nn.GroupNorm]]:
        """The convolution and the norm of ``conv_x`` and of both pathways, checked to be read as what they are."""
        found = []
        for name in ("conv_x", "conv_h", "conv_v"):
            pathway = self._modules.get(name)
            if not _is_plain(pathway, nn.Sequential):
                raise RuntimeError(f"{name}: got {pathway}, expected a Sequential of a convolution and its norm")
            _refuse_hooks(pathway)
            parts = tuple(pathway._modules.values())
            if len(parts) != 2:
                raise RuntimeError(f"{name}: got {len(parts)} modules, expected a convolution and its norm")
            conv, norm = cast(tuple[nn.Conv2d, nn.GroupNorm], parts)
            if name != "conv_x":  # whose convolution is called
                _refuse_hooks(conv)
                _check_convolution(name, conv, self.config.groups)
            _refuse_hooks(norm)
            _check_norm(name, norm, self.config)
            found.append((conv, norm))
        return found


def _refuse_hooks(part: nn.Module) -> None:
    """The recurrence reads the weights of this part and never calls it: a hook on it would silently not run."""
    if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
        raise RuntimeError(
            f"hooks: got one on {part}, whose weights the layer reads without calling it; put the hook on the layer, "
            "or use torch.nn.utils.parametrize to change a weight"
        )


def _is_plain(part: nn.Module | None, kind: type[Module]) -> TypeGuard[Module]:
    """Whether calling the part does what that kind of module does. Parametrized and sharded ones do."""
    return isinstance(part, kind) and type(part).forward is kind.forward and "forward" not in part.__dict__


def _check_convolution(name: str, conv: nn.Module, groups: int) -> None:
    if not (
        _is_plain(conv, nn.Conv2d)
        and conv.bias is None
        and conv.groups == groups
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding in ("same", (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2))
        and conv.padding_mode == "zeros"
    ):
        raise RuntimeError(
            f"{name}[0]: got {conv}, expected a Conv2d of {groups} groups without bias, stride and dilation that keeps "
            "the map's size and has no forward of its own: the layer reads its weight and never calls it"
        )


def _check_norm(name: str, norm: nn.Module, config: STCConfig) -> None:
    if not (
        _is_plain(norm, nn.GroupNorm)
        and norm.affine
        and norm.num_groups == config.resolved_norm_groups
        and norm.eps == config.eps
    ):
        raise RuntimeError(
            f"{name}[1]: got {norm}, expected a GroupNorm of {config.resolved_norm_groups} groups and eps {config.eps} "
            "with weight and bias and no forward of its own: the layer reads these and never calls it"
        )
