"""The layers that are timed, and their inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Norm = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layer:
    """A recurrent layer of the paper's shape family; ``[T, N, C, H, W]`` with a square map."""

    steps: int
    samples: int
    channels: int
    size: int
    kernel: int = 5
    groups: int = 16
    carried: bool = False  # starts from a state with spikes, as a step of a rollout does

    def __str__(self) -> str:
        shape = f"[T={self.steps}, N={self.samples}, C={self.channels}, {self.size}x{self.size}]"
        return f"{shape}, K={self.kernel}, {self.groups} groups{', from a carried state' if self.carried else ''}"

    @property
    def neurons_and_steps(self) -> int:
        return self.steps * self.samples * self.channels * self.size**2


@dataclass
class Inputs:
    """Arguments of ``stc_lif``."""

    args: tuple[Tensor, Tensor, Tensor]
    norms: dict[str, Norm]
    groups: int
    state: dict[str, Tensor]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.args[1:], *(tensor for norm in self.norms.values() for tensor in norm)]

    def requires_grad_(self, wanted: bool) -> None:
        # a carried state is the result of the step before, so gradients flow into it as well
        for tensor in (self.args[0], *self.parameters, *self.state.values()):
            tensor.requires_grad_(wanted)
            tensor.grad = None


def make_inputs(
    layer: Layer,
    current_bias: float,
    firing_rate: float,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Normal currents and weights, the same on every device.

    ``current_bias``, the bias of the current's norm, sets the rate at which the layer fires; ``firing_rate`` is that
    of the spikes of a carried state.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    c, k = layer.channels, layer.kernel
    weights = [normal(c, c // layer.groups, k, k) * 0.1 for _ in range(2)]
    current = normal(layer.steps, layer.samples, c, layer.size, layer.size)

    def norm(bias: float) -> Norm:
        return torch.ones(c, dtype=dtype, device=device), torch.full((c,), bias, dtype=dtype, device=device)

    norms = {"current_norm": norm(current_bias), "temporal_norm": norm(0.0), "spatial_norm": norm(0.0)}
    state = {}
    if layer.carried:
        v = normal(*current.shape[1:])
        spikes = torch.rand(v.shape, generator=generator) < firing_rate
        state = {"v": v, "spikes": spikes.to(device, dtype)}
    return Inputs((current, weights[0], weights[1]), norms, layer.groups, state)
