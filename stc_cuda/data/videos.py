"""Your own videos: a folder of video files."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ._base import (
    Array,
    MappedFile,
    PathLike,
    Size,
    VideoDataset,
    as_float,
    check_count,
    check_fraction,
    check_size,
    check_split,
    held_out,
    need_held_out,
    thin,
    windows,
)

#: Names of files that are taken for videos end so.
SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
LAYOUT = (
    f"video files ({', '.join(SUFFIXES)}) at any depth, or folders train, test and, if you have it, validation of them"
)
# The part of its duration that a video must show; sound may go on a little longer.
_WHOLE = 0.9
_CACHE_LAYOUT = "decoded frames uint8 [T, C, H, W]"

_log = logging.getLogger("stc_cuda")


class VideoFolder(VideoDataset):
    """Windows of the videos in a folder.

    Splits hold out whole videos, evenly spaced in the order of their names. Folders ``train`` and ``test`` in the root
    are taken as they are, and so is ``validation``; without it, videos of ``train`` are held out.

    All videos of the split are decoded when the data set is made and kept as bytes: in memory, or in files of the
    folder ``cache``, which later runs and other processes use again. They take ``C * H * W`` bytes a frame.

    Args:
        root: the folder.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        in_frames: frames that are given, 1 or more.
        out_frames: frames to predict, 1 or more.
        frame_size: side, or (height, width), to resize to; ``None`` keeps the size, which must be that of all videos.
        length: use this many windows, evenly spaced; ``None`` uses all.
        stride: frames from the start of a window to that of the next; ``None`` is as many as a window has.
        frame_step: keep every so many-th frame of a video; the other numbers count kept frames.
        grayscale: one channel, the luma, in place of red, green and blue.
        cache: folder for decoded frames, made if needed.
        validation_fraction: of the videos that are left without the test set, held out for ``"validation"``.
        test_fraction: of the videos, held out for ``"test"``, unless there is a folder of that name.

    Items:
        float32 ``[in_frames + out_frames, C, H, W]`` in [0, 1], C = 3 or 1.

    Raises:
        FileNotFoundError: there is no folder or no video in it; the message says which layout is expected.
        ValueError: a video cannot be decoded or has another size, all are too short, or an argument is out of range.
        ImportError: PyAV is not installed.

    Warns:
        UserWarning: some videos are too short for a window, and are left out; or one ends before its time.
    """

    name = "videos"

    def __init__(
        self,
        root: PathLike,
        split: str = "train",
        in_frames: int = 10,
        out_frames: int = 10,
        frame_size: Size | None = None,
        length: int | None = None,
        stride: int | None = None,
        frame_step: int = 1,
        grayscale: bool = False,
        cache: PathLike | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        self.in_frames, self.out_frames = (
            check_count("in_frames", in_frames, 1),
            check_count("out_frames", out_frames, 1),
        )
        size = check_size(frame_size)
        stride = self.frames if stride is None else check_count("stride", stride, 1)
        check_count("frame_step", frame_step, 1)
        fractions = (
            check_fraction("validation_fraction", validation_fraction),
            check_fraction("test_fraction", test_fraction),
        )
        _decoder()
        files = _choose(Path(root), check_split(split), *fractions)
        folder = None if cache is None else Path(cache)
        self._videos = [_load(file, size, frame_step, grayscale, folder) for file in files]
        shapes = [_array(video).shape for video in self._videos]
        for file, shape in zip(files, shapes, strict=True):
            if shape[1:] != shapes[0][1:]:
                raise ValueError(
                    f"{file}: got frames of {shape[2]} x {shape[3]} pixels, expected {shapes[0][2]} x {shapes[0][3]} "
                    f"as in {files[0]}; pass frame_size to resize all"
                )
        short = [f"{file} ({shape[0]})" for file, shape in zip(files, shapes, strict=True) if shape[0] < self.frames]
        found = windows([shape[0] for shape in shapes], self.frames, stride)
        if not found:
            raise ValueError(
                f"root: no video has the {self.frames} frames of in_frames + out_frames: {', '.join(short[:5])}"
            )
        if short:
            warnings.warn(
                f"{len(short)} of {len(files)} videos have fewer than {self.frames} frames and are left out: "
                f"{', '.join(short[:5])}{', ...' if len(short) > 5 else ''}",
                stacklevel=2,
            )
        self._windows = [found[window] for window in thin(len(found), length)]
        self.frame_shape = (shapes[0][1], shapes[0][2], shapes[0][3])
        _log.info(
            "%s videos of %s: %d frames, %.0f MB %s, %d windows",
            split,
            root,
            sum(shape[0] for shape in shapes),
            sum(_array(video).nbytes for video in self._videos) / 1e6,
            "in memory" if folder is None else f"in {folder}",
            len(self),
        )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Tensor:
        """Window ``index`` (negative counts from the end); IndexError outside the data set."""
        video, start = self._windows[self._position(index)]
        return as_float(_array(self._videos[video])[start : start + self.frames])


def _array(video: Array | MappedFile) -> Array:
    return video.array if isinstance(video, MappedFile) else video


def _choose(root: Path, split: str, validation_fraction: float, test_fraction: float) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is not a folder; expected {LAYOUT}")
    folders = {name: root / name for name in ("train", "validation", "test") if (root / name).is_dir()}
    if "train" in folders or "test" in folders:
        if split in folders and (split != "train" or "validation" in folders):
            return _list(folders[split])
        if split == "test" or "train" not in folders:
            missing = root / ("test" if split == "test" else "train")
            raise FileNotFoundError(f"root: there is no folder {missing}; expected {LAYOUT}")
        files, test_fraction = _list(folders["train"]), 0.0
    else:
        files = _list(root)
    tested = held_out(len(files), test_fraction, f"videos in {root}", "test")
    training = [file for file, test in zip(files, tested, strict=True) if not test]
    held = held_out(len(training), validation_fraction, f"training videos in {root}", "validation")
    chosen = (
        np.array(files)[tested] if split == "test" else np.array(training)[held if split == "validation" else ~held]
    )
    need_held_out(chosen, split, f"{split}_fraction")
    return list(chosen)


def _list(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise FileNotFoundError(f"root: there is no video in {folder}; expected {LAYOUT}")
    return files


def _load(
    file: Path, size: tuple[int, int] | None, frame_step: int, grayscale: bool, cache: Path | None
) -> Array | MappedFile:
    if cache is None:
        return decode(file, size, frame_step, grayscale)
    status = file.stat()
    key = repr((str(file.resolve()), status.st_size, status.st_mtime_ns, size, frame_step, grayscale))
    stored = cache / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not stored.is_file():
        frames = decode(file, size, frame_step, grayscale)
        cache.mkdir(parents=True, exist_ok=True)
        # Another process may be at it as well: each writes a file of its own, and the last one stays.
        partial = stored.with_suffix(f".{os.getpid()}.part")
        try:
            with partial.open("wb") as out:
                np.save(out, frames)
            os.replace(partial, stored)
        finally:
            partial.unlink(missing_ok=True)
    return MappedFile(stored, _CACHE_LAYOUT)


def decode(file: Path, size: tuple[int, int] | None, frame_step: int, grayscale: bool) -> Array:
    """The frames of a video file.

    Args:
        file: of the video.
        size: (height, width) in pixels to resize to; ``None`` leaves them.
        frame_step: keep every so many-th frame, 1 or more.
        grayscale: one channel; red, green and blue otherwise.

    Returns:
        uint8 ``[T, C, H, W]``. A warning says so where the file ends before its own duration.

    Raises:
        ValueError: the file is damaged or no video, or changes its frame size.
        ImportError: PyAV is not installed.
    """
    av = _decoder()
    scale = {} if size is None else {"height": size[0], "width": size[1]}
    frames: list[Array] = []
    number = -1
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            for number, frame in enumerate(container.decode(video=0)):
                if number % frame_step == 0:
                    frames.append(frame.to_ndarray(format="gray" if grayscale else "rgb24", **scale))
            rate, duration = container.streams.video[0].average_rate, container.duration
    except (av.FFmpegError, ValueError, OSError) as error:
        raise ValueError(
            f"{file} could not be decoded after {number + 1} frames: {error}; it may be cut short or be no video"
        ) from error
    if not frames:
        raise ValueError(f"{file} has no frame, expected a video")
    shown, promised = (number + 1) / rate if rate else 0, (duration or 0) / av.time_base
    if rate and shown < _WHOLE * promised:
        warnings.warn(
            f"{file} ends after {number + 1} frames, {float(shown):.1f} of {promised:.1f} s: it may be cut short",
            stacklevel=2,
        )
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"{file} changes its frame size, expected one size; pass frame_size to resize all")
    stacked = np.stack(frames)
    return stacked[:, None] if grayscale else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def _decoder() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "Videos are decoded with PyAV, which is not installed: type pip install 'stc-cuda[video]' or pip install av"
        ) from error
    return av
