"""TaxiBJ: taxis that enter and leave the cells of a grid over Beijing, every half hour.

Source: Zhang, Zheng and Qi, "Deep Spatio-Temporal Residual Networks for Citywide Crowd Flows Prediction", AAAI 2017, in
the sequences that OpenSTL publishes.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ._base import (
    UNREADABLE,
    Array,
    PathLike,
    VideoDataset,
    check_count,
    check_fraction,
    check_split,
    check_values,
    held_out_count,
    need_held_out,
    thin,
)

FILE = "dataset.npz"
LAYOUT = (
    "an archive of floating X_train, Y_train, X_test, Y_test [n, 4, 2, 32, 32] in [-1, 1], published with OpenSTL "
    "(github.com/chengtan9907/OpenSTL, taxibj_dataset.zip among its releases)"
)
# The bounds of the scaling are those of the training data: test data leave [-1, 1] a little, counts of taxis by far.
_BOUND = 1.5


class TaxiBJ(VideoDataset):
    """Flows of taxis as OpenSTL's sequences: four frames given, four to predict, channels (in, out).

    Values are scaled to ``(x + 1) / 2`` as OpenSTL does: nearly all lie in [0, 1].

    Neighbouring training sequences share frames. ``"validation"`` is therefore the end of the training sequences in
    time, and ``"train"`` ends so much earlier that no frame is in both.

    Args:
        path: of ``dataset.npz``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        in_frames: frames that are given; those of the file's ``X``.
        out_frames: frames to predict; those of the file's ``Y``.
        length: use this many sequences, evenly spaced; ``None`` uses all.
        validation_fraction: of the training sequences, held out for ``"validation"``.

    Items:
        float32 ``[in_frames + out_frames, 2, 32, 32]`` (channels and size are the file's).

    Raises:
        FileNotFoundError: there is no such file; the message says where it is published.
        ValueError: the file is damaged, has other arrays or shapes, or holds NaN; or an argument is out of range.
        TypeError: an argument or an array of the file has the wrong type.
    """

    name = "taxibj"

    def __init__(
        self,
        path: PathLike,
        split: str = "train",
        in_frames: int = 4,
        out_frames: int = 4,
        length: int | None = None,
        validation_fraction: float = 0.1,
    ) -> None:
        self.in_frames, self.out_frames = (
            check_count("in_frames", in_frames, 1),
            check_count("out_frames", out_frames, 1),
        )
        part = "test" if check_split(split) == "test" else "train"
        fraction = check_fraction("validation_fraction", validation_fraction)
        file = Path(path)
        given, ahead = _read(file, (f"X_{part}", f"Y_{part}"))
        for name, frames, array in (("in_frames", in_frames, given), ("out_frames", out_frames, ahead)):
            if frames != array.shape[1]:
                raise ValueError(f"{name}: got {frames}, expected {array.shape[1]}, the frames in {file}")
        chosen = np.arange(len(given))
        if split != "test":
            held = held_out_count(len(chosen), fraction, f"sequences of {file}", "validation")
            overlap = self.frames - 1 if held else 0
            chosen = (
                chosen[len(chosen) - held :]
                if split == "validation"
                else chosen[: max(0, len(chosen) - held - overlap)]
            )
            if split == "validation":
                need_held_out(chosen, split, "validation_fraction")
            elif not len(chosen):
                raise ValueError(
                    f"validation_fraction: got {fraction}, which leaves none of the {len(given)} sequences of {file} "
                    f"for training after {held} for validation and {overlap} that overlap them"
                )
        chosen = chosen[thin(len(chosen), length)]
        self._given, self._ahead = given[chosen], ahead[chosen]
        for sequence, number in enumerate(chosen):
            check_values(self._given[sequence], f"{file}, X_{part}, sample {number}", -_BOUND, _BOUND)
            check_values(self._ahead[sequence], f"{file}, Y_{part}, sample {number}", -_BOUND, _BOUND)
        self.frame_shape = (given.shape[2], given.shape[3], given.shape[4])

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, index: int) -> Tensor:
        """Sequence ``index`` (negative counts from the end); IndexError outside the data set."""
        place = self._position(index)
        sequence = np.concatenate((self._given[place], self._ahead[place]))
        return torch.from_numpy((sequence + 1) / 2).to(torch.float32)


def _read(file: Path, names: tuple[str, str]) -> list[Array]:
    if not file.is_file():
        raise FileNotFoundError(f"path: {file} is not a file; expected {FILE}, {LAYOUT}")
    try:
        opened = np.load(file, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise ValueError("it is a single array")
        with opened as archive:
            missing = sorted(set(names) - set(archive.files))
            if missing:
                raise ValueError(f"it has {', '.join(archive.files) or 'no arrays'} and lacks {', '.join(missing)}")
            arrays = [archive[name] for name in names]
    except (*UNREADABLE, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"path: {file} could not be read as {LAYOUT}: {error}") from error
    for name, array in zip(names, arrays, strict=True):
        if not np.issubdtype(array.dtype, np.floating):
            raise TypeError(f"path: {name} of {file} is {array.dtype}, expected {LAYOUT}")
        if array.ndim != 5 or 0 in array.shape:
            raise ValueError(f"path: {name} of {file} has shape {list(array.shape)}, expected {LAYOUT}")
    given, ahead = arrays
    if (len(given), *given.shape[2:]) != (len(ahead), *ahead.shape[2:]):
        shapes = f"{list(given.shape)} and {list(ahead.shape)}"
        raise ValueError(f"path: {' and '.join(names)} of {file} have shapes {shapes}, expected {LAYOUT}")
    return arrays
