"""What all neurons share: parameters of a channel, the loop over time steps, and what follows the membrane potential.

s_t = Heaviside(u_t - v_threshold)
v_t = u_t - v_threshold s_t                        soft reset;  hard: u_t (1 - s_t) + v_reset s_t
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import overload

import torch

from .surrogate import Surrogate, fire

Threshold = float | torch.Tensor


@overload
def per_channel(parameter: torch.Tensor, current: torch.Tensor) -> torch.Tensor: ...
@overload
def per_channel(parameter: Threshold, current: torch.Tensor) -> Threshold: ...
def per_channel(parameter: Threshold, current: torch.Tensor) -> Threshold:
    """A parameter ``[1]`` or ``[C]`` in the shape that broadcasts over a state ``[N, C, *]``; a number as it is."""
    if not isinstance(parameter, torch.Tensor):
        return parameter
    return parameter.reshape(-1, *[1] * (current.dim() - 3))


def over_time(
    step: Callable[..., tuple[torch.Tensor, ...]],
    current: torch.Tensor,
    state: tuple[torch.Tensor | None, ...],
    store_v_seq: bool,
) -> tuple[torch.Tensor, ...]:
    """Runs ``s, v, *others = step(x, s, v, *others)`` for every x of ``current``; ``None`` in ``state`` starts at 0.

    Returns the spikes of all steps, the last ``v, *others``, and ``v`` after every step when ``store_v_seq``.
    """
    s, v, *others = (current.new_zeros(current.shape[1:]) if x is None else x for x in state)
    spike_seq, v_seq = [], []
    for x in current.unbind(0):
        s, v, *others = step(x, s, v, *others)
        spike_seq.append(s)
        if store_v_seq:
            v_seq.append(v)

    def stack(steps: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(steps) if steps else current.new_zeros(current.shape)

    return (stack(spike_seq), v, *others, *([stack(v_seq)] if store_v_seq else []))


@dataclass  # not frozen: torch.compile of torch 2.11 cannot trace that
class FireAndReset:
    """``(s_t, v_t)`` of ``u_t``."""

    v_threshold: Threshold
    v_reset: float | None
    surrogate: Surrogate
    alpha: float | None
    detach_reset: bool
    spiking: bool

    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s = fire(u - self.v_threshold, self.surrogate, self.alpha, self.spiking)
        s_reset = s.detach() if self.detach_reset else s
        v = u - self.v_threshold * s_reset if self.v_reset is None else u * (1 - s_reset) + self.v_reset * s_reset
        return s, v
