"""Batches are the same whoever reads them, and can be gone on with."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stc_cuda.data import ArrayVideos, MovingMNIST, make_loader

COUNT = 23


@pytest.fixture(scope="module")
def numbered() -> ArrayVideos:
    """Sequence n is full of n."""
    videos = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None, None, None], (COUNT, 2, 1, 2, 2))
    return ArrayVideos(videos, "train", 1, 1, validation_fraction=0, test_fraction=0)


def numbers(data: ArrayVideos, **options: Any) -> list[list[int]]:
    loader = make_loader(data, **{"batch_size": 3, "seed": 1, "shuffle": True, **options})
    batches = [(batch[:, 0, 0, 0, 0] * 255).round().int().tolist() for batch in loader]
    assert len(loader) == len(batches)
    return batches


def test_order_depends_on_seed_and_epoch(numbered: ArrayVideos) -> None:
    first = numbers(numbered)
    assert [len(batch) for batch in first] == [3] * 7
    assert len({n for batch in first for n in batch}) == 21
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    assert numbers(numbered) == first
    others = [numbers(numbered, **change) for change in ({"seed": 2}, {"epoch": 1}, {"seed": 2, "epoch": 1})]
    assert all(others[i] != others[j] for i in range(3) for j in range(i))
    assert first not in others
    assert numbers(numbered, shuffle=False) == [list(range(n, min(n + 3, COUNT))) for n in range(0, COUNT, 3)]


def test_global_random_numbers_stay(numbered: ArrayVideos) -> None:
    before = torch.get_rng_state()
    numbers(numbered)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [True, False])
def test_goes_on_in_the_middle(numbered: ArrayVideos, shuffle: bool) -> None:
    whole = numbers(numbered, epoch=4, shuffle=shuffle)
    for done in range(len(whole) + 1):
        assert numbers(numbered, epoch=4, shuffle=shuffle, skip_batches=done) == whole[done:]
    assert numbers(numbered, epoch=4, shuffle=shuffle, skip_batches=2, workers=2) == whole[2:]


@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_share_an_epoch(numbered: ArrayVideos, drop_last: bool) -> None:
    alone = numbers(numbered, batch_size=6, drop_last=drop_last)
    for world in (2, 3, 6):
        options = {"batch_size": 6 // world, "world_size": world, "drop_last": drop_last}
        ranks = [numbers(numbered, rank=rank, **options) for rank in range(world)]
        for step, together in enumerate(alone):
            shares = [rank[step] for rank in ranks if step < len(rank)]
            assert sorted(n for share in shares for n in share) == sorted(together)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert sum(len(batch) for rank in ranks for batch in rank) == (18 if drop_last else COUNT)
        if drop_last:
            assert {len(rank) for rank in ranks} == {3}


def test_more_ranks_than_samples(numbered: ArrayVideos) -> None:
    ranks = [numbers(numbered, rank=rank, world_size=30, drop_last=False) for rank in range(30)]
    assert sorted(n for rank in ranks for batch in rank for n in batch) == list(range(COUNT))


def generated(loader: Any) -> Tensor:
    return torch.stack(list(loader))


def test_generated_sequences_follow_the_epoch_whatever_the_workers() -> None:
    images = np.arange(1, 11, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    data = MovingMNIST(8, 3, split="all", image_size=12, images=images)
    options: dict[str, Any] = {"batch_size": 2, "seed": 3, "shuffle": True}
    loaders = [make_loader(data, **options, epoch=epoch, workers=workers) for epoch in (0, 1) for workers in (0, 1, 2)]
    # All made before any is read: a loader keeps its epoch.
    batches = [generated(loader) for loader in loaders]
    for same in (batches[:3], batches[3:]):
        assert torch.equal(same[0], same[1])
        assert torch.equal(same[0], same[2])
    assert not torch.equal(batches[0], batches[3])
    assert data.epoch == 0
    data.set_epoch(1)
    in_order = generated(make_loader(data, **{**options, "shuffle": False}, epoch=1)).flatten(0, 1)
    assert torch.equal(in_order, torch.stack([data[i] for i in range(8)]))
    with pytest.raises(ValueError, match="epoch: got -1"):
        data.set_epoch(-1)


def test_any_dataset_can_be_read() -> None:
    plain = torch.utils.data.TensorDataset(torch.arange(4.0))
    assert len(make_loader(plain, 2, seed=0, shuffle=True)) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: got 0, expected at least 1"),
        ({"batch_size": 2.0}, TypeError, "batch_size: got 2.0"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"epoch": -1}, ValueError, "epoch: got -1"),
        ({"workers": -1}, ValueError, "workers: got -1"),
        ({"world_size": 0}, ValueError, "world_size: got 0"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank: got 2, expected less than world_size = 2"),
        ({"skip_batches": 8}, ValueError, "skip_batches: got 8, expected at most 7"),
        ({"batch_size": 24}, ValueError, r"dataset: got 23 samples, .* = 24 \* 1 .* drop_last=False"),
    ],
)
def test_bad_arguments(numbered: ArrayVideos, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_loader(numbered, **{"batch_size": 3, "seed": 0, "shuffle": True, **arguments})


def test_no_samples() -> None:
    nothing = MovingMNIST(0, images=np.zeros((5, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="dataset: got no samples"):
        make_loader(nothing, 1, seed=0, shuffle=False)
