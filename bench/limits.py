"""The least that a pass has to move and to multiply, and what the machine can do of either."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from .cases import BACKWARD, DETACHED, FORWARD, ROLLOUT, TRAINING, Layer

NUMBER = 4  # bytes, float32


@dataclass(frozen=True)
class Work:
    """Of one call: bytes that any implementation reads or writes once, and multiply-adds of dense convolutions."""

    bytes: int
    macs: int

    @property
    def flop(self) -> int:
        return 2 * self.macs


def gate_macs(layer: Layer) -> int:
    """Multiply-adds of both gate convolutions, all samples and steps."""
    in_group = layer.channels // layer.groups
    return 2 * layer.neurons_and_steps * in_group * layer.kernel**2


def circuit_work(layer: Layer, what: str) -> Work:
    """What a pass of STC-LIF takes at least where backward computes the gates again instead of keeping them.

    Forward reads the current and writes the spikes; in training it also writes the membrane potential, which backward
    reads again with the current and the gradient of the spikes, to write that of the current. A carried state is read
    and written. The gates' weights are read once a pass, and their gradients written.

    Forward has the gate convolutions; backward has them again, their weight gradients, and, where the gradient passes
    the gates' spikes, the transposed convolutions.
    """
    sequence = NUMBER * layer.neurons_and_steps
    weights = 2 * NUMBER * layer.channels * (layer.channels // layer.groups) * layer.kernel**2
    state = 4 * sequence // layer.steps if layer.carried else 0
    once = gate_macs(layer)
    attached = not what.endswith(DETACHED)
    backward = Work(4 * sequence + 2 * weights, (3 if attached else 2) * once)
    forward = 2 * sequence + weights + state
    match what.removesuffix(DETACHED):
        case str(name) if name in (FORWARD, ROLLOUT):
            return Work(forward, once)
        case str(name) if name == BACKWARD:
            return backward
        case str(name) if name == TRAINING:
            return Work(forward + sequence + backward.bytes, once + backward.macs)
    raise ValueError(f"what: got {what!r}, expected a pass of bench/cases.py")


def neuron_work(layer: Layer, what: str) -> Work:
    """The same of an element-wise neuron, which convolves nothing: backward reads the potentials and the gradient of
    the spikes, and writes that of the current."""
    sequence = NUMBER * layer.neurons_and_steps
    return Work((2 if what == FORWARD else 6) * sequence, 0)


@dataclass(frozen=True)
class Ceilings:
    """Measured: bytes per second of a copy, read and written, and operations per second of a matrix product."""

    copy: float
    matmul: float
    matmul_dtype: str

    def seconds(self, work: Work) -> float:
        """The least time for this work."""
        return max(work.bytes / self.copy, work.flop / self.matmul)

    def limited_by(self, work: Work) -> str:
        return "memory" if work.bytes / self.copy >= work.flop / self.matmul else "arithmetic"

    def as_dict(self) -> dict[str, float | str]:
        return asdict(self)


def _fastest(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 2):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return min(seconds[2:])


def measure_ceilings(device: torch.device, rounds: int = 7) -> Ceilings:
    """A copy of more than the caches hold; a product in fp16 on a GPU, as its tensor cores do it, else in float32."""
    gpu = device.type == "cuda"
    size, dtype = (8192, torch.float16) if gpu else (1536, torch.float32)
    copy, matmul = _copy(device, rounds), _matmul(size, dtype, device, rounds)
    return Ceilings(copy, matmul, str(dtype).removeprefix("torch."))


def _copy(device: torch.device, rounds: int) -> float:
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2 * NUMBER * source.numel() / _fastest(lambda: target.copy_(source), device, rounds)


def _matmul(size: int, dtype: torch.dtype, device: torch.device, rounds: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _fastest(lambda: torch.mm(a, b, out=out), device, rounds)
