"""Small files in the layouts of the published data sets, and small videos."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import av
import imageio.v3 as imageio
import numpy as np

RNG = np.random.default_rng(0)


def idx_bytes(images: np.ndarray) -> bytes:
    return struct.pack(">IIII", 0x803, *images.shape) + images.tobytes()


def moving_mnist(root: Path) -> None:
    """MNIST's training images (40 flat ones, each of a shade of its own) and seven test sequences."""
    folder = root / "moving_mnist"
    folder.mkdir()
    images = np.repeat(np.arange(101, 141, dtype=np.uint8), 28 * 28).reshape(40, 28, 28)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    np.save(folder / "mnist_test_seq.npy", RNG.integers(0, 256, (20, 7, 64, 64), dtype=np.uint8))


def taxi_arrays(train: int = 30, test: int = 4) -> dict[str, np.ndarray]:
    """The archive's arrays; each value of training sequence n tells which half hour it is: n + frame."""
    hours = np.arange(train)[:, None] + np.arange(8)
    flows = np.broadcast_to((hours / 100 * 2 - 1)[:, :, None, None, None], (train, 8, 2, 6, 5)).astype(np.float32)
    tests = RNG.uniform(-1, 1.1, (test, 8, 2, 6, 5)).astype(np.float32)
    return {"X_train": flows[:, :4], "Y_train": flows[:, 4:], "X_test": tests[:, :4], "Y_test": tests[:, 4:]}


def save_taxis(root: Path, arrays: dict[str, np.ndarray]) -> Path:
    (root / "taxibj").mkdir(exist_ok=True)
    np.savez(root / "taxibj" / "dataset.npz", **arrays)
    return root / "taxibj" / "dataset.npz"


ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")


def kth_video(root: Path, action: str, person: int, numbers: Sequence[int], size: tuple[int, int] = (12, 16)) -> Path:
    """Frames that are as bright as their number is high."""
    folder = root / "kth" / action / f"person{person:02d}_{action}_d1_uncomp"
    folder.mkdir(parents=True)
    for number in numbers:
        pixels = np.full((*size, 3), number, dtype=np.uint8)
        pixels[..., 1:] = 0  # only the first channel counts
        imageio.imwrite(folder / f"image_{number:04d}.png", pixels)
    return folder


def write_video(path: Path, shades: Sequence[int], size: tuple[int, int] = (16, 24)) -> None:
    """A lossless video of flat frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10, options={"slices": "4"})
        stream.height, stream.width = size
        stream.pix_fmt = "gray"
        for shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full(size, shade, np.uint8), format="gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
