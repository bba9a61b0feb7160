"""LPIPS, the perceptual distance of images by the features of a network.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, version 0.1
with AlexNet, which OpenSTL reports. The weights are the user's: nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .video import check_videos, chunks

_BACKBONE = (
    "the state dict of AlexNet trained on ImageNet that torchvision publishes (alexnet-owt-7be5be79.pth on "
    "download.pytorch.org/models)"
)
_HEADS = "LPIPS's weights of AlexNet's features, weights/v0.1/alex.pth of the package lpips"
# Mean and deviation of ImageNet's pixels, for pixels in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_LEAST_SIZE = 31  # smaller frames have nothing left after two poolings


class _Conv(NamedTuple):
    """A convolution of AlexNet with its number in torchvision's ``features``; its rectified output is compared."""

    number: int
    shape: tuple[int, int, int, int]
    stride: int
    padding: int
    pooled: bool  # its input is


_CONVS = (
    _Conv(0, (64, 3, 11, 11), 4, 2, pooled=False),
    _Conv(3, (192, 64, 5, 5), 1, 2, pooled=True),
    _Conv(6, (384, 192, 3, 3), 1, 1, pooled=True),
    _Conv(8, (256, 384, 3, 3), 1, 1, pooled=False),
    _Conv(10, (256, 256, 3, 3), 1, 1, pooled=False),
)


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity: a distance, smaller is better.

    Args:
        backbone: file with AlexNet's weights, a state dict as torchvision publishes it.
        heads: file with the weights of the features; ``None`` takes the one in the package ``lpips``, which need not
            be importable.

    Raises:
        FileNotFoundError: a file is missing; the message says what it is and where it is published.
        ValueError: a file cannot be read or holds other weights.
        ImportError: ``heads`` is ``None`` and the package lpips is not installed.
    """

    def __init__(self, backbone: str | PathLike[str], heads: str | PathLike[str] | None = None) -> None:
        super().__init__()
        weights = [f"features.{conv.number}.weight" for conv in _CONVS]
        biases = [f"features.{conv.number}.bias" for conv in _CONVS]
        shapes = [conv.shape for conv in _CONVS]
        features = _load(
            "backbone", Path(backbone), _BACKBONE, weights + biases, shapes + [shape[:1] for shape in shapes]
        )
        names = [f"lin{layer}.model.1.weight" for layer in range(len(_CONVS))]
        path = _packaged_heads() if heads is None else Path(heads)
        lines = _load("heads", path, _HEADS, names, [(1, shape[0], 1, 1) for shape in shapes])
        for layer in range(len(_CONVS)):
            self.register_buffer(f"weight_{layer}", features[layer], persistent=False)
            self.register_buffer(f"bias_{layer}", features[layer + len(_CONVS)], persistent=False)
            self.register_buffer(f"head_{layer}", lines[layer], persistent=False)
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values).reshape(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, pred: Tensor, true: Tensor) -> Tensor:
        """The distance of each frame; predictions are clipped to [0, 1]. It carries no gradient.

        Args:
            pred: floating ``[B, T, C, H, W]`` on the device of this module; C = 3, or 1 which is grey.
            true: the same shape and device, pixels in [0, 1].

        Returns:
            float64 ``[B, T]``.

        Raises:
            TypeError: what is not a floating tensor.
            ValueError: a wrong rank, empty or different shapes or devices, other channels, or less than 31 pixels.
        """
        check_videos(pred, true)
        if pred.shape[2] not in (1, 3):
            raise ValueError(f"pred: got {pred.shape[2]} channels, expected 3 or 1: LPIPS compares pictures")
        if min(pred.shape[-2:]) < _LEAST_SIZE:
            size = f"{pred.shape[-2]} x {pred.shape[-1]}"
            raise ValueError(f"pred: got frames of {size} pixels, expected at least {_LEAST_SIZE} x {_LEAST_SIZE}")
        return torch.cat([self._distance(p.clamp(0, 1), t) for p, t in chunks(pred, true)])

    def _distance(self, pred: Tensor, true: Tensor) -> Tensor:
        layers = zip(self._features(pred), self._features(true), strict=True)
        total = torch.zeros(pred.shape[:2], dtype=torch.float64, device=pred.device)
        for layer, (x, y) in enumerate(layers):
            difference = (_unit(x) - _unit(y)).square()
            mean = F.conv2d(difference, self.get_buffer(f"head_{layer}")).double().mean((1, 2, 3))
            total += mean.unflatten(0, total.shape)
        return total

    def _features(self, videos: Tensor) -> list[Tensor]:
        pictures = videos.flatten(0, 1).to(torch.float32) * 2 - 1
        x = (pictures - self.get_buffer("shift")) / self.get_buffer("scale")  # makes three channels of a grey one
        outputs = []
        for layer, conv in enumerate(_CONVS):
            if conv.pooled:
                x = F.max_pool2d(x, 3, 2)
            weight, bias = self.get_buffer(f"weight_{layer}"), self.get_buffer(f"bias_{layer}")
            x = F.conv2d(x, weight, bias, conv.stride, conv.padding).relu()
            outputs.append(x)
        return outputs


def _unit(features: Tensor) -> Tensor:
    """Vectors over channels of length one."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _packaged_heads() -> Path:
    spec = importlib.util.find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"heads: got None, which takes {_HEADS}, and it is not installed: type pip install --no-deps lpips (its "
            "dependencies are not needed), or pass the path of that file"
        )
    return Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / "alex.pth"


def _load(name: str, path: Path, what: str, keys: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{name}: {path} is not a file; expected {what}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{name}: {path} could not be read as {what}: {error}") from error
    tensors = []
    for key, shape in zip(keys, shapes, strict=True):
        found = state.get(key) if isinstance(state, dict) else None
        if not isinstance(found, Tensor) or found.shape != shape:
            got = f"{list(found.shape)}" if isinstance(found, Tensor) else "nothing"
            raise ValueError(f"{name}: {path} has {got} at {key!r}, expected {list(shape)} of {what}")
        tensors.append(found.detach().to(torch.float32))
    return tensors
