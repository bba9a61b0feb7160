"""The authors' predictor in plain PyTorch, for all eight neurons: every layer at every step, frame after frame.

Written from the equations; shares nothing with the package. Its parameters have the names of the authors' checkpoints,
and its models are made and called as theirs are: ``Model(layers, hidden, configs)``, then ``model(frames, mask)`` with
patches in the last dimension, which gives predictions and loss. tests/test_comparison.py makes a repository of it.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THRESHOLD = 1.0


class Spike(torch.autograd.Function):
    """A step at 0, with the slope of a sigmoid of steepness 4."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        sigmoid = torch.sigmoid(4 * ctx.saved_tensors[0])
        return grad * 4 * sigmoid * (1 - sigmoid)


class RectangleSpike(torch.autograd.Function):
    """A step just above 0, with the slope 1 where less than 1/2 away."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * (ctx.saved_tensors[0].abs() < 0.5)


def conv_norm(below: int, channels: int, kernel: int, conv_groups: int, norm_groups: int) -> nn.Sequential:
    conv = nn.Conv2d(below, channels, kernel, padding=kernel // 2, bias=False, groups=conv_groups)
    return nn.Sequential(conv, nn.GroupNorm(norm_groups, channels))


class Cell(nn.Module):
    """One step of a layer: ``(spikes, v, d)`` from the input and the layer's last ``v``, ``d`` and spikes."""

    circuit: ClassVar[bool] = False
    scalars: ClassVar[tuple[str, ...]] = ()

    def __init__(self, below: int, channels: int, kernel: int, groups: int, detach: bool) -> None:
        super().__init__()
        self.detach = detach
        self.conv_x = conv_norm(below, channels, kernel, 1, groups)
        if self.circuit:
            self.conv_h, self.conv_v = (conv_norm(channels, channels, kernel, groups, groups) for _ in range(2))
        for name in self.scalars:
            setattr(self, name, nn.Parameter(torch.zeros(1)))
        # Of every step: potential less threshold, and the size of the terms that it is the sum of.
        self.trace: list[tuple[Tensor, Tensor]] = []

    def gates(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Temporal and spatial."""
        last = last.detach() if self.detach else last
        return 1 + torch.tanh(self.conv_h(last)), 1 + torch.tanh(self.conv_v(last))

    def forward(self, x: Tensor, v: Tensor, d: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        current = self.conv_x(x)
        spikes, after, d_after, above = self.step(current, v, d, last)
        magnitude = v.detach().abs() + d.detach().abs() + current.detach().abs() + 1
        self.trace.append((above.detach(), magnitude))
        return spikes, after, d_after

    def step(self, current: Tensor, v: Tensor, d: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Spikes, v, d, and by how much the potential is above the threshold; here of a neuron with a soft reset."""
        u = self.potential(current, v, last)
        spikes = Spike.apply(u - THRESHOLD)
        return spikes, u - spikes, d, u - THRESHOLD

    def potential(self, current: Tensor, v: Tensor, last: Tensor) -> Tensor:
        raise NotImplementedError


class LIFCell(Cell):
    def potential(self, current: Tensor, v: Tensor, last: Tensor) -> Tensor:
        return (v + current) / 2


class PLIFCell(Cell):
    scalars = ("t_m",)

    def potential(self, current: Tensor, v: Tensor, last: Tensor) -> Tensor:
        return torch.sigmoid(self.t_m) * v + (1 - self.t_m) * current


class STCLIFCell(Cell):
    circuit = True

    def potential(self, current: Tensor, v: Tensor, last: Tensor) -> Tensor:
        temporal, spatial = self.gates(last)
        return temporal * v + spatial * current


class STCPLIFCell(Cell):
    circuit, scalars = True, ("t_m",)

    def potential(self, current: Tensor, v: Tensor, last: Tensor) -> Tensor:
        temporal, spatial = self.gates(last)
        leak = torch.sigmoid(self.t_m)
        return leak * temporal * v + (1 - leak) * spatial * current


class LMHCell(Cell):
    """Two compartments; the reset is detached."""

    scalars = ("t_m", "s_u", "s_p", "d_u", "d_p")

    def step(self, current: Tensor, v: Tensor, d: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        temporal, spatial = self.gates(last) if self.circuit else (1.0, 1.0)
        d = (torch.sigmoid(self.d_u) - 0.5) * d + (torch.sigmoid(self.s_u) - 0.5) * v + spatial * current
        u = (torch.sigmoid(self.d_p) + 0.5) * d + (torch.sigmoid(self.s_p) + 0.5) * temporal * v
        spikes = Spike.apply(u - THRESHOLD)
        return spikes, u - spikes.detach(), d, u - THRESHOLD


class STCLMHCell(LMHCell):
    circuit = True


class TCLIFCell(Cell):
    """Both compartments are reset by the spike of the step before."""

    scalars = ("t_m", "s_u", "s_p", "d_u", "d_p")

    def step(self, current: Tensor, v: Tensor, d: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        last = last.detach()
        d = d - torch.sigmoid(self.s_u) * v + current - self.t_m * last
        v = v + torch.sigmoid(self.s_p) * d - last
        return Spike.apply(v - THRESHOLD), v, d, v - THRESHOLD


class GLIFLogits(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        starts = {"alpha": 0.55, "beta": 0.65, "gamma": 0.55, "tau": 0.25, "Vth": 0.5, "leak": 0.0625, "reVth": 0.5}
        for name, value in starts.items():
            setattr(self, name, nn.Parameter(torch.full((channels,), math.log(value / (1 - value)))))
        self.conduct = nn.Parameter(torch.zeros(1, channels))


class GLIFCell(Cell):
    """Gates get no gradient; the spike of the step before resets."""

    def __init__(self, below: int, channels: int, kernel: int, groups: int, detach: bool) -> None:
        super().__init__(below, channels, kernel, groups, detach)
        self.glif = GLIFLogits(channels)

    def step(self, current: Tensor, v: Tensor, d: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p = {name: torch.sigmoid(logit).reshape(-1, 1, 1) for name, logit in self.glif.named_parameters()}
        alpha, beta, gamma = (p[name].detach() for name in ("alpha", "beta", "gamma"))
        decayed = (1 - alpha * (1 - p["tau"])) * v * (1 - gamma * last) - (1 - alpha) * p["leak"]
        u = decayed + current * (1 - beta * (1 - p["conduct"])) - (1 - gamma) * p["reVth"] * last
        return RectangleSpike.apply(u - p["Vth"]), u, d, u - p["Vth"]


CELLS: dict[str, type[Cell]] = {
    "lif": LIFCell, "plif": PLIFCell, "glif": GLIFCell, "tclif": TCLIFCell, "lmh": LMHCell,
    "stclif": STCLIFCell, "stcplif": STCPLIFCell, "stclmh": STCLMHCell,
}  # fmt: skip


class Model(nn.Module):
    """The predictor of a ``cell``; ``configs`` has sizes and options by the authors' names, and may have ``groups``."""

    cell: type[Cell]

    def __init__(self, num_layers: int, num_hidden: list[int], configs: Any) -> None:
        super().__init__()
        self.configs = configs
        depth = configs.patch_size**2 * configs.in_shape[1]
        groups, detach = getattr(configs, "groups", 16), bool(getattr(configs, "gradient_detach", False))
        sizes = zip([depth, *num_hidden[:-1]], num_hidden[:num_layers], strict=True)
        self.cell_list = nn.ModuleList(self.cell(m, n, configs.filter_size, groups, detach) for m, n in sizes)
        self.conv_last = nn.Conv2d(num_hidden[-1], depth, 1, bias=False)

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions ``[N, T - 1, H, W, C]`` from ``frames [N, T, H, W, C]`` and ``mask [N, T_out - 1, H, W, C]``."""
        frames, mask = frames.movedim(-1, 2), mask.movedim(-1, 2)
        given = self.configs.pre_seq_length
        states: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(self.cell_list)
        predictions: list[Tensor] = []
        for t in range(frames.shape[1] - 1):
            x = frames[:, t]
            if t >= given:
                x = mask[:, t - given] * x + (1 - mask[:, t - given]) * predictions[-1]
            for i, cell in enumerate(self.cell_list):
                spikes, v, d = states[i] or [x.new_zeros(len(x), cell.conv_x[0].out_channels, *x.shape[2:])] * 3
                spikes, v, d = cell(x, v, d, spikes)
                states[i] = spikes, v, d
                x = spikes
            predictions.append(self.conv_last(x))
        out = torch.stack(predictions, 1).movedim(2, -1)
        return out, F.mse_loss(out, frames[:, 1:].movedim(2, -1))


MODELS = {name: type(f"{name.upper()}_Model", (Model,), {"cell": cell}) for name, cell in CELLS.items()}


def build(neuron: str, settings: dict[str, Any]) -> Model:
    """A model with the arguments of :class:`stc_cuda.models.SpikingPredictor`, in float64."""
    configs = SimpleNamespace(
        in_shape=settings["in_shape"],
        pre_seq_length=settings["in_shape"][0],
        aft_seq_length=settings["out_frames"],
        patch_size=settings["patch_size"],
        filter_size=settings["kernel_size"],
        groups=settings["groups"],
        gradient_detach=settings.get("gradient_detach", False),
    )
    return MODELS[neuron](len(settings["hidden"]), list(settings["hidden"]), configs).double()


def patches(frames: Tensor, p: int) -> Tensor:
    """``[..., C, H, W]`` as ``[..., H / p, W / p, p * p * C]``, a patch's pixels row by row, channels last."""
    *_, channels, height, width = frames.shape
    out = frames.new_empty(*frames.shape[:-3], height // p, width // p, p * p * channels)
    for row in range(p):
        for column in range(p):
            for c in range(channels):
                out[..., (row * p + column) * channels + c] = frames[..., c, row::p, column::p]
    return out


def unpatched(x: Tensor, p: int) -> Tensor:
    """What :func:`patches` was made of."""
    *_, height, width, depth = x.shape
    channels = depth // p**2
    out = x.new_empty(*x.shape[:-3], channels, height * p, width * p)
    for row in range(p):
        for column in range(p):
            for c in range(channels):
                out[..., c, row::p, column::p] = x[..., (row * p + column) * channels + c]
    return out


def predict(model: Model, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predictions ``[N, T - 1, C, H, W]`` and loss from frames ``[N, T, C, H, W]`` and a mask ``[N, T_out - 1]``."""
    shown = patches(frames, model.configs.patch_size)
    if mask is None:
        mask = shown.new_zeros(len(frames), model.configs.aft_seq_length - 1)
    whole = mask.to(shown.dtype)[..., None, None, None].expand(*mask.shape, *shown.shape[2:])
    predictions, loss = model(shown, whole)
    return unpatched(predictions, model.configs.patch_size), loss
