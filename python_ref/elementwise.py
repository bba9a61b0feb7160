"""The neurons without gates from neighbours, one line of code per equation.

x is ``current`` ``[T, N, C, *]``, sig the sigmoid, g the spikes of the step before. Parameters and ``v_threshold`` are
tensors ``[1]`` or ``[C]`` (``v_threshold`` also a number), states ``[N, C, *]`` and zero unless given; ``v_reset=None``
is the soft reset and counts as 0 where the membrane decays towards it. s_t and v_t follow from u_t as in sequence.py
unless an equation says otherwise.

integrate-and-fire
    u_t = v_{t-1} + x_t
LIF (as in SpikingJelly), keep = 1 - 1/tau, gain = 1/tau, or 1 without ``decay_input``
    u_t = v_reset + keep (v_{t-1} - v_reset) + gain x_t
PLIF (Fang et al., "Incorporating learnable membrane time constant", 2021), the same with keep = sig(decay_logit) and
    gain = 1 - decay_logit in the code of the STC paper's authors, gain = 1 - keep in the textbook
LM-H (Hao et al., "A progressive training framework for spiking neural networks with learnable multi-hierarchical
model", 2024), reset detached
    d_t = d_{t-1} (sig(dendrite_decay) - 1/2) + v_{t-1} (sig(soma_to_dendrite) - 1/2) + x_t
    u_t = d_t (sig(dendrite_to_soma) + 1/2) + v_{t-1} (sig(soma_decay) + 1/2)
TC-LIF (Zhang et al., "TC-LIF: a two-compartment spiking neuron model for long-term sequential modelling", 2024), reset
by g_t = s_{t-1}, detached
    d_t = d_{t-1} - v_{t-1} sig(soma_to_dendrite) + x_t - reset_gain g_t
    v_t = v_{t-1} + d_t sig(dendrite_to_soma) - v_threshold g_t
    s_t = Heaviside(v_t - v_threshold)
GLIF (Yao et al., "GLIF: a unified gated leaky integrate-and-fire neuron for spiking neural networks", 2022); every
symbol is the sigmoid of its parameter, those of the gates al, be, ga detached; reset by g_t = s_{t-1}
    v_t = (1 - al (1 - tau)) v_{t-1} (1 - ga g_t) - (1 - al) leak + (1 - be (1 - conduct)) x_t - (1 - ga) reset g_t
    s_t = 1 where v_t > threshold (not at it)

TC-LIF, GLIF and the gain of PLIF are as in the STC paper's authors' code.
"""

import torch

from .sequence import FireAndReset, Threshold, over_time, per_channel
from .surrogate import Surrogate, fire


def integrate_fire(
    current: torch.Tensor,
    *,
    v: torch.Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: Surrogate = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v)`` or ``(spikes, v, v_seq)``."""
    theta = per_channel(v_threshold, current)
    fire_and_reset = FireAndReset(theta, v_reset, surrogate, alpha, detach_reset, spiking)

    def step(x: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        u = v + x
        return fire_and_reset(u)

    return over_time(step, current, (None, v), store_v_seq)


def lif(
    current: torch.Tensor,
    *,
    tau: float = 2.0,
    decay_input: bool = True,
    v: torch.Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: Surrogate = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v)`` or ``(spikes, v, v_seq)``."""
    theta = per_channel(v_threshold, current)
    fire_and_reset = FireAndReset(theta, v_reset, surrogate, alpha, detach_reset, spiking)
    keep = 1 - 1 / tau
    gain = 1 / tau if decay_input else 1.0
    rest = 0.0 if v_reset is None else v_reset

    def step(x: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        u = rest + keep * (v - rest) + gain * x
        return fire_and_reset(u)

    return over_time(step, current, (None, v), store_v_seq)


def plif(
    current: torch.Tensor,
    decay_logit: torch.Tensor,
    *,
    textbook: bool = False,
    v: torch.Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: Surrogate = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v)`` or ``(spikes, v, v_seq)``."""
    theta = per_channel(v_threshold, current)
    fire_and_reset = FireAndReset(theta, v_reset, surrogate, alpha, detach_reset, spiking)
    decay_logit = per_channel(decay_logit, current)
    keep = torch.sigmoid(decay_logit)
    gain = 1 - keep if textbook else 1 - decay_logit
    rest = 0.0 if v_reset is None else v_reset

    def step(x: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        u = rest + keep * (v - rest) + gain * x
        return fire_and_reset(u)

    return over_time(step, current, (None, v), store_v_seq)


def lmh(
    current: torch.Tensor,
    *,
    dendrite_decay: torch.Tensor,
    soma_to_dendrite: torch.Tensor,
    dendrite_to_soma: torch.Tensor,
    soma_decay: torch.Tensor,
    v: torch.Tensor | None = None,
    dendrite: torch.Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: Surrogate = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = True,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v, dendrite)`` or ``(spikes, v, dendrite, v_seq)``."""
    theta = per_channel(v_threshold, current)
    fire_and_reset = FireAndReset(theta, v_reset, surrogate, alpha, detach_reset, spiking)
    d_to_d = torch.sigmoid(per_channel(dendrite_decay, current)) - 0.5
    v_to_d = torch.sigmoid(per_channel(soma_to_dendrite, current)) - 0.5
    d_to_v = torch.sigmoid(per_channel(dendrite_to_soma, current)) + 0.5
    v_to_v = torch.sigmoid(per_channel(soma_decay, current)) + 0.5

    def step(x: torch.Tensor, s: torch.Tensor, v: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, ...]:
        d = d * d_to_d + v * v_to_d + x
        u = d * d_to_v + v * v_to_v
        return *fire_and_reset(u), d

    return over_time(step, current, (None, v, dendrite), store_v_seq)


def tclif(
    current: torch.Tensor,
    *,
    soma_to_dendrite: torch.Tensor,
    dendrite_to_soma: torch.Tensor,
    reset_gain: torch.Tensor,
    v: torch.Tensor | None = None,
    dendrite: torch.Tensor | None = None,
    spikes: torch.Tensor | None = None,
    v_threshold: Threshold = 1.0,
    surrogate: Surrogate = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = True,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v, dendrite)`` or ``(spikes, v, dendrite, v_seq)``."""
    theta = per_channel(v_threshold, current)
    v_to_d = torch.sigmoid(per_channel(soma_to_dendrite, current))
    d_to_v = torch.sigmoid(per_channel(dendrite_to_soma, current))
    reset_gain = per_channel(reset_gain, current)

    def step(x: torch.Tensor, s: torch.Tensor, v: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, ...]:
        g = s.detach() if detach_reset else s
        d = d - v * v_to_d + x - reset_gain * g
        v = v + d * d_to_v - theta * g
        return fire(v - theta, surrogate, alpha, spiking), v, d

    return over_time(step, current, (spikes, v, dendrite), store_v_seq)


def glif(
    current: torch.Tensor,
    *,
    gate_alpha: torch.Tensor,
    gate_beta: torch.Tensor,
    gate_gamma: torch.Tensor,
    tau: torch.Tensor,
    threshold: torch.Tensor,
    leak: torch.Tensor,
    conduct: torch.Tensor,
    reset: torch.Tensor,
    v: torch.Tensor | None = None,
    spikes: torch.Tensor | None = None,
    surrogate: Surrogate = "rect",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Returns ``(spikes, v)`` or ``(spikes, v, v_seq)``."""
    al, be, ga = (torch.sigmoid(per_channel(p, current)).detach() for p in (gate_alpha, gate_beta, gate_gamma))
    learnt = (tau, threshold, leak, conduct, reset)
    tau, threshold, leak, conduct, reset = (torch.sigmoid(per_channel(p, current)) for p in learnt)

    def step(x: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        g = s.detach() if detach_reset else s
        kept = (1 - al * (1 - tau)) * v * (1 - ga * g)
        v = kept - (1 - al) * leak + (1 - be * (1 - conduct)) * x - (1 - ga) * reset * g
        return fire(v - threshold, surrogate, alpha, spiking, strict=True), v

    return over_time(step, current, (spikes, v), store_v_seq)
