"""Batches that can be made again: the same for the same seed and epoch, however many workers read them."""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ._base import VideoDataset, check_count

Data = TypeVar("Data", bound=Dataset[Tensor])


def make_loader(
    dataset: Dataset[Tensor],
    batch_size: int,
    *,
    seed: int,
    epoch: int = 0,
    workers: int = 0,
    shuffle: bool,
    rank: int = 0,
    world_size: int = 1,
    skip_batches: int = 0,
    drop_last: bool | None = None,
    pin_memory: bool = False,
) -> DataLoader[Tensor]:
    """The batches of one epoch.

    They depend on the data set, ``batch_size``, ``seed``, ``epoch``, ``rank`` and ``world_size``, not on the number of
    workers nor on the global random numbers, which stay as they are. The ranks together take ``batch_size *
    world_size`` samples at a time, so that four times the ranks with a quarter of the batch see the same samples at a
    step. No sample is seen twice in an epoch.

    Args:
        dataset: to read. Its epoch is not changed: the loader has a copy that is set to ``epoch``, see
            :meth:`VideoDataset.set_epoch`.
        batch_size: samples in a batch of a rank, 1 or more.
        seed: of the order, 0 or more.
        epoch: 0 or more; each has an order of its own.
        workers: processes that read ahead; 0 reads in this process.
        shuffle: a random order, or that of the data set.
        rank: of this process, less than ``world_size``.
        world_size: processes that share an epoch.
        skip_batches: leave out so many batches of this rank at the start, to go on in the middle of an epoch.
        drop_last: leave out the samples that do not fill a batch of all ranks; ``None`` is the value of ``shuffle``.
            All ranks have the same number of batches then. Otherwise the rest is shared out, and ranks differ by one
            sample, or by one batch: enough for evaluation, but training in step needs equal numbers.
        pin_memory: batches in page-locked memory, for copies to a GPU that need not be waited for.

    Returns:
        A loader of float32 ``[batch_size, T, C, H, W]``; ``len`` gives the batches left after ``skip_batches``.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is out of range, or the data set is too small for a single batch.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("epoch", epoch, 0),
        ("workers", workers, 0),
        ("world_size", world_size, 1),
        ("rank", rank, 0),
        ("skip_batches", skip_batches, 0),
    ):
        check_count(name, value, least)
    if rank >= world_size:
        raise ValueError(f"rank: got {rank}, expected less than world_size = {world_size}")
    samples = len(dataset)  # type: ignore[arg-type]
    order = np.random.default_rng((seed, epoch)).permutation(samples) if shuffle else np.arange(samples)
    together = batch_size * world_size
    if shuffle if drop_last is None else drop_last:
        if samples < together:
            raise ValueError(
                f"dataset: got {samples} samples, expected at least batch_size * world_size = {batch_size} * "
                f"{world_size} for one batch; make batches smaller or pass drop_last=False"
            )
        order = order[: samples // together * together]
    elif not samples:
        raise ValueError("dataset: got no samples, expected at least 1")
    shares = [order[start : start + together][rank::world_size].tolist() for start in range(0, len(order), together)]
    batches = [share for share in shares if share]
    if skip_batches > len(batches):
        raise ValueError(f"skip_batches: got {skip_batches}, expected at most {len(batches)}, the batches of an epoch")
    return DataLoader(
        _at_epoch(dataset, epoch),
        batch_sampler=batches[skip_batches:],
        num_workers=workers,
        pin_memory=pin_memory,
        # Of its own: a loader draws a number when its batches are asked for, even if nobody uses it.
        generator=Generator().manual_seed(seed),
    )


def _at_epoch(dataset: Data, epoch: int) -> Data:
    if not isinstance(dataset, VideoDataset):
        return dataset
    view = copy.copy(dataset)
    view.set_epoch(epoch)
    return view
