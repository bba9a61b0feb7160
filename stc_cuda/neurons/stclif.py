"""STC-LIF as a module."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from .._checks import check_layer_input, state_dtype
from ..config import STCConfig
from ..functional import run_stc
from ..surrogate import as_surrogate
from .base import SpikingNeuron


def _refuse_hooks(*parts: nn.Module) -> None:
    """The recurrence reads the weights of these parts and never calls them: a hook on them would silently not run."""
    for part in parts:
        if part._forward_hooks or part._forward_pre_hooks:
            raise RuntimeError(
                f"hooks: got a forward hook on {part}, whose weights the layer reads without calling it; put the hook "
                "on the layer, or use torch.nn.utils.parametrize to change a weight"
            )


def _conv_and_norm(pathway: nn.Sequential) -> tuple[nn.Conv2d, nn.GroupNorm]:
    return cast(nn.Conv2d, pathway[0]), cast(nn.GroupNorm, pathway[1])


class STCLIF(SpikingNeuron):
    """A Spatio-Temporal Circuit LIF layer: feed-forward convolution, both recurrent pathways and the neuron.

    ``x -> GN(conv_x(x))`` is the current of :func:`stc_cuda.stc_lif`; the temporal pathway is ``conv_h`` and the
    spatial one ``conv_v`` (the authors' names, so that their checkpoints load). All convolutions are bias-free and
    keep the map's size; all norms have ``groups`` groups and eps 1e-5. Only ``conv_x[0]`` is called as a module; of the
    other parts the weights are read, and forward hooks on them are refused. The state (``v``, ``spikes``) lives until
    :meth:`reset`.

    Args:
        in_channels: channels of the input.
        channels: channels of the layer, divisible by ``groups``.
        kernel_size: K of the three convolutions, odd.
        groups: groups of the recurrent convolutions and of the norms.
        v_threshold: firing threshold.
        v_reset: ``None`` = soft reset; a number = the potential after a spike.
        surrogate_function: a name, a :class:`stc_cuda.Surrogate` or a SpikingJelly surrogate object.
        gradient_detach: no gradient through the spikes that enter the recurrent convolutions. The authors' setting is
            ``False`` for Moving MNIST, ``True`` for TaxiBJ and KTH.
        detach_reset: no gradient through the spikes in the reset.
        step_mode: ``"m"``: forward takes ``[T, N, in_channels, H, W]``; ``"s"``: ``[N, in_channels, H, W]``.
        store_v_seq: keep the membrane potential after reset of every step in :attr:`v_seq`.
        backend: see :func:`stc_cuda.stc_lif`.

    Shape:
        input ``[T, N, in_channels, H, W]`` of the layer's dtype, output spikes ``[T, N, channels, H, W]``. Under
        autocast the current and the spikes are of its dtype; the state stays float32.

    Raises:
        ValueError, TypeError: as :func:`stc_cuda.stc_lif`; a state kept from another batch size asks for ``reset()``.
    """

    state_names = ("v", "spikes")
    record_names = ("v_seq",)
    v: Tensor | None
    spikes: Tensor | None
    v_seq: Tensor | None

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
        detach_reset: bool = False,
        step_mode: str = "m",
        store_v_seq: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(step_mode)
        surrogate = as_surrogate(surrogate_function)
        self.config = STCConfig(
            groups=groups,
            v_threshold=v_threshold,
            v_reset=v_reset,
            surrogate=surrogate.name,
            alpha=surrogate.alpha,
            gradient_detach=gradient_detach,
            detach_reset=detach_reset,
            spiking=surrogate.spiking,
            store_v_seq=store_v_seq,
            backend=backend,
        )
        for name, size in (("in_channels", in_channels), ("channels", channels), ("kernel_size", kernel_size)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: got {size!r}, expected an int of at least 1")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
        if channels % groups:
            raise ValueError(f"channels: got {channels}, expected a multiple of groups = {groups}")

        def pathway(inputs: int, conv_groups: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, channels, kernel_size, padding=kernel_size // 2, groups=conv_groups, bias=False)
            return nn.Sequential(conv, nn.GroupNorm(groups, channels, eps=self.config.eps))

        self.in_channels = in_channels
        self.conv_x = pathway(in_channels, 1)
        self.conv_h = pathway(channels, groups)
        self.conv_v = pathway(channels, groups)

    def check_input(self, x: Tensor) -> None:
        weight: Tensor = self.conv_x[0].weight  # type: ignore[assignment]
        check_layer_input(x, self.step_mode, self.in_channels, weight)

    def multi_step(self, x: Tensor) -> Tensor:
        conv_x, norm_x = _conv_and_norm(self.conv_x)
        conv_h, norm_h = _conv_and_norm(self.conv_h)
        conv_v, norm_v = _conv_and_norm(self.conv_v)
        _refuse_hooks(norm_x, conv_h, norm_h, conv_v, norm_v)
        steps, samples = x.shape[:2]
        current = conv_x(x.flatten(0, 1)).unflatten(0, (steps, samples))
        self._check_state(tuple(current.shape[1:]))
        norms = (norm_x.weight, norm_x.bias), (norm_h.weight, norm_h.bias), (norm_v.weight, norm_v.bias)
        # The layer may have changed its dtype, or autocast that of the current.
        before = None if self.v is None else self.v.to(state_dtype(current.dtype))
        spikes = None if self.spikes is None else self.spikes.to(current.dtype)
        spike_seq, v, *v_seq = run_stc(current, conv_h.weight, conv_v.weight, before, spikes, norms, self.config)
        self.v = v
        if steps:
            # A copy, so that the state neither keeps the whole sequence alive nor changes with the caller's output.
            self.spikes = spike_seq[-1].clone()
        self.v_seq = v_seq[0] if v_seq else None
        return spike_seq

    def extra_repr(self) -> str:
        c = self.config
        return (
            f"groups={c.groups}, v_threshold={c.v_threshold}, v_reset={c.v_reset}, surrogate={c.surrogate!r}, "
            f"gradient_detach={c.gradient_detach}, detach_reset={c.detach_reset}, step_mode={self.step_mode!r}, "
            f"backend={c.backend!r}"
        )
