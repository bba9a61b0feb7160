"""What test_train_processes.py runs under torchrun: ``train_worker.py MODE FOLDER ARGUMENT...``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from stc_cuda import cli
from stc_cuda.models import SpikingPredictor
from stc_cuda.train import Trainer

RANK = int(os.environ.get("RANK", "0"))


def record_gradients(folder: Path) -> None:
    """Saves the gradients of the first step, before the optimiser has them."""
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        file = folder / f"gradients_{RANK}.pt"
        if not file.exists():
            torch.save([p.grad for group in self.param_groups for p in group["params"]], file)
        return original(self, *arguments, **options)

    torch.optim.AdamW.step = step  # type: ignore[method-assign]


def at_step(number: int, act: Any) -> None:
    """Calls ``act(trainer)`` at the start of a step, in the second process."""
    original = Trainer._step

    def step(self: Trainer, *arguments: Any) -> Any:
        if self.step == number and RANK == 1:
            act(self)
        return original(self, *arguments)

    Trainer._step = step  # type: ignore[method-assign]


def fully_sharded() -> None:
    """FSDP2 as docs/training.md has it: gradients equal those of one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    alone = SpikingPredictor(in_shape=(3, 1, 16, 16), out_frames=3, hidden=(16, 16), groups=2, kernel_size=3).double()
    model = SpikingPredictor(in_shape=(3, 1, 16, 16), out_frames=3, hidden=(16, 16), groups=2, kernel_size=3).double()
    model.load_state_dict(alone.state_dict())
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), reshard_after_forward=False)
    frames = torch.rand(4, 6, 1, 16, 16, dtype=torch.float64)
    share = frames[RANK :: dist.get_world_size()]
    nn.functional.mse_loss(model(share), share[:, 1:]).backward()
    nn.functional.mse_loss(alone(frames), frames[:, 1:]).backward()
    for (name, found), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
        if expected.grad is not None:
            error = (found.grad.full_tensor() - expected.grad).norm() / expected.grad.norm()  # type: ignore[union-attr]
            assert error < 1e-9, f"{name}: {error:.1e}"
    print("equal", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def run(mode: str, folder: Path, arguments: list[str]) -> None:
    if mode == "sharded":
        fully_sharded()
        return
    if mode == "gradients":
        record_gradients(folder)
    elif mode == "kill":
        at_step(7, lambda trainer: os.kill(os.getpid(), signal.SIGKILL))
    elif mode == "stop":
        at_step(2, lambda trainer: signal.raise_signal(signal.SIGTERM))
    elif mode == "poison":
        at_step(2, lambda trainer: trainer.model.get_parameter("cell_list.1.conv_x.0.weight").data.fill_(3e38))
    cli.run(arguments)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
