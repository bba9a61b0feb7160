"""Schedules of the frames that a predictor is shown while it learns.

Sources: Bengio et al., "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks", NeurIPS 2015; Wang
et al., "PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive Learning", TPAMI 2022 (reverse). The numbers
are those that OpenSTL trains with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class SamplingSchedule(Protocol):
    """What gives the teacher mask of an iteration."""

    def teacher_mask(
        self, iteration: int, samples: int, in_frames: int, out_frames: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """The ``teacher_mask`` of :class:`stc_cuda.models.SpikingPredictor`, bool, on the CPU.

        Args:
            iteration: optimiser steps done, from 0.
            samples: N.
            in_frames: T_in.
            out_frames: T_out.
            generator: a CPU generator; the default one if ``None``.

        Returns:
            ``[N, T_out - 1]`` for the steps after the given frames, or ``[N, T_in + T_out - 2]`` for those after the
            first frame. One draw per sample and step.
        """


@dataclass(frozen=True)
class ScheduledSampling:
    """True frames after the given ones, ever fewer.

    At iteration i the network sees the true frame with probability ``start - rate * i``, and none from ``until`` on.

    Raises:
        ValueError: ``start`` is outside [0, 1], or ``rate`` or ``until`` is negative.
    """

    start: float = 1.0
    rate: float = 2e-5
    until: int = 50_000

    def __post_init__(self) -> None:
        _check_probability("start", self.start)
        _check_not_negative(rate=self.rate, until=self.until)

    def probability(self, iteration: int) -> float:
        """Of the true frame at a step after the given ones."""
        return max(0.0, self.start - self.rate * iteration) if iteration < self.until else 0.0

    def teacher_mask(
        self, iteration: int, samples: int, in_frames: int, out_frames: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """``[N, T_out - 1]``; see :meth:`SamplingSchedule.teacher_mask`."""
        return torch.rand(samples, out_frames - 1, generator=generator) < self.probability(iteration)


@dataclass(frozen=True)
class ReverseScheduledSampling:
    """Given frames hidden at first and shown ever more, true frames after them shown at first and ever less.

    The first frame is always shown. A later given frame is shown with probability 1/2 until iteration ``begin``, then
    ``1 - exp(-(i - begin) / scale) / 2``, and always from ``end`` on; a frame after the given ones with 1/2 until
    ``begin``, then falling linearly to 0 at ``end``.

    Raises:
        ValueError: not ``0 <= begin < end``, or ``scale`` is not positive.
    """

    begin: int = 25_000
    end: int = 50_000
    scale: float = 5_000.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end:
            raise ValueError(f"begin, end: got {self.begin} and {self.end}, expected 0 <= begin < end")
        if not self.scale > 0:
            raise ValueError(f"scale: got {self.scale}, expected more than 0")

    def given_probability(self, iteration: int) -> float:
        """Of the true frame at a given frame but the first."""
        if iteration >= self.end:
            return 1.0
        return 1 - 0.5 * math.exp(-max(0, iteration - self.begin) / self.scale)

    def probability(self, iteration: int) -> float:
        """Of the true frame at a step after the given ones."""
        progress = (iteration - self.begin) / (self.end - self.begin)
        return 0.5 * (1 - min(1.0, max(0.0, progress)))

    def teacher_mask(
        self, iteration: int, samples: int, in_frames: int, out_frames: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """``[N, T_in + T_out - 2]``; see :meth:`SamplingSchedule.teacher_mask`."""
        uniform = torch.rand(samples, in_frames + out_frames - 2, generator=generator)
        given, ahead = uniform.split((in_frames - 1, out_frames - 1), dim=1)
        return torch.cat((given < self.given_probability(iteration), ahead < self.probability(iteration)), dim=1)


@dataclass(frozen=True)
class NoSampling:
    """The network sees its own predictions after the given frames, as it does when it is used."""

    def probability(self, iteration: int) -> float:
        """Of the true frame at a step after the given ones: 0."""
        return 0.0

    def teacher_mask(
        self, iteration: int, samples: int, in_frames: int, out_frames: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """``[N, T_out - 1]`` of ``False``."""
        return torch.zeros(samples, out_frames - 1, dtype=torch.bool)


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value}, expected a probability, 0 to 1")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}: got {value}, expected at least 0")
