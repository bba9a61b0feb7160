"""What is timed: layers, firing rates, passes, sweeps, and their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Norm = tuple[Tensor, Tensor]

# Firing rates: the bias of the current's norm that gives them, and the number itself.
RATES = {
    "0%": (-20.0, 0.0),
    "5%": (-0.65, 0.05),
    "18%": (0.0, 0.18),
    "50%": (0.75, 0.5),
    "95%": (3.5, 0.95),
    "100%": (20.0, 1.0),
}
USUAL_RATE = "18%"

FORWARD, BACKWARD, TRAINING = "forward", "backward", "training step"
DETACHED = ", detached"  # gradient_detach=True
ROLLOUT = "rollout step"
PASSES = (FORWARD, BACKWARD, BACKWARD + DETACHED, TRAINING, TRAINING + DETACHED)

# Time steps of a layer of the paper's models: given and predicted frames of the data set, less one.
PAPER_STEPS = {"moving-mnist": 19, "taxibj": 7, "kth": 29}
LONGEST_ON_CPU = 10
PAPER_NAMES = (*PAPER_STEPS, "rollout")
LAYER_NAMES = (*PAPER_NAMES, "small")
SWEEP_NAMES = ("T", "N", "C", "map", "K", "rate")
NEURON_NAMES = ("lif", "plif", "integrate_fire")


@dataclass(frozen=True)
class Layer:
    """A recurrent layer of the paper's shape family; ``[T, N, C, H, W]`` with a square map."""

    steps: int
    samples: int
    channels: int = 256
    size: int = 32
    kernel: int = 5
    groups: int = 16
    carried: bool = False  # starts from a state with spikes, as a step of a rollout does

    def __str__(self) -> str:
        shape = f"[T={self.steps}, N={self.samples}, C={self.channels}, {self.size}x{self.size}]"
        return f"{shape}, K={self.kernel}, {self.groups} groups{', from a carried state' if self.carried else ''}"

    @property
    def neurons_and_steps(self) -> int:
        return self.steps * self.samples * self.channels * self.size**2


@dataclass(frozen=True)
class Case:
    """One layer at one firing rate, with the passes that are timed.

    Attributes:
        section: ``"layers"``, ``"sweep"``, ``"compiled"`` or ``"neurons"``.
        name: of the layer, the swept size or the neuron.
        value: of the swept size.
    """

    section: str
    name: str
    layer: Layer
    rate: str = USUAL_RATE
    passes: tuple[str, ...] = (FORWARD, TRAINING)
    value: float | None = None

    def __str__(self) -> str:
        swept = "" if self.value is None else f" = {self.value:g}"
        return f"{self.section} {self.name}{swept}: {self.layer}, {self.rate} firing"


def layer_cases(device: str, names: list[str], rates: list[str]) -> Iterator[Case]:
    """Layers of the paper's three data sets, single steps of a rollout, and a small layer. On a CPU sequences are cut,
    and two that are the same then are timed once, under both names."""
    samples = [16] if device == "cuda" else [2]
    longest = max(PAPER_STEPS.values()) if device == "cuda" else LONGEST_ON_CPU
    by_layer: dict[Layer, list[str]] = {}
    for name in names:
        if name in PAPER_STEPS:
            by_layer.setdefault(Layer(min(longest, PAPER_STEPS[name]), samples[0]), []).append(name)
    for rate in rates:
        for layer, same in by_layer.items():
            yield Case("layers", ", ".join(same), layer, rate, PASSES)
        if "rollout" in names:
            for n in dict.fromkeys((1, *samples)):
                yield Case("layers", "rollout", Layer(1, n, carried=True), rate, (ROLLOUT,))
        if "small" in names:
            yield Case("layers", "small", Layer(10, 2 * samples[0], 128, 16), rate, PASSES)


def sweep_cases(device: str, names: list[str]) -> Iterator[Case]:
    """One size at a time away from a common layer."""
    gpu = device == "cuda"
    base = Layer(10, 16) if gpu else Layer(4, 1)
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {
        "T": ("steps", (1, 2, 5, 10, 20, 40) if gpu else (1, 2, 4, 8, 16)),
        "N": ("samples", (1, 4, 8, 16, 32, 64) if gpu else (1, 2, 4, 8)),
        "C": ("channels", (64, 128, 256, 512)),
        "map": ("size", (8, 16, 32, 64)),
        "K": ("kernel", (3, 5, 7, 9)),
    }
    for name in names:
        if name == "rate":
            for rate, (_, share) in RATES.items():
                yield Case("sweep", name, base, rate, value=share)
        else:
            field, values = sizes[name]
            for value in values:
                changed: dict[str, Any] = {field: value}
                yield Case("sweep", name, replace(base, **changed), value=value)


def compiled_cases(device: str) -> Iterator[Case]:
    """Where torch.compile takes part: each graph takes it half a minute, so one layer does."""
    layer = Layer(PAPER_STEPS["taxibj"], 16 if device == "cuda" else 2)
    yield Case("compiled", "taxibj", layer, passes=(FORWARD, TRAINING, TRAINING + DETACHED))


def neuron_cases(device: str) -> Iterator[Case]:
    """Element-wise neurons, on a map without channels that talk."""
    layer = Layer(16, 16) if device == "cuda" else Layer(10, 1, 64, 32)
    for name in NEURON_NAMES:
        yield Case("neurons", name, layer)


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

    @property
    def leaves(self) -> list[Tensor]:
        # a carried state is the result of the step before, so gradients flow into it as well
        return [self.args[0], *self.parameters, *self.state.values()]


def make_inputs(
    layer: Layer,
    current_bias: float,
    firing_rate: float,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Normal currents and weights, the same on every device; all want gradients.

    ``current_bias``, the bias of the current's norm, sets the rate at which the layer fires; ``firing_rate`` is that
    of the spikes of a carried state.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    c, k = layer.channels, layer.kernel
    weights = [normal(c, c // layer.groups, k, k) * 0.1 for _ in range(2)]
    # one step's numbers for all, turned by one place a step: drawing them all takes longer than timing them
    first = normal(layer.samples, c, layer.size, layer.size)
    current = torch.stack([first.roll(t, dims=-1) for t in range(layer.steps)])

    def norm(bias: float) -> Norm:
        return torch.ones(c, dtype=dtype, device=device), torch.full((c,), bias, dtype=dtype, device=device)

    norms = {"current_norm": norm(current_bias), "temporal_norm": norm(0.0), "spatial_norm": norm(0.0)}
    state = {}
    if layer.carried:
        v = normal(*current.shape[1:])
        spikes = torch.rand(v.shape, generator=generator) < firing_rate
        state = {"v": v, "spikes": spikes.to(device, dtype)}
    inputs = Inputs((current, weights[0], weights[1]), norms, layer.groups, state)
    for leaf in inputs.leaves:
        leaf.requires_grad_()
    return inputs
