"""What all neurons share: state between calls, step modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import state_dtype


class SpikingNeuron(nn.Module):
    """A module whose state lives between calls until :meth:`reset`.

    The state is not part of ``state_dict``, of copies or of pickles; it follows ``.to()``. Subclasses name their state
    tensors in ``state_names`` and what they record of the last call in ``record_names``, and implement
    :meth:`check_input` and :meth:`multi_step`.
    """

    state_names: tuple[str, ...] = ()
    record_names: tuple[str, ...] = ()

    def __init__(self, step_mode: str) -> None:
        super().__init__()
        self.step_mode = step_mode
        self.reset()

    @property
    def step_mode(self) -> str:
        """``"s"``: an input is one step; ``"m"``: a sequence."""
        return self._step_mode

    @step_mode.setter
    def step_mode(self, step_mode: str) -> None:
        if step_mode not in ("s", "m"):
            raise ValueError(f"step_mode: got {step_mode!r}, expected 's' (one step) or 'm' (a sequence)")
        self._step_mode = step_mode

    def reset(self) -> None:
        """Forgets the state: the next call starts from zero."""
        for name in self.state_names + self.record_names:
            setattr(self, name, None)

    def detach(self) -> None:
        """Keeps the state and cuts its autograd graph (truncated backpropagation through time)."""
        for name in self.state_names + self.record_names:
            state = getattr(self, name)
            if state is not None:
                setattr(self, name, state.detach())

    def multi_step(self, x: Tensor) -> Tensor:
        """Runs a sequence ``[T, N, C, H, W]`` and keeps the state after it."""
        raise NotImplementedError

    def check_input(self, x: Tensor) -> None:
        """Raises a clear error for an input that does not fit the layer and its ``step_mode``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self.multi_step(x) if self.step_mode == "m" else self.multi_step(x.unsqueeze(0)).squeeze(0)

    def _check_state(self, shape: tuple[int, ...]) -> None:
        for name in self.state_names:
            state = getattr(self, name)
            if (
                state is not None
                and not torch.compiler.is_compiling()
                and torch.is_grad_enabled()
                and state.is_inference()
            ):
                raise RuntimeError(
                    f"{name}: the state kept from a call under torch.inference_mode() cannot take part in training; "
                    "call reset() before this sequence"
                )
            if state is not None and tuple(state.shape) != shape:
                raise ValueError(
                    f"{name}: the state kept from the last call has shape {list(state.shape)}, and this input needs "
                    f"{list(shape)}; call reset() before a new sequence"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpikingNeuron:
        super()._apply(fn, recurse)
        for name in self.state_names + self.record_names:
            state = getattr(self, name)
            if state is None:
                continue
            # A change of memory format knows no dimension of steps.
            moved = fn(state.flatten(0, 1)).unflatten(0, state.shape[:2]) if state.dim() == 5 else fn(state)
            # Potentials outgrow 16-bit numbers.
            kept = state_dtype(moved.dtype) != moved.dtype and state.dtype != moved.dtype
            setattr(self, name, state.to(moved.device) if kept else moved)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(dict.fromkeys(self.state_names + self.record_names))
        return state
