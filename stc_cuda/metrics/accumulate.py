"""Metrics of a whole test set, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from .perceptual import LPIPS
from .video import METRICS, check_videos, frame_values


class VideoMetrics:
    """Adds up the metrics of predicted videos over batches, and over processes.

    The result is that of all samples in one call, up to float64 rounding, however they are cut into batches.

    Between processes add the states up, then compute::

        torch.distributed.all_reduce(accumulated.state)

    Args:
        out_frames: frames T of a prediction, 1 or more.
        names: which of :data:`stc_cuda.metrics.METRICS`, and ``"lpips"``.
        device: of the state; values are moved there. Choose the GPU to add up without waiting for it.
        lpips: computes ``"lpips"``, which takes a file of weights.

    Attributes:
        state: float64 ``[1 + rows, T]``: the number of samples, then the sum of each metric over samples.

    Raises:
        ValueError: a name is unknown, repeated, or needs ``lpips``; ``out_frames`` is out of range.
        TypeError: ``out_frames`` is no int.
    """

    state: Tensor

    def __init__(
        self,
        out_frames: int,
        names: Sequence[str] = METRICS,
        *,
        device: torch.device | str = "cpu",
        lpips: LPIPS | None = None,
    ) -> None:
        if isinstance(out_frames, bool) or not isinstance(out_frames, int):
            raise TypeError(f"out_frames: got {out_frames!r} ({type(out_frames).__name__}), expected an int")
        if out_frames < 1:
            raise ValueError(f"out_frames: got {out_frames}, expected at least 1")
        self.names = _check_names(names, lpips)
        # MSE and its root have one sum.
        self._rows = tuple(dict.fromkeys("mse" if name == "rmse" else name for name in self.names))
        self._lpips = lpips
        self.state = torch.zeros(1 + len(self._rows), out_frames, dtype=torch.float64, device=device)

    @property
    def samples(self) -> int:
        """Samples so far."""
        return int(self.state[0, 0])

    def update(self, pred: Tensor, true: Tensor) -> None:
        """Adds the metrics of a batch.

        Args:
            pred: floating ``[B, T, C, H, W]``, predicted pixels.
            true: the same shape and device, pixels in [0, 1].

        Raises:
            TypeError: what is not a floating tensor.
            ValueError: a wrong rank, another T than ``out_frames``, empty or different shapes or devices.
        """
        check_videos(pred, true)
        if pred.shape[1] != self.state.shape[1]:
            raise ValueError(f"pred: got {pred.shape[1]} frames, expected out_frames = {self.state.shape[1]}")
        values = frame_values(pred, true, self.names, self._lpips)
        sums = torch.stack([values[name].sum(0) for name in self._rows])
        self.state[0] += len(pred)
        self.state[1:] += sums.to(self.state.device)

    def merge(self, other: VideoMetrics) -> None:
        """Adds what ``other`` has counted; ValueError if it has other metrics or frames."""
        mine, its = ((self.names, self.state.shape[1]), (other.names, other.state.shape[1]))
        if mine != its:
            raise ValueError(f"other: got {its[0]} of {its[1]} frames, expected {mine[0]} of {mine[1]}")
        self.state += other.state.to(self.state.device)

    def reset(self) -> None:
        """Forgets all samples."""
        self.state.zero_()

    @overload
    def compute(self, *, per_frame: Literal[False] = False) -> dict[str, float]: ...

    @overload
    def compute(self, *, per_frame: Literal[True]) -> dict[str, Tensor]: ...

    def compute(self, *, per_frame: bool = False) -> dict[str, float] | dict[str, Tensor]:
        """The metrics of all samples so far.

        Returns:
            By name, in the order of ``names``: a float, or if ``per_frame`` a float64 ``[T]`` on the CPU.

        Raises:
            ValueError: there was no sample.
        """
        state = self.state.cpu()
        if not state[0, 0]:
            raise ValueError("got no samples, expected at least one; call update(pred, true) first")
        means = dict(zip(self._rows, state[1:] / state[0], strict=True))
        frames = {name: means["mse" if name == "rmse" else name] for name in self.names}
        if not per_frame:
            return {name: float(_root(name, values.mean())) for name, values in frames.items()}
        return {name: _root(name, values) for name, values in frames.items()}


def evaluate(
    pred: Tensor, true: Tensor, names: Sequence[str] = METRICS, *, lpips: LPIPS | None = None
) -> dict[str, float]:
    """Metrics of predictions in one call: :class:`VideoMetrics` of a single batch."""
    check_videos(pred, true)
    metrics = VideoMetrics(pred.shape[1], names, lpips=lpips)
    metrics.update(pred, true)
    return metrics.compute()


def _root(name: str, values: Tensor) -> Tensor:
    return values.sqrt() if name == "rmse" else values


def _check_names(names: Sequence[str], lpips: LPIPS | None) -> tuple[str, ...]:
    known = (*METRICS, "lpips")
    if isinstance(names, str) or not names or len(set(names)) != len(names) or not set(names) <= set(known):
        raise ValueError(f"names: got {names!r}, expected different ones of {', '.join(map(repr, known))}")
    if ("lpips" in names) != (lpips is not None):
        given = "no lpips" if lpips is None else "lpips"
        raise ValueError(
            f"lpips: got {given} for names {tuple(names)}, expected lpips=LPIPS(...) with the name 'lpips' and not "
            "without it"
        )
    return tuple(names)
