"""Where a number stopped being finite: the first layer, and what its numbers were."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models import SpikingPredictor
from ..neurons import NeuronLayer


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity; the message is the whole diagnosis."""

    found_by_all = True  # processes together, so that one of them says it


@dataclass(frozen=True)
class Statistics:
    """Of the finite values of a tensor."""

    name: str
    count: int
    nan: int
    infinite: int
    low: float
    mean: float
    high: float

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Statistics:
        """Of ``tensor``, in float64."""
        values = tensor.detach().double()
        finite = values[values.isfinite()]
        low, mean, high = (float("nan"),) * 3
        if len(finite):
            low, mean, high = float(finite.min()), float(finite.mean()), float(finite.max())
        nan = int(values.isnan().sum())
        return cls(name, values.numel(), nan, values.numel() - len(finite) - nan, low, mean, high)

    @property
    def is_finite(self) -> bool:
        """Whether every value is."""
        return not self.nan and not self.infinite

    def __str__(self) -> str:
        counts = "all finite" if self.is_finite else f"{self.nan} NaN and {self.infinite} infinite of {self.count}"
        return f"{self.name}: {counts}; finite ones {self.low:.4g} to {self.high:.4g}, mean {self.mean:.4g}"


def first_non_finite(model: SpikingPredictor, frames: Tensor, forward: Callable[[], Tensor]) -> tuple[str, list[str]]:
    """Repeats a step and looks at every layer.

    Args:
        model: the predictor, with the gradients of the failed step.
        frames: what it was given.
        forward: repeats the forward pass of that step and returns its loss.

    Returns:
        What went first, such as ``"cell_list.1, membrane potential at its call 3"``, and lines of statistics: of what
        went first and of what came right before it. Looked at in the order in which a step computes: frames,
        parameters, membrane potentials and spikes, predictions, loss, gradients from the last layer to the first.
    """
    seen = [Statistics.of("frames", frames)]
    seen += [Statistics.of(f"parameter {name}", parameter) for name, parameter in model.named_parameters()]
    if all(found.is_finite for found in seen):
        seen = seen[:1] + _watch(model, forward)
    if all(found.is_finite for found in seen):
        gradients = [(name, p.grad) for name, p in reversed(list(model.named_parameters())) if p.grad is not None]
        seen += [Statistics.of(f"gradient of {name}", gradient) for name, gradient in gradients]
    culprit = next((index for index, found in enumerate(seen) if not found.is_finite), None)
    if culprit is None:
        return "nothing when the step is repeated: the failure does not repeat", [str(found) for found in seen[-3:]]
    return seen[culprit].name, [str(found) for found in seen[max(0, culprit - 3) : culprit + 1]]


def _watch(model: SpikingPredictor, forward: Callable[[], Tensor]) -> list[Statistics]:
    """Statistics of every call of every layer, in order."""
    seen: list[Statistics] = []
    calls: dict[str, int] = {}

    def hook_of(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            where = f"at its call {calls[name]}"
            if isinstance(module, NeuronLayer):
                if module.v_seq is not None:
                    seen.append(Statistics.of(f"{name}, membrane potential {where}", module.v_seq))
                for state in module.state_names:
                    if state not in ("v", "spikes") and getattr(module, state) is not None:
                        seen.append(Statistics.of(f"{name}, state {state} {where}", getattr(module, state)))
            seen.append(Statistics.of(f"{name}, output {where}", output))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, NeuronLayer):
                stack.callback(setattr, module, "store_v_seq", module.store_v_seq)
                module.store_v_seq = True
            elif name != "conv_last":
                continue
            stack.callback(module.register_forward_hook(hook_of(name)).remove)
        seen.append(Statistics.of("loss", forward()))
    return seen
