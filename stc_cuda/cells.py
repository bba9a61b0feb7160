"""What Python knows of each neuron's cell (csrc/cell.h): its states, its coefficients, its equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import reference  # type: ignore[attr-defined]

Coefficient = float | Tensor


def _no_coefficients() -> Sequence[Coefficient]:
    return ()


@dataclass(frozen=True)
class Cell:
    """One neuron.

    Attributes:
        name: ``kName`` of its struct.
        states: names of the struct's states, in its order. ``"spikes"`` are those of the step before.
        coefficients: from the neuron's parameters, by name, to the numbers or tensors ``[1]`` or ``[C]`` that the
            struct calls so, in its order.
        equations: the neuron's function in :mod:`stc_cuda.reference`; without one, ``backend="reference"`` cannot run
            it.
        threshold: from the parameters to the threshold, for a neuron that has it among them.
        hard_reset: whether it knows ``v_reset``.
        options: names of parameters that are not tensors.
    """

    name: str
    states: tuple[str, ...] = ("v",)
    coefficients: Callable[..., Sequence[Coefficient]] = _no_coefficients
    equations: Callable[..., tuple[Tensor, ...]] | None = None
    threshold: Callable[..., Tensor] | None = None
    hard_reset: bool = True
    options: tuple[str, ...] = ()


def _lif(tau: float, decay_input: bool) -> tuple[float, float]:
    return 1 - 1 / tau, 1 / tau if decay_input else 1.0


def _plif(decay_logit: Tensor, textbook: bool) -> tuple[Tensor, Tensor]:
    keep = torch.sigmoid(decay_logit)
    return keep, 1 - (keep if textbook else decay_logit)


def _lmh(
    dendrite_decay: Tensor, soma_to_dendrite: Tensor, dendrite_to_soma: Tensor, soma_decay: Tensor
) -> tuple[Tensor, ...]:
    return (
        torch.sigmoid(dendrite_decay) - 0.5,
        torch.sigmoid(soma_to_dendrite) - 0.5,
        torch.sigmoid(dendrite_to_soma) + 0.5,
        torch.sigmoid(soma_decay) + 0.5,
    )


def _tclif(soma_to_dendrite: Tensor, dendrite_to_soma: Tensor, reset_gain: Tensor) -> tuple[Tensor, ...]:
    return torch.sigmoid(soma_to_dendrite), torch.sigmoid(dendrite_to_soma), reset_gain


def _glif(
    gate_alpha: Tensor,
    gate_beta: Tensor,
    gate_gamma: Tensor,
    tau: Tensor,
    threshold: Tensor,
    leak: Tensor,
    conduct: Tensor,
    reset: Tensor,
) -> tuple[Tensor, ...]:
    al, be, ga = (torch.sigmoid(gate.detach()) for gate in (gate_alpha, gate_beta, gate_gamma))
    keep = 1 - al * (1 - torch.sigmoid(tau))
    gain = 1 - be * (1 - torch.sigmoid(conduct))
    return keep, ga, (1 - al) * torch.sigmoid(leak), gain, (1 - ga) * torch.sigmoid(reset)


def _glif_threshold(threshold: Tensor, **_: Tensor) -> Tensor:
    return torch.sigmoid(threshold)


def _stc_plif(decay_logit: Tensor) -> tuple[Tensor, Tensor]:
    keep = torch.sigmoid(decay_logit)
    return keep, 1 - keep


INTEGRATE_FIRE = Cell("integrate_fire", equations=reference.integrate_fire)
LIF = Cell("lif", coefficients=_lif, equations=reference.lif, options=("tau", "decay_input"))
PLIF = Cell("plif", coefficients=_plif, equations=reference.plif, options=("textbook",))
LMH = Cell("lmh", states=("v", "dendrite"), coefficients=_lmh, equations=reference.lmh)
TCLIF = Cell(
    "tclif", states=("v", "dendrite", "spikes"), coefficients=_tclif, equations=reference.tclif, hard_reset=False
)
GLIF = Cell(
    "glif",
    states=("v", "spikes"),
    coefficients=_glif,
    equations=reference.glif,
    threshold=_glif_threshold,
    hard_reset=False,
)
STC_LIF = Cell("stclif", equations=reference.stc_lif)
STC_PLIF = Cell("stcplif", coefficients=_stc_plif, equations=reference.stc_plif)
STC_LMH = Cell("stclmh", states=("v", "dendrite"), coefficients=_lmh, equations=reference.stc_lmh)

#: All of them by name.
CELLS = {cell.name: cell for cell in (INTEGRATE_FIRE, LIF, PLIF, LMH, TCLIF, GLIF, STC_LIF, STC_PLIF, STC_LMH)}
