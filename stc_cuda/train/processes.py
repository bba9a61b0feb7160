"""One training process among several, as ``torchrun`` starts them; without it, the only one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .._build import build_info

T = TypeVar("T")


class DeviceError(ValueError):
    """A device that is not there or that the kernels were not built for."""


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: 0 to ``world_size - 1``; 0 writes files and prints.
        world_size: processes.
        device: where this one computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """The sum over processes of each value."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, thing: T) -> list[T]:
        """What each process has, in the order of their ranks, in every process."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] = [None] * self.world_size
        dist.all_gather_object(things, thing)
        return things

    def broadcast(self, thing: T) -> T:
        """What the first process has."""
        if self.world_size == 1:
            return thing
        things = [thing]
        dist.broadcast_object_list(things, device=self.device if self.device.type == "cuda" else None)
        return things[0]


def choose_device(name: str, local_rank: int = 0, on_this_machine: int = 1) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; ``"auto"`` is a GPU if the kernels were built for GPUs.

    Raises:
        DeviceError: there is no such device, or the build has no kernels for it, or fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and build_info()["cuda"] else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:INDEX") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise DeviceError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:INDEX")
    if not torch.cuda.is_available():
        raise DeviceError(f"device: got {name!r}, and torch sees no GPU (torch.cuda.is_available() is False)")
    if not build_info()["cuda"]:
        raise DeviceError(f"device: got {name!r}, and stc_cuda was built without kernels for it; see stc-cuda info")
    count = torch.cuda.device_count()
    if on_this_machine > count:
        raise DeviceError(
            f"torchrun started {on_this_machine} processes on this machine, which has {count} GPUs; "
            f"type torchrun --nproc_per_node={count}, or --device cpu"
        )
    index = local_rank if on_this_machine > 1 else (device.index or 0)
    if index >= count:
        raise DeviceError(f"device: got {name!r}, expected an index below {count}, the GPUs of this machine")
    return torch.device("cuda", index)


@contextmanager
def start(device: str = "auto") -> Iterator[Processes]:
    """Joins the processes that ``torchrun`` started (nccl on GPUs, gloo on CPUs), for as long as the block lasts.

    Raises:
        DeviceError: as :func:`choose_device`.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        chosen = choose_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield Processes(0, 1, chosen)
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size))))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", device_id=chosen)
    else:
        dist.init_process_group("gloo")
    try:
        yield Processes(rank, world_size, chosen)
    finally:
        dist.destroy_process_group()
