"""Your own videos in a NumPy array ``[N, T, C, H, W]``, in memory or in ``.npy`` files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ._base import (
    Array,
    Indices,
    MappedFile,
    PathLike,
    Size,
    VideoDataset,
    as_float,
    check_count,
    check_fraction,
    check_size,
    check_split,
    check_values,
    held_out_count,
    need_held_out,
    resize,
    thin,
    windows,
)

LAYOUT = "an array [N videos, T frames, C, H, W], uint8 (0 to 255) or floating (0 to 1)"
_FOLDER_LAYOUT = f"train.npy, test.npy and, if you have it, validation.npy, each {LAYOUT}"


class ArrayVideos(VideoDataset):
    """Windows of the videos in an array.

    A single array is split along N in order: the last videos are for ``"test"``, those before them for
    ``"validation"``, the rest for ``"train"``. Put videos that overlap next to each other. Of a folder, each split has
    its file; without ``validation.npy`` the last videos of ``train.npy`` are held out.

    Files are mapped into memory. Floating videos are read once, when the data set is made, to look for values that are
    NaN, infinite or out of range.

    Args:
        data: the array or tensor, or the path of a ``.npy`` file or of a folder of them.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        in_frames: frames that are given, 1 or more.
        out_frames: frames to predict, 1 or more; T is at least their sum.
        frame_size: side, or (height, width), to resize to; ``None`` keeps the size.
        length: use this many windows, evenly spaced; ``None`` uses all.
        stride: frames from the start of a window to that of the next; ``None`` is as many as a window has.
        validation_fraction: of the videos that are left without the test set, held out for ``"validation"``.
        test_fraction: of the videos of a single array, held out for ``"test"``.

    Items:
        float32 ``[in_frames + out_frames, C, H, W]`` in [0, 1].

    Raises:
        FileNotFoundError: a file is missing; the message says which layout is expected.
        ValueError: an array has another shape, too few frames, or values out of range (the message names sample and
            frame); a file is damaged; an argument is out of range.
        TypeError: an argument or the array has the wrong type.
    """

    name = "array"

    def __init__(
        self,
        data: PathLike | Array | Tensor,
        split: str = "train",
        in_frames: int = 10,
        out_frames: int = 10,
        frame_size: Size | None = None,
        length: int | None = None,
        stride: int | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        self.in_frames, self.out_frames = (
            check_count("in_frames", in_frames, 1),
            check_count("out_frames", out_frames, 1),
        )
        self._size = check_size(frame_size)
        stride = self.frames if stride is None else check_count("stride", stride, 1)
        fractions = (
            check_fraction("validation_fraction", validation_fraction),
            check_fraction("test_fraction", test_fraction),
        )
        self._source, where, chosen = _choose(data, check_split(split), *fractions)
        shape = self._array.shape
        if shape[1] < self.frames:
            raise ValueError(
                f"in_frames + out_frames: got {in_frames} + {out_frames}, expected at most {shape[1]}, the frames of a "
                f"video in {where}"
            )
        if self._array.dtype != np.uint8:
            for video in chosen:
                check_values(self._array[video], f"{where}, sample {video}", 0, 1)
        found = [(int(chosen[video]), start) for video, start in windows([shape[1]] * len(chosen), self.frames, stride)]
        self._windows = [found[window] for window in thin(len(found), length)]
        self.frame_shape = (shape[2], *(self._size or (shape[3], shape[4])))

    @property
    def _array(self) -> Array:
        return self._source.array if isinstance(self._source, MappedFile) else self._source

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Tensor:
        """Window ``index`` (negative counts from the end); IndexError outside the data set."""
        video, start = self._windows[self._position(index)]
        frames = as_float(self._array[video, start : start + self.frames])
        return frames if self._size is None else resize(frames, self._size)


def _choose(
    data: PathLike | Array | Tensor, split: str, validation_fraction: float, test_fraction: float
) -> tuple[Array | MappedFile, str, Indices]:
    """Where the videos are, the name of that for messages, and which of them make the split."""
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        folder = path.is_dir()
        own_validation = split == "validation" and (path / "validation.npy").is_file()
        if folder:
            path = path / f"{'train' if split == 'validation' and not own_validation else split}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"root: {path} is not a file; expected {_FOLDER_LAYOUT if folder else LAYOUT}")
        mapped = MappedFile(path, LAYOUT)
        source: Array | MappedFile = mapped
        array, where = mapped.array, str(path)
        if folder:
            test_fraction = 0.0
            if own_validation or split == "test" or (path.parent / "validation.npy").is_file():
                return source, where, np.arange(len(_check_array(array, where)))
    else:
        where = "data"
        if isinstance(data, Tensor) and data.dtype == torch.bfloat16:  # which numpy has not
            raise TypeError(f"{where}: got dtype {data.dtype}, expected {LAYOUT}")
        source = array = data.detach().cpu().numpy() if isinstance(data, Tensor) else data
    videos = len(_check_array(array, where))
    tested = held_out_count(videos, test_fraction, f"videos of {where}", "test")
    held = held_out_count(videos - tested, validation_fraction, f"training videos of {where}", "validation")
    train, validation, test = np.split(np.arange(videos), (videos - tested - held, videos - tested))
    chosen = {"train": train, "validation": validation, "test": test}[split]
    need_held_out(chosen, split, f"{split}_fraction")
    return source, where, chosen


def _check_array(array: object, where: str) -> Array:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{where}: got {type(array).__name__}, expected {LAYOUT}, or the path of a .npy file or folder")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{where}: got dtype {array.dtype}, expected {LAYOUT}")
    if array.ndim != 5 or 0 in array.shape:
        raise ValueError(f"{where}: got shape {list(array.shape)}, expected {LAYOUT}, not empty")
    return array
