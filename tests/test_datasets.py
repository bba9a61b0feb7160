"""Data sets from files in the layouts that are published, whole and damaged, and from your own videos."""

from __future__ import annotations

import gzip
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from published_files import ACTIONS, idx_bytes, kth_video, moving_mnist, save_taxis, taxi_arrays, write_video
from torch import Tensor

from stc_cuda.data import (
    ArrayVideos,
    MovingMNIST,
    TaxiBJ,
    VideoDataset,
    VideoFolder,
    load_digits,
    load_mnist_images,
    open_dataset,
)

RNG = np.random.default_rng(0)


def everything(data: VideoDataset) -> Tensor:
    return torch.stack([data[index] for index in range(len(data))])


def check_interface(data: VideoDataset, name: str, frame_shape: tuple[int, int, int]) -> None:
    assert data.name == name
    assert data.frame_shape == frame_shape
    item = data[0]
    assert item.shape == (data.in_frames + data.out_frames, *frame_shape)
    assert item.dtype == torch.float32
    assert 0 <= item.min() <= item.max() <= 1
    assert torch.equal(data[-1], data[len(data) - 1])
    for index in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match=f"index: got {index}"):
            data[index]


# --- Moving MNIST ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    moving_mnist(tmp_path)
    return tmp_path


def test_moving_mnist_from_its_files(mnist_root: Path) -> None:
    parts = {}
    for split, length in (("train", 10_000), ("validation", 1_000)):
        data = open_dataset("moving_mnist", mnist_root, split, in_frames=3, out_frames=2)
        check_interface(data, "moving_mnist", (1, 64, 64))
        assert (len(data), data.in_frames, data.out_frames) == (length, 3, 2)
        assert isinstance(data, MovingMNIST)
        parts[split] = set(data.digit_images[:, 0, 0].tolist())
    assert (len(parts["train"]), len(parts["validation"])) == (36, 4)
    assert parts["train"] | parts["validation"] == set(range(101, 141))

    test = open_dataset("moving_mnist", mnist_root, "test", in_frames=4, out_frames=6)
    check_interface(test, "moving_mnist", (1, 64, 64))
    published = np.load(mnist_root / "moving_mnist" / "mnist_test_seq.npy")
    assert len(test) == 7
    for n in range(7):
        assert np.array_equal((test[n] * 255).round().numpy()[:, 0], published[:10, n])
    few = open_dataset("moving_mnist", mnist_root / "moving_mnist", "test", in_frames=4, out_frames=6, length=3)
    assert torch.equal(everything(few), everything(test)[[0, 2, 4]])


def test_training_sequences_change_with_seed_and_epoch_and_the_others_do_not() -> None:
    def sequences(split: str, seed: int, epoch: int) -> Tensor:
        data = open_dataset("digits", None, split, in_frames=2, out_frames=2, seed=seed, length=3)
        data.set_epoch(epoch)
        return everything(data)

    first = sequences("train", 0, 0)
    assert torch.equal(sequences("train", 0, 0), first)
    for other in (sequences("train", 1, 0), sequences("train", 0, 1), sequences("train", 1, 1)):
        assert all(not torch.equal(a, b) for a, b in zip(other, first, strict=True))
    for split in ("validation", "test"):
        assert torch.equal(sequences(split, 0, 0), sequences(split, 5, 3))


def test_digits_are_those_of_the_demo() -> None:
    test = open_dataset("digits", None, "test", in_frames=10, out_frames=10, length=4)
    check_interface(test, "digits", (1, 64, 64))
    assert torch.equal(everything(test), everything(MovingMNIST(4, 20, split="test", seed=0)))
    images = {
        split: {image.tobytes() for image in open_dataset("digits", None, split, **TEN).digit_images}  # type: ignore
        for split in ("train", "validation", "test")
    }
    assert [len(part) for part in images.values()] == [3600, 400, 1000]
    assert images["train"] | images["validation"] | images["test"] == {image.tobytes() for image in load_digits()}


TEN: dict[str, Any] = {"in_frames": 10, "out_frames": 10}


def test_idx_file_with_and_without_gzip(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    plain, packed = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-images-idx3-ubyte.gz"
    plain.write_bytes(idx_bytes(images))
    packed.write_bytes(gzip.compress(idx_bytes(images)))
    for path in (plain, str(packed)):
        assert np.array_equal(load_mnist_images(path), images)
    packed.unlink()
    assert isinstance(open_dataset("moving_mnist", tmp_path, "train", **TEN), MovingMNIST)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-10], "could not be read as a gzip file"),
        (lambda whole: b"not gzip", "could not be read as a gzip file"),
        (lambda whole: whole[:30] + bytes([whole[30] ^ 255]) + whole[31:], "could not be read as a gzip file"),
        (lambda whole: gzip.compress(b"short"), "holds 5 bytes"),
        (lambda whole: gzip.compress(gzip.decompress(whole)[:-1]), "holds 4703 pixels, expected 6 x 28 x 28 as its"),
        (lambda whole: gzip.compress(b"\0\0\x08\x01" + gzip.decompress(whole)[4:]), "starts with 0x00000801, expected"),
    ],
)
def test_damaged_idx_file(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    images = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    path.write_bytes(damage(gzip.compress(idx_bytes(images))))
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte.gz {message}"):
        load_mnist_images(path)


def test_moving_mnist_errors(mnist_root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty/train-images-idx3-ubyte; .*yann\.lecun\.com.*'digits' needs"):
        open_dataset("moving_mnist", empty, "train", **TEN)
    with pytest.raises(FileNotFoundError, match=r"mnist_test_seq\.npy; .*University of Toronto"):
        open_dataset("moving_mnist", empty, "test", **TEN)
    with pytest.raises(ValueError, match=r"got 10 \+ 11, expected at most the 20 frames of mnist_test_seq"):
        open_dataset("moving_mnist", mnist_root, "test", in_frames=10, out_frames=11)
    with pytest.raises(ValueError, match=r"frame_size: got \(32, 32\), expected None or \(64, 64\)"):
        open_dataset("moving_mnist", mnist_root, "test", **TEN, frame_size=32)
    with pytest.raises(ValueError, match=r"frame_size: got \(64, 96\), expected a square"):
        open_dataset("moving_mnist", mnist_root, "train", **TEN, frame_size=(64, 96))
    with pytest.raises(ValueError, match="validation_fraction: got 0, expected more than 0 for split='validation'"):
        open_dataset("moving_mnist", mnist_root, "validation", **TEN, validation_fraction=0)


# --- TaxiBJ ---------------------------------------------------------------------------------------------------------


FOUR: dict[str, Any] = {"in_frames": 4, "out_frames": 4}


def test_taxibj_from_its_file(tmp_path: Path) -> None:
    arrays = taxi_arrays()
    save_taxis(tmp_path, arrays)
    test = open_dataset("taxibj", tmp_path, "test", **FOUR)
    assert (len(test), test.frame_shape, test.name) == (4, (2, 6, 5), "taxibj")
    expected = (np.concatenate((arrays["X_test"], arrays["Y_test"]), axis=1) + 1) / 2
    np.testing.assert_array_equal(everything(test).numpy(), expected)
    assert everything(test).max() > 1  # the authors' scaling, not clipped

    train = open_dataset("taxibj", tmp_path / "taxibj", "train", **FOUR)
    check_interface(train, "taxibj", (2, 6, 5))
    validation = open_dataset("taxibj", tmp_path, "validation", **FOUR)
    half_hours = [set((everything(part) * 100).round().int().unique().tolist()) for part in (train, validation)]
    # 3 of 30 sequences are held out, and the 7 before them share frames with them.
    assert (len(train), len(validation)) == (20, 3)
    assert half_hours == [set(range(27)), set(range(27, 37))]
    assert len(open_dataset("taxibj", tmp_path, "train", **FOUR, validation_fraction=0)) == 30
    few = open_dataset("taxibj", tmp_path, "test", **FOUR, length=2)
    assert torch.equal(everything(few), everything(test)[[0, 2]])


def test_taxibj_reports_where_a_value_is_wrong(tmp_path: Path) -> None:
    for value, found in ((np.nan, "1 values that are NaN"), (np.inf, "1 values that are NaN"), (700.0, "values .*700")):
        arrays = taxi_arrays()
        arrays["Y_test"] = arrays["Y_test"].copy()
        arrays["Y_test"][2, 3, 1, 4, 4] = value
        path = save_taxis(tmp_path, arrays)
        with pytest.raises(ValueError, match=rf"dataset\.npz, Y_test, sample 2, frame 3: got {found}"):
            TaxiBJ(path, "test")
        TaxiBJ(path, "train")
    arrays = taxi_arrays()
    arrays["X_train"] = arrays["X_train"].copy()
    arrays["X_train"][28, 1] = np.nan
    path = save_taxis(tmp_path, arrays)
    with pytest.raises(ValueError, match="X_train, sample 28, frame 1: got 60 values"):
        TaxiBJ(path, "validation")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X_test": None}, ValueError, "has X_train, Y_train, Y_test and lacks X_test"),
        ({"X_test": np.zeros((4, 4, 2, 6))}, ValueError, r"X_test of .* has shape \[4, 4, 2, 6\]"),
        ({"X_test": np.zeros((0, 4, 2, 6, 5))}, ValueError, r"X_test of .* has shape \[0, "),
        ({"X_test": np.zeros((3, 4, 2, 6, 5))}, ValueError, r"have shapes \[3, 4, 2, 6, 5\] and \[4, 4,"),
        ({"X_test": np.zeros((4, 4, 2, 5, 5))}, ValueError, r"have shapes \[4, 4, 2, 5, 5\] and \[4, 4, 2, 6, 5\]"),
        ({"X_test": np.zeros((4, 5, 2, 6, 5))}, ValueError, "in_frames: got 4, expected 5, the frames in"),
        ({"Y_test": np.zeros((4, 2, 2, 6, 5))}, ValueError, "out_frames: got 4, expected 2, the frames in"),
        ({"X_test": np.zeros((4, 4, 2, 6, 5), np.uint8)}, TypeError, "X_test of .* is uint8"),
    ],
)
def test_taxibj_with_other_arrays(tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arrays = {name: array for name, array in {**taxi_arrays(), **change}.items() if array is not None}
    save_taxis(tmp_path, arrays)
    with pytest.raises(error, match=message):
        open_dataset("taxibj", tmp_path, "test", **FOUR)


def test_taxibj_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset\.npz; expected .*X_train.*published with OpenSTL"):
        open_dataset("taxibj", tmp_path, "test", **FOUR)
    path = save_taxis(tmp_path, taxi_arrays())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = archive.getinfo("X_test.npy").header_offset + 300
    for damaged in (whole[: len(whole) // 2], b"", b"text", whole[:inside] + b"????" + whole[inside + 4 :]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"dataset\.npz could not be read as an archive of floating X_train"):
            TaxiBJ(path, "test")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="it is a single array"):
        TaxiBJ(path, "test")
    save_taxis(tmp_path, taxi_arrays(train=8))
    with pytest.raises(ValueError, match=r"validation_fraction: got 0.1, which leaves none of the 8 sequences"):
        TaxiBJ(path, "train")


# --- KTH ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kth_root(tmp_path: Path) -> Path:
    for action in ACTIONS:
        (tmp_path / "kth" / action).mkdir(parents=True)
    kth_video(tmp_path, "boxing", 3, range(1, 48))
    kth_video(tmp_path, "jogging", 3, [*range(1, 15), *range(20, 31)])
    kth_video(tmp_path, "running", 16, range(101, 112))
    kth_video(tmp_path, "walking", 17, range(1, 11))
    kth_video(tmp_path, "walking", 25, range(31, 40))  # a frame short
    return tmp_path


def first_numbers(data: VideoDataset) -> list[int]:
    sequences = (everything(data) * 255).round().int()
    numbers = sequences[:, :, 0, 0, 0]
    assert torch.equal(sequences, numbers[:, :, None, None, None].expand_as(sequences))
    assert (numbers.diff(dim=1) == 1).all()
    return numbers[:, 0].tolist()


def test_kth_windows_and_persons(kth_root: Path) -> None:
    options: dict[str, Any] = {"in_frames": 4, "out_frames": 6}
    train = open_dataset("kth", kth_root, "train", **options, frame_size=8)
    check_interface(train, "kth", (1, 8, 8))
    # From the end: boxing without overlap, jogging every third frame and not across the gap in the numbers.
    assert first_numbers(train) == [38, 28, 18, 8, 21, 5, 2]
    assert first_numbers(open_dataset("kth", kth_root, "validation", **options, frame_size=8)) == [102]
    assert first_numbers(open_dataset("kth", kth_root / "kth", "test", **options, frame_size=(8, 10))) == [1]
    everyone = open_dataset("kth", kth_root, "train", **options, validation_fraction=0)
    assert everyone.frame_shape == (1, 128, 128)
    assert len(everyone) == 8
    few = open_dataset("kth", kth_root, "train", **options, frame_size=8, length=3)
    assert first_numbers(few) == [38, 18, 21]


def test_kth_frames_are_resized_as_opencv_does(kth_root: Path) -> None:
    folder = kth_root / "kth" / "walking" / "person20_walking_d1_uncomp"
    folder.mkdir()
    pixels = RNG.integers(0, 256, (12, 16), dtype=np.uint8)
    for number in (1, 2):
        imageio.imwrite(folder / f"image_{number:04d}.png", pixels)
    (folder / "notes.txt").write_text("no frame")
    # After the five windows of person 17.
    data = open_dataset("kth", kth_root, "test", in_frames=1, out_frames=1, frame_size=(9, 10))
    # Pixel (i, j) of the small frame lies at ((i + 1/2) 12/9 - 1/2, (j + 1/2) 16/10 - 1/2) of the large one.
    rows, columns = (np.arange(9) + 0.5) * 12 / 9 - 0.5, (np.arange(10) + 0.5) * 16 / 10 - 0.5
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None], (columns - left)[None]
    corner = pixels.astype(float)[np.ix_(top, left)] * (1 - down) * (1 - right)
    corner += pixels[np.ix_(top + 1, left)] * down * (1 - right) + pixels[np.ix_(top, left + 1)] * (1 - down) * right
    corner += pixels[np.ix_(top + 1, left + 1)] * down * right
    np.testing.assert_allclose(data[5][0, 0].numpy(), corner / 255, atol=1e-6)


def test_kth_errors(kth_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"in_frames": 4, "out_frames": 6}
    with pytest.raises(FileNotFoundError, match=r"no folder .*boxing; expected .*image_NNNN.jpg.*csc\.kth\.se"):
        open_dataset("kth", tmp_path / "kth" / "running", "train", **options)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        open_dataset("kth", tmp_path / "nowhere", "train", **options)
    with pytest.raises(ValueError, match=r"has no 60 frames in a row of the persons 1, 2, .*, 15; expected"):
        open_dataset("kth", kth_root, "train", in_frames=30, out_frames=30)
    broken = kth_root / "kth" / "walking" / "person17_walking_d1_uncomp" / "image_0004.png"
    whole = broken.read_bytes()
    data = open_dataset("kth", kth_root, "test", **options)
    for damaged in (b"", whole[:30], whole[: len(whole) // 2], b"no picture"):
        broken.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"image_0004\.png could not be read as an image"):
            data[0]
    imageio.imwrite(broken, np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match="person17_walking_d1_uncomp: got frames of several sizes"):
        data[0]
    monkeypatch.setitem(sys.modules, "imageio.v3", None)
    with pytest.raises(ImportError, match=r"pip install 'stc-cuda\[data\]'"):
        open_dataset("kth", kth_root, "test", **options)


# --- arrays ---------------------------------------------------------------------------------------------------------


def numbered(videos: int, frames: int, first: int = 0) -> np.ndarray:
    """uint8 videos of 2 x 3 x 4 whose pixels are 10 times the video plus the frame."""
    numbers = (first + np.arange(videos))[:, None] * 10 + np.arange(frames)
    return np.broadcast_to(numbers[:, :, None, None, None], (videos, frames, 2, 3, 4)).astype(np.uint8)


def starts(data: VideoDataset) -> list[int]:
    return (everything(data)[:, 0, 0, 0, 0] * 255).round().int().tolist()


FOUR_OF_ONE: dict[str, Any] = {"in_frames": 1, "out_frames": 3}


def test_one_array_file_is_split_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", numbered(20, 9))
    root = tmp_path / "own.npy"
    train = open_dataset("array", root, "train", **FOUR_OF_ONE)
    check_interface(train, "array", (2, 3, 4))
    # Two windows fit into nine frames.
    assert starts(train) == [10 * video + start for video in range(17) for start in (0, 4)]
    assert starts(open_dataset("array", root, "validation", **FOUR_OF_ONE)) == [170, 174]
    assert starts(open_dataset("array", root, "test", **FOUR_OF_ONE)) == [180, 184, 190, 194]
    options = {"validation_fraction": 0.5, "test_fraction": 0, "stride": 5, "length": 4}
    assert starts(open_dataset("array", root, "train", **FOUR_OF_ONE, **options)) == [0, 25, 50, 75]
    assert len(pickle.dumps(train)) < 5_000  # the file's name, not its content
    assert torch.equal(everything(pickle.loads(pickle.dumps(train))), everything(train))


def test_array_files_in_a_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", numbered(10, 4))
    np.save(tmp_path / "test.npy", numbered(2, 4, first=20))
    assert starts(open_dataset("array", tmp_path, "train", **FOUR_OF_ONE)) == list(range(0, 90, 10))
    assert starts(open_dataset("array", tmp_path, "validation", **FOUR_OF_ONE)) == [90]
    assert starts(open_dataset("array", tmp_path, "test", **FOUR_OF_ONE)) == [200, 210]
    np.save(tmp_path / "validation.npy", numbered(2, 4, first=12))
    assert starts(open_dataset("array", tmp_path, "train", **FOUR_OF_ONE)) == list(range(0, 100, 10))
    assert starts(open_dataset("array", tmp_path, "validation", **FOUR_OF_ONE)) == [120, 130]
    (tmp_path / "test.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.npy is not a file; expected train\.npy, test\.npy"):
        open_dataset("array", tmp_path, "test", **FOUR_OF_ONE)


def test_arrays_in_memory_and_resized() -> None:
    frames = RNG.random((4, 5, 1, 8, 8))
    for given in (frames, torch.from_numpy(frames), frames.astype(np.float32), frames.astype(">f4")):
        data = ArrayVideos(given, "train", 2, 3, test_fraction=0, validation_fraction=0)
        np.testing.assert_allclose(everything(data).numpy(), frames, rtol=1e-6)
        data[0].zero_()  # a copy
        np.testing.assert_allclose(everything(data).numpy(), frames, rtol=1e-6)
    half = ArrayVideos(np.full((4, 5, 3, 8, 8), 51, np.uint8), "train", 2, 3, frame_size=(4, 6))
    check_interface(half, "array", (3, 4, 6))
    torch.testing.assert_close(half[0], torch.full((5, 3, 4, 6), 0.2))


def with_value(value: float, video: int = 1, frame: int = 2) -> np.ndarray:
    array = np.zeros((6, 4, 1, 3, 3), np.float32)
    array[video, frame, 0, 1, 1] = value
    return array


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (with_value(np.nan), ValueError, r"own\.npy, sample 1, frame 2: got 1 values that are NaN or infinite"),
        (with_value(-np.inf), ValueError, r"sample 1, frame 2: got 1 values that are NaN or infinite"),
        (with_value(255.0), ValueError, r"sample 1, frame 2: got values 0.0 to 255.0, expected finite .* in \[0, 1\]"),
        (np.zeros((6, 4, 3, 3), np.uint8), ValueError, r"own\.npy: got shape \[6, 4, 3, 3\], expected an array \[N"),
        (np.zeros((6, 4, 0, 3, 3), np.uint8), ValueError, r"got shape \[6, 4, 0, 3, 3\]"),
        (np.zeros((6, 3, 1, 3, 3), np.uint8), ValueError, r"in_frames \+ out_frames: got 1 \+ 3, expected at most 3"),
        (np.zeros((6, 4, 1, 3, 3), np.int64), TypeError, "got dtype int64, expected an array"),
        (np.zeros((1, 4, 1, 3, 3), np.uint8), ValueError, r"videos of .*: got 1, expected at least 2 to hold one out"),
    ],
)
def test_bad_arrays(tmp_path: Path, array: np.ndarray, error: type[Exception], message: str) -> None:
    np.save(tmp_path / "own.npy", array)
    with pytest.raises(error, match=message):
        open_dataset("array", tmp_path / "own.npy", "train", **FOUR_OF_ONE)


def test_bad_array_files(tmp_path: Path) -> None:
    path = tmp_path / "own.npy"
    with pytest.raises(FileNotFoundError, match=r"own\.npy is not a file; expected an array \[N videos"):
        open_dataset("array", path, "train", **FOUR_OF_ONE)
    np.save(path, numbered(6, 4))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"own\.npy could not be read as a \.npy file"):
        open_dataset("array", path, "train", **FOUR_OF_ONE)
    with pytest.raises(TypeError, match=r"data: got dtype torch\.bfloat16, expected an array"):
        ArrayVideos(torch.zeros(6, 4, 1, 3, 3, dtype=torch.bfloat16), "train", 1, 3)
    with pytest.raises(TypeError, match="data: got list, expected an array"):
        ArrayVideos([[0]], "train", 1, 3)  # type: ignore[arg-type]


# --- videos ---------------------------------------------------------------------------------------------------------


def test_videos_of_a_folder(tmp_path: Path) -> None:
    for video in range(10):
        write_video(tmp_path / "clips" / f"v{video}.mkv", range(20 * video, 20 * video + 9))
    (tmp_path / "clips" / "readme.txt").write_text("no video")
    options: dict[str, Any] = {**FOUR_OF_ONE, "grayscale": True, "cache": tmp_path / "cache"}
    parts = {split: open_dataset("videos", tmp_path, split, **options) for split in ("train", "validation", "test")}
    check_interface(parts["train"], "videos", (1, 16, 24))
    shown = {split: starts(data) for split, data in parts.items()}
    assert shown["test"] == [180, 184]
    assert shown["validation"] == [160, 164]
    assert shown["train"] == [20 * video + start for video in range(8) for start in (0, 4)]

    assert len(list((tmp_path / "cache").iterdir())) == 10
    data = open_dataset("videos", tmp_path, "train", **{**options, "cache": None})
    assert torch.equal(everything(data), everything(parts["train"]))
    assert len(pickle.dumps(parts["train"])) < 10_000
    # Decoded once: the cached frames are taken, until the video is another.
    cached = next((tmp_path / "cache").glob("v9-*.npy"))
    np.save(cached, np.load(cached) + 1)
    assert starts(open_dataset("videos", tmp_path, "test", **options)) == [181, 185]
    write_video(tmp_path / "clips" / "v9.mkv", range(60, 65))
    assert starts(open_dataset("videos", tmp_path, "test", **options)) == [60]


def test_colour_step_stride_and_size_of_videos(tmp_path: Path) -> None:
    for video in range(2):
        write_video(tmp_path / "train" / f"{video}.mkv", range(100 * video, 100 * video + 12))
    write_video(tmp_path / "test" / "0.mkv", range(200, 212))
    data = open_dataset(
        "videos", tmp_path, "train", in_frames=1, out_frames=1, frame_step=2, stride=3, frame_size=(8, 10),
        validation_fraction=0,
    )  # fmt: skip
    check_interface(data, "videos", (3, 8, 10))
    assert starts(data) == [0, 6, 100, 106]
    second = (everything(data)[:, 1] * 255).round()
    assert torch.equal(second, torch.tensor([2.0, 8, 102, 108])[:, None, None, None].expand(-1, 3, 8, 10))
    assert starts(open_dataset("videos", tmp_path, "validation", in_frames=1, out_frames=11)) == [100]
    assert starts(open_dataset("videos", tmp_path, "test", in_frames=1, out_frames=11)) == [200]
    write_video(tmp_path / "validation" / "0.mkv", range(50, 62))
    assert starts(open_dataset("videos", tmp_path, "validation", in_frames=1, out_frames=11)) == [50]
    assert starts(open_dataset("videos", tmp_path, "train", in_frames=1, out_frames=11)) == [0, 100]


def test_video_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = tmp_path / "clips"
    with pytest.raises(FileNotFoundError, match=r"clips is not a folder; expected video files \(\.avi"):
        VideoFolder(clips)
    clips.mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no video in .*clips"):
        VideoFolder(clips)
    write_video(clips / "a.mkv", range(5))
    write_video(clips / "b.mkv", range(3))
    whole: dict[str, Any] = {"in_frames": 2, "out_frames": 3, "validation_fraction": 0, "test_fraction": 0}
    with pytest.warns(UserWarning, match=r"1 of 2 videos have fewer than 5 frames and are left out: .*b\.mkv \(3\)"):
        assert len(VideoFolder(clips, **whole)) == 1
    with pytest.raises(ValueError, match=r"root: no video has the 6 frames .*a\.mkv \(5\)"):
        VideoFolder(clips, **{**whole, "in_frames": 3})
    write_video(clips / "b.mkv", range(5), size=(16, 16))
    with pytest.raises(ValueError, match=r"b\.mkv: got frames of 16 x 16 pixels, expected 16 x 24 as in .*a\.mkv"):
        VideoFolder(clips, **whole)
    write_video(clips / "b.mkv", range(40))
    (clips / "b.mkv").write_bytes((clips / "b.mkv").read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"b\.mkv ends after \d+ frames, \d\.\d of 4.0 s: it may be cut short"):
        VideoFolder(clips, **whole)
    (clips / "b.mkv").write_bytes(b"no video at all")
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"b\.mkv could not be decoded after 0 frames"):
        VideoFolder(clips, **whole, cache=cache)
    assert [path.name[:2] for path in cache.iterdir()] == ["a-"]
    (clips / "train").mkdir()
    write_video(clips / "train" / "a.mkv", range(5))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*test"):
        VideoFolder(clips, "test", **whole)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'stc-cuda\[video\]'"):
        VideoFolder(clips, **whole)


# --- the catalogue --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "cifar"}, ValueError, "name: got 'cifar', expected one of 'moving_mnist', 'digits', 'taxibj'"),
        ({"split": "valid"}, ValueError, "split: got 'valid', expected one of 'train', 'validation', 'test'"),
        ({"in_frames": 0}, ValueError, "in_frames: got 0, expected at least 1"),
        ({"out_frames": 1.5}, TypeError, "out_frames: got 1.5"),
        ({"frame_size": 0}, ValueError, "frame_size: got 0"),
        ({"frame_size": (1, 2, 3)}, ValueError, "frame_size: got .* expected an int or"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"length": 0}, ValueError, "length: got 0"),
        ({"validation_fraction": 1.5}, ValueError, "validation_fraction: got 1.5, expected at least 0 and less than 1"),
        ({"validation_fraction": "x"}, TypeError, "validation_fraction: got 'x'"),
        ({"stride": 2}, TypeError, "stride: is no option of data set 'digits', which has none of its own"),
        ({"name": "array", "cache": "x"}, TypeError, "cache: is no option .* which has stride, test_fraction of its"),
        ({"name": "kth"}, ValueError, "root: got None, expected the path of the files of data set 'kth'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"name": "digits", "root": None, "split": "train", "in_frames": 1, "out_frames": 1}
    with pytest.raises(error, match=message):
        open_dataset(**{**good, **arguments})


def test_more_sequences_than_there_are(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", numbered(20, 4))
    with pytest.raises(ValueError, match="length: got 18, expected at most 17, the sequences of this split"):
        open_dataset("array", tmp_path / "own.npy", "train", **FOUR_OF_ONE, length=18)
