"""Neurons without recurrent convolutions as layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import cells
from .layer import ElementwiseLayer


class LIF(ElementwiseLayer):
    """A leaky integrate-and-fire layer: :func:`stc_cuda.lif` with ``tau`` 2 on ``GN(conv_x(x))``.

    Arguments, shapes and errors are those of :class:`stc_cuda.neurons.NeuronLayer`.
    """

    cell = cells.LIF

    def parameters_of(self) -> dict[str, Any]:
        return {"tau": 2.0, "decay_input": True}


class PLIF(ElementwiseLayer):
    """A LIF layer with a learnt decay: :func:`stc_cuda.plif`, whose ``decay_logit`` is ``t_m``.

    Args:
        textbook: weight the input by ``1 - sigmoid(t_m)``; the authors' ``1 - t_m``, which their checkpoints were
            trained with, is the default.
        others: those of :class:`stc_cuda.neurons.NeuronLayer`, and so are shapes and errors.
    """

    cell = cells.PLIF
    t_m: nn.Parameter

    def __init__(self, in_channels: int, channels: int, *args: Any, textbook: bool = False, **kwargs: Any) -> None:
        if not isinstance(textbook, bool):
            raise TypeError(f"textbook: got {type(textbook).__name__}, expected True or False")
        super().__init__(in_channels, channels, *args, **kwargs)
        self.textbook = textbook

    def _build(self, kernel_size: int, groups: int) -> None:
        self.t_m = self._learnt(0.0)

    def parameters_of(self) -> dict[str, Any]:
        return {"decay_logit": self.t_m, "textbook": self.textbook}


class LMH(ElementwiseLayer):
    """A layer of two-compartment LM-H neurons: :func:`stc_cuda.lmh` on ``GN(conv_x(x))``.

    The logits ``dendrite_decay, soma_to_dendrite, dendrite_to_soma, soma_decay`` are ``d_u, s_u, d_p, s_p``; ``t_m`` is
    in the authors' checkpoints and not used. The reset is detached by default. Arguments, shapes and errors are those
    of :class:`stc_cuda.neurons.NeuronLayer`.
    """

    cell = cells.LMH
    detaches_reset = True
    dendrite: Tensor | None

    def _build(self, kernel_size: int, groups: int) -> None:
        self.t_m = self._unused()
        for name in ("s_u", "s_p", "d_u", "d_p"):
            self.register_parameter(name, self._learnt(0.0))

    def parameters_of(self) -> dict[str, Any]:
        return {
            "dendrite_decay": self.d_u,
            "soma_to_dendrite": self.s_u,
            "dendrite_to_soma": self.d_p,
            "soma_decay": self.s_p,
        }


class TCLIF(ElementwiseLayer):
    """A layer of two-compartment TC-LIF neurons: :func:`stc_cuda.tclif` on ``GN(conv_x(x))``.

    ``soma_to_dendrite, dendrite_to_soma, reset_gain`` are ``s_u, s_p, t_m``; ``d_u`` and ``d_p`` are in the authors'
    checkpoints and not used. Both compartments are reset by the spike of the step before, detached by default;
    ``v_reset`` must be ``None``. Arguments, shapes and errors are those of :class:`stc_cuda.neurons.NeuronLayer`.
    """

    cell = cells.TCLIF
    detaches_reset = True
    dendrite: Tensor | None

    def _build(self, kernel_size: int, groups: int) -> None:
        for name in ("t_m", "s_u", "s_p"):
            self.register_parameter(name, self._learnt(0.0))
        self.d_u = self._unused()
        self.d_p = self._unused()

    def parameters_of(self) -> dict[str, Any]:
        return {"soma_to_dendrite": self.s_u, "dendrite_to_soma": self.s_p, "reset_gain": self.t_m}


class GLIFParameters(nn.Module):
    """Logits of a GLIF layer, one a channel, by the authors' names; ``alpha``, ``beta`` and ``gamma`` are frozen."""

    def __init__(self, channels: int, v_threshold: float) -> None:
        super().__init__()

        def logit(value: float, *shape: int) -> Tensor:
            return torch.full(shape, -math.log(1 / value - 1))

        def gate(value: float) -> nn.Parameter:
            return nn.Parameter(logit((value - 0.5) * 0.5 + 0.5, channels), requires_grad=False)

        self.alpha, self.beta, self.gamma = gate(0.6), gate(0.8), gate(0.6)
        self.tau = nn.Parameter(logit(0.25, channels))
        self.Vth = nn.Parameter(logit(v_threshold, channels))
        self.leak = nn.Parameter(logit(v_threshold / 8, channels))
        self.reVth = nn.Parameter(logit(v_threshold, channels))
        self.conduct = nn.Parameter(logit(0.5, 1, channels))


class GLIF(ElementwiseLayer):
    """A layer of gated LIF neurons: :func:`stc_cuda.glif` on ``GN(conv_x(x))``, with parameters a channel in ``glif``.

    Args:
        v_threshold: what the learnt thresholds and their resets start from; between 0 and 1.
        surrogate_function: the authors' rectangle by default.
        others: those of :class:`stc_cuda.neurons.NeuronLayer`, and so are shapes and errors; ``v_reset`` must be
            ``None``; ``learn_threshold`` and ``per_channel`` must be ``True``.
    """

    cell = cells.GLIF
    glif: GLIFParameters

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 5,
        groups: int = 16,
        v_threshold: float = 0.5,
        v_reset: float | None = None,
        surrogate_function: object = "rect",
        *args: Any,
        learn_threshold: bool = True,
        per_channel: bool = True,
        **kwargs: Any,
    ) -> None:
        if not (learn_threshold and per_channel):
            raise ValueError("learn_threshold, per_channel: GLIF learns its parameters, the threshold too, a channel")
        super().__init__(
            in_channels, channels, kernel_size, groups, v_threshold, v_reset, surrogate_function, *args, **kwargs
        )
        if not 0 < v_threshold < 1:
            raise ValueError(f"v_threshold: got {v_threshold}, expected a number between 0 and 1")
        self.glif = GLIFParameters(channels, v_threshold)

    def parameters_of(self) -> dict[str, Any]:
        p = self.glif
        return {
            "gate_alpha": p.alpha,
            "gate_beta": p.beta,
            "gate_gamma": p.gamma,
            "tau": p.tau,
            "threshold": p.Vth,
            "leak": p.leak,
            "conduct": p.conduct[0],
            "reset": p.reVth,
        }
