"""Neurons of the Spatio-Temporal Circuit as layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import cells
from .layer import CircuitLayer


class STCLIF(CircuitLayer):
    """A Spatio-Temporal Circuit LIF layer: :func:`stc_cuda.stc_lif` on ``conv_x`` with its pathways.

    Arguments, shapes and errors are those of :class:`stc_cuda.neurons.NeuronLayer`. The authors' ``gradient_detach`` is
    ``False`` for Moving MNIST, ``True`` for TaxiBJ and KTH.
    """

    cell = cells.STC_LIF


class STCPLIF(CircuitLayer):
    """A Spatio-Temporal Circuit layer with a learnt decay: :func:`stc_cuda.stc_plif`, whose ``decay_logit`` is ``t_m``.

    Arguments, shapes and errors are those of :class:`stc_cuda.neurons.NeuronLayer`.
    """

    cell = cells.STC_PLIF
    t_m: nn.Parameter

    def _build(self, kernel_size: int, groups: int) -> None:
        super()._build(kernel_size, groups)
        self.t_m = self._learnt(0.0)

    def parameters_of(self) -> dict[str, Any]:
        return {"decay_logit": self.t_m}


class STCLMH(CircuitLayer):
    """A Spatio-Temporal Circuit layer of two-compartment neurons: :func:`stc_cuda.stc_lmh`.

    The logits ``dendrite_decay, soma_to_dendrite, dendrite_to_soma, soma_decay`` are ``d_u, s_u, d_p, s_p``; ``t_m`` is
    in the authors' checkpoints and not used. The reset is detached by default. Arguments, shapes and errors are those
    of :class:`stc_cuda.neurons.NeuronLayer`.
    """

    cell = cells.STC_LMH
    detaches_reset = True
    dendrite: Tensor | None

    def _build(self, kernel_size: int, groups: int) -> None:
        super()._build(kernel_size, groups)
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
