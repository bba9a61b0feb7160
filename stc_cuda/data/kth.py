"""KTH actions: 25 persons who walk, jog, run, box, wave and clap, in front of a still camera.

Source: Schuldt, Laptev and Caputo, "Recognizing Human Actions: A Local SVM Approach", ICPR 2004. Split and windows are
those of the spatio-temporal prediction benchmarks (PredRNN, OpenSTL).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._base import (
    PathLike,
    Size,
    VideoDataset,
    check_count,
    check_fraction,
    check_size,
    check_split,
    held_out,
    need_held_out,
    resize,
    thin,
)

#: Starts of windows, in frames from one to the next; ``None`` is as many as a window has frames.
STRIDES: dict[str, int | None] = {
    "boxing": None,
    "handclapping": None,
    "handwaving": None,
    "walking": None,
    "jogging": 3,
    "running": 3,
}
TRAIN_PERSONS = tuple(range(1, 17))
TEST_PERSONS = tuple(range(17, 26))
LAYOUT = (
    "folders ACTION/personNN_ACTION_dN_uncomp/image_NNNN.jpg, one an action "
    f"({', '.join(STRIDES)}), as published with PredRNN and OpenSTL (github.com/chengtan9907/OpenSTL, kth_action.zip "
    "among its releases); the videos themselves are on www.csc.kth.se/cvap/actions"
)
_FRAME = re.compile(r"image_(\d+)\.(jpe?g|png|bmp)", re.IGNORECASE)
_VIDEO = re.compile(r"person(\d{2})_.+")


class KTH(VideoDataset):
    """Windows of KTH videos that are folders of numbered frames, grey and resized.

    Persons 1 to 16 are for training, 17 to 25 are the test set; ``"validation"`` holds out whole persons of the first.
    A window is a run of frames without a gap in their numbers. Windows of an action follow one another, and overlap
    by all but three frames for jogging and running, whose runs are short; both are counted from the end of a video, as
    the published figures have it. Frames are read when they are asked for.

    Args:
        root: the folder of the six action folders.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        in_frames: frames that are given, 1 or more.
        out_frames: frames to predict, 1 or more.
        frame_size: side, or (height, width), in pixels.
        length: use this many windows, evenly spaced; ``None`` uses all.
        validation_fraction: of the 16 persons, held out for ``"validation"``: one at least, unless it is 0.

    Items:
        float32 ``[in_frames + out_frames, 1, H, W]`` in [0, 1].

    Raises:
        FileNotFoundError: a folder is missing; the message says which layout is expected and where it is published.
        ValueError: there is no window of that many frames, or a frame cannot be read (when it is asked for), or an
            argument is out of range.
        ImportError: imageio is not installed.
    """

    name = "kth"

    def __init__(
        self,
        root: PathLike,
        split: str = "train",
        in_frames: int = 10,
        out_frames: int = 20,
        frame_size: Size = 128,
        length: int | None = None,
        validation_fraction: float = 0.1,
    ) -> None:
        self.in_frames, self.out_frames = (
            check_count("in_frames", in_frames, 1),
            check_count("out_frames", out_frames, 1),
        )
        size = check_size(frame_size)
        assert size is not None
        self._size = size
        persons = _persons(check_split(split), check_fraction("validation_fraction", validation_fraction))
        _image_reader()
        folder = Path(root)
        found = [
            window
            for action, stride in STRIDES.items()
            for video in _videos(folder / action, persons)
            for window in _windows(video, self.frames, self.frames if stride is None else stride)
        ]
        if not found:
            raise ValueError(
                f"root: {folder} has no {self.frames} frames in a row of the persons {', '.join(map(str, persons))}; "
                f"expected {LAYOUT}"
            )
        self._windows = [found[window] for window in thin(len(found), length)]
        self.frame_shape = (1, *size)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Tensor:
        """Window ``index`` (negative counts from the end); IndexError outside the data set."""
        frames = [_read_frame(path) for path in self._windows[self._position(index)]]
        if len({frame.shape for frame in frames}) > 1:
            folder = self._windows[self._position(index)][0].parent
            raise ValueError(f"{folder}: got frames of several sizes, expected one size in a video")
        return resize(torch.stack(frames).unsqueeze(1) / 255, self._size, antialias=False)


def _persons(split: str, validation_fraction: float) -> tuple[int, ...]:
    if split == "test":
        return TEST_PERSONS
    held = held_out(len(TRAIN_PERSONS), validation_fraction, "persons", "validation")
    chosen = np.array(TRAIN_PERSONS)[held if split == "validation" else ~held]
    need_held_out(chosen, split, "validation_fraction")
    return tuple(chosen.tolist())


def _videos(folder: Path, persons: tuple[int, ...]) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"root: there is no folder {folder}; expected {LAYOUT}")
    matches = [(path, _VIDEO.fullmatch(path.name)) for path in sorted(folder.iterdir()) if path.is_dir()]
    return [path for path, match in matches if match and int(match[1]) in persons]


def _windows(video: Path, frames: int, stride: int) -> Iterator[list[Path]]:
    """Runs of ``frames`` frames, from the end of the video: the next run ends ``stride`` frames before this one."""
    numbered = sorted((int(match[1]), path) for path in video.iterdir() if (match := _FRAME.fullmatch(path.name)))
    end = len(numbered)
    while end >= frames:
        window = numbered[end - frames : end]
        whole = window[-1][0] - window[0][0] == frames - 1
        if whole:
            yield [path for _, path in window]
        end -= stride if whole else 1


def _read_frame(path: Path) -> Tensor:
    """float32 ``[H, W]``, 0 to 255: the first channel of a frame."""
    try:
        pixels = _image_reader().imread(path, plugin="pillow")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # Pillow raises SyntaxError for broken PNG files
        raise ValueError(
            f"{path} could not be read as an image: {error}; it may be cut short, fetch it again"
        ) from error
    return torch.from_numpy(np.array(pixels if pixels.ndim == 2 else pixels[..., 0], dtype=np.float32))


def _image_reader() -> Any:
    try:
        import imageio.v3
    except ImportError as error:
        raise ImportError(
            "Frames are read with the package imageio, which is not installed: type pip install 'stc-cuda[data]' or "
            "pip install imageio"
        ) from error
    return imageio.v3
