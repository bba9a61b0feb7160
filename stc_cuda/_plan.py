"""Which kernel runs a call, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ._checks import DTYPES
from ._extension import extension

# Shared memory that a block may have, in KiB, by compute capability: CUDA C++ Programming Guide, table "Technical
# Specifications per Compute Capability".
_SHARED_KIB = {
    (7, 5): 64,
    (8, 0): 163,
    (8, 6): 99,
    (8, 7): 163,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (10, 3): 227,
    (11, 0): 227,
    (12, 0): 99,
    (12, 1): 99,
}


@dataclass(frozen=True)
class KernelPlan:
    """The kernel of a call and how its work is cut.

    Attributes:
        kernel: ``"event"`` or ``"dense"`` on the CPU, ``"persistent"`` or ``"general"`` on a GPU.
        reason: why this one.
        units: sets of channels of one sample that never exchange a number: ``gcd(groups, norm_groups)``.
        unit_channels: channels of a unit.
        tasks: samples x units, which run side by side.
        warps: of a thread block (persistent kernels; else 0).
        shared_memory: dynamic shared memory of a thread block in bytes (persistent kernels; else 0).
        runs_per_warp: sixteen pixels each, of all channels of the unit (persistent kernels; else 0).
        resident_weights: whether the weights of the gates stay in shared memory, beside spikes as fp16 numbers instead
            of bits (persistent forward).
        cached_current: whether the current is fetched into shared memory (persistent kernels).
        cached_u: whether u of the step before stays in shared memory (persistent backward).
        near_second: whether the second state of a neuron that has one, or its gradient, stays in shared memory
            (persistent kernels).
    """

    kernel: str
    reason: str
    units: int
    unit_channels: int
    tasks: int
    warps: int
    shared_memory: int
    runs_per_warp: int
    resident_weights: bool
    cached_current: bool
    cached_u: bool
    near_second: bool


def kernel_plan(
    current_shape: Sequence[int],
    kernel_size: int,
    groups: int,
    *,
    neuron: str = "stclif",
    norm_groups: int | None = None,
    dtype: torch.dtype = torch.float32,
    spiking: bool = True,
    backward: bool = False,
    gradient_detach: bool = False,
    device: str = "cpu",
    capability: tuple[int, int] = (9, 0),
    shared_memory: int | None = None,
) -> KernelPlan:
    """Tells which kernel runs a circuit neuron for a shape; needs no GPU.

    Args:
        current_shape: ``[T, N, C, H, W]``.
        kernel_size: of both gate convolutions, odd.
        groups: of the gate convolutions.
        neuron: ``"stclif"``, ``"stcplif"`` or ``"stclmh"``.
        norm_groups: of the norms; ``None`` = ``groups``.
        dtype: of the current.
        spiking: hard spikes (``True``) or soft ones.
        backward: the backward pass instead of the forward pass.
        gradient_detach: as for :func:`stc_cuda.stc_lif`.
        device: ``"cpu"`` or ``"cuda"``.
        capability: compute capability of the GPU, as ``torch.cuda.get_device_capability`` gives it.
        shared_memory: bytes that one thread block may have; ``None`` = what GPUs of ``capability`` allow.

    The same choice is logged, once a process, when a call makes it: ``logging.getLogger("stc_cuda")``, level INFO, or
    WARNING where a call with hard spikes that is not float64 has to take the general CUDA kernels.

    Raises:
        TypeError: ``dtype`` is none that the kernels take.
        ValueError: an argument is out of its range.
    """
    shape = [int(size) for size in current_shape]
    if len(shape) != 5 or min(shape[:2]) < 0 or min(shape[2:]) < 1:
        raise ValueError(
            f"current_shape: got {shape}, expected 5 sizes [T, N, C, H, W] with at least one channel, row and column"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
    norm_groups = groups if norm_groups is None else norm_groups
    for name, count in (("groups", groups), ("norm_groups", norm_groups)):
        if count < 1 or shape[2] % count:
            raise ValueError(f"{name}: got {count}, expected a divisor of the {shape[2]} channels of current_shape")
    if dtype not in DTYPES:
        raise TypeError(f"dtype: got {dtype}, expected {' or '.join(map(str, DTYPES))}")
    if neuron not in ("stclif", "stcplif", "stclmh"):
        raise ValueError(f"neuron: got {neuron!r}, expected 'stclif', 'stcplif' or 'stclmh'")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, expected 'cpu' or 'cuda'")
    major, minor = capability
    if shared_memory is None:
        if device == "cuda" and (major, minor) not in _SHARED_KIB:
            raise ValueError(
                f"capability: got {capability}, expected one of {', '.join(map(str, _SHARED_KIB))}; "
                "for another GPU pass shared_memory as well, in bytes"
            )
        shared_memory = 1024 * _SHARED_KIB.get((major, minor), 0)
    return KernelPlan(
        **extension.plan(
            neuron=neuron,
            steps=shape[0],
            samples=shape[1],
            channels=shape[2],
            height=shape[3],
            width=shape[4],
            kernel=kernel_size,
            groups=groups,
            norm_groups=norm_groups,
            cuda=device == "cuda",
            double_precision=dtype == torch.float64,
            spiking=spiking,
            backward=backward,
            attached=not gradient_detach,
            capability=10 * major + minor,
            shared_bytes_limit=shared_memory,
        )
    )
