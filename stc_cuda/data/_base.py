"""What all data sets share: their interface, held-out parts, windows, checks of values and of files."""

from __future__ import annotations

import math
import operator
import os
import tokenize
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

Indices = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]
Size = int | tuple[int, int]

SPLITS = ("train", "validation", "test")


class VideoDataset(Dataset[Tensor], ABC):
    """A data set of short videos of one shape.

    Items are float32 ``[in_frames + out_frames, C, H, W]``, in [0, 1] unless the data set says otherwise. They depend
    on nothing but the data set's arguments, the epoch and the index.

    Attributes:
        name: of the data set, as :func:`stc_cuda.data.open_dataset` takes it.
        in_frames: frames that a predictor is given.
        out_frames: frames that it must predict.
        frame_shape: ``(C, H, W)``.
        epoch: set by :meth:`set_epoch`; 0 at first.
    """

    name: str
    in_frames: int
    out_frames: int
    frame_shape: tuple[int, int, int]
    epoch: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Sequences in the data set."""

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """Sequence ``index`` (negative counts from the end); IndexError outside the data set."""

    @property
    def frames(self) -> int:
        """Frames of a sequence, given and predicted."""
        return self.in_frames + self.out_frames

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch: generated training sequences are others in each, recorded ones are the same."""
        self.epoch = check_count("epoch", epoch, 0)

    def _position(self, index: int) -> int:
        """``index`` as a number from 0 on."""
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"index: got {place}, expected {-len(self)} to {len(self) - 1}")
        return place % len(self)


# --- arguments ------------------------------------------------------------------------------------------------------


def check_count(name: str, value: object, least: int) -> int:
    """``value`` as an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected an int")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}")
    return value


def check_split(split: str, allowed: Sequence[str] = SPLITS) -> str:
    """``split``, one of ``allowed``."""
    if split not in allowed:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(map(repr, allowed))}")
    return split


def check_fraction(name: str, value: float) -> float:
    """``value`` in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected a number from 0 to 1")
    if not 0 <= value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 0 and less than 1")
    return float(value)


def check_size(value: Size | None) -> tuple[int, int] | None:
    """``frame_size`` as ``(height, width)``; an int is a square."""
    if value is None:
        return None
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"frame_size: got {value}, expected an int or (height, width)")
    height, width = (check_count("frame_size", side, 1) for side in pair)
    return height, width


# --- held-out parts -------------------------------------------------------------------------------------------------


def held_out_count(count: int, fraction: float, what: str, split: str) -> int:
    """How many of ``count`` things ``fraction`` holds out: at least one, unless it is 0, and never all."""
    if fraction == 0:
        return 0
    if count < 2:
        raise ValueError(f"{what}: got {count}, expected at least 2 to hold one out for split={split!r}")
    return min(max(1, math.floor(count * fraction + 1e-9)), count - 1)


def held_out(count: int, fraction: float, what: str, split: str) -> npt.NDArray[np.bool_]:
    """Which of ``count`` things are held out, evenly spaced, so that sorted ones are held out from every part."""
    held = held_out_count(count, fraction, what, split)
    position = np.arange(count)
    return (position + 1) * held // count > position * held // count


def need_held_out(chosen: Array, split: str, fraction: str) -> None:
    """A split that a fraction of 0 leaves empty is a mistake."""
    if not len(chosen):
        raise ValueError(f"{fraction}: got 0, expected more than 0 for split={split!r}")


def windows(lengths: Iterable[int], frames: int, stride: int) -> list[tuple[int, int]]:
    """(video, first frame) of every run of ``frames`` whose start is a multiple of ``stride``."""
    return [
        (video, start)
        for video, length in enumerate(lengths)
        for start in range(0, max(0, length - frames + 1), stride)
    ]


def thin(count: int, length: int | None) -> Indices:
    """``length`` of ``count`` positions, evenly spaced; all of them if ``length`` is ``None``."""
    if length is None:
        return np.arange(count)
    if check_count("length", length, 1) > count:
        raise ValueError(f"length: got {length}, expected at most {count}, the sequences of this split")
    return np.arange(length) * count // length


# --- values ---------------------------------------------------------------------------------------------------------


def as_float(frames: Array) -> Tensor:
    """float32 in [0, 1] of uint8 (0 to 255) or floating frames, a copy."""
    values = torch.from_numpy(np.array(frames, dtype=np.float32))
    return values / 255 if frames.dtype == np.uint8 else values


def check_values(sequence: Array, where: str, low: float, high: float, first_frame: int = 0) -> None:
    """Floating frames ``[T, C, H, W]`` are finite and within bounds; the error names the first frame that is not."""
    axes = tuple(range(1, sequence.ndim))
    smallest, largest = sequence.min(axes), sequence.max(axes)
    bad = ~((smallest >= low) & (largest <= high))  # a NaN fails both
    if not bad.any():
        return
    frame = int(bad.argmax())
    pixels = sequence[frame]
    wrong = pixels[~np.isfinite(pixels)]
    found = (
        f"{len(wrong)} values that are NaN or infinite" if len(wrong) else f"values {pixels.min()} to {pixels.max()}"
    )
    raise ValueError(
        f"{where}, frame {first_frame + frame}: got {found}, expected finite values in [{low:g}, {high:g}]; "
        "mend or leave out this sequence, and scale the data if all of it is out of range"
    )


def resize(frames: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """Bilinear, in [0, 1]. Without ``antialias`` it is what OpenCV does by default, and so what OpenSTL does to KTH."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    return F.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=antialias).clamp(0, 1)


# --- files ----------------------------------------------------------------------------------------------------------


def find_file(root: PathLike, folder: str, names: Sequence[str], layout: str) -> Path:
    """The first of ``root/folder/name`` and ``root/name`` that is a file."""
    base = Path(root)
    tried = [place / name for place in (base / folder, base) for name in names]
    for path in tried:
        if path.is_file():
            return path
    raise FileNotFoundError(f"root: found none of {', '.join(map(str, tried))}; expected {layout}")


#: What NumPy raises for bytes that are something else, a broken header among them.
UNREADABLE = (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError)


def load_npy(path: Path, layout: str) -> Array:
    """A ``.npy`` file, mapped into memory: writing to it does not change the file."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except UNREADABLE as error:
        raise ValueError(f"path: {path} could not be read as a .npy file of {layout}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"path: {path} is an archive of arrays, expected a .npy file of {layout}")
    return array


class MappedFile:
    """A ``.npy`` file mapped into memory. A worker process maps it again, instead of being sent a copy."""

    def __init__(self, path: Path, layout: str) -> None:
        self.path, self.layout = path, layout
        self.array = load_npy(path, layout)

    def __reduce__(self) -> tuple[type[MappedFile], tuple[Path, str]]:
        return MappedFile, (self.path, self.layout)
