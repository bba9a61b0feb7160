"""The convolutions of the general kernels beside PyTorch's, in sizes that whole layers are too slow for here."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from cuda_emulation import build
from cuda_emulation.control import Emulation, Kind, Order
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

pytestmark = pytest.mark.emulated

# [N, C, H, W], K, groups, parts of the pixels
SIZES = {
    "one pixel": ((1, 1, 1, 1), 1, 1, 1),
    "depthwise": ((2, 3, 4, 5), 3, 3, 2),
    "maps smaller than a warp": ((40, 6, 2, 3), 3, 2, 3),
    "part of a chunk": ((2, 10, 7, 5), 5, 2, 1),
    "more pixels than a block's": ((3, 5, 9, 11), 3, 1, 2),
    "more than a chunk": ((1, 22, 5, 9), 3, 2, 2),
    "whole chunks": ((1, 16, 6, 6), 5, 1, 1),
    "two pieces of a kernel row": ((1, 4, 9, 8), 7, 2, 5),
    "kernel larger than the map": ((2, 4, 3, 2), 9, 1, 1),
    "more pixels than a warp sums at once": ((1, 2, 45, 93), 3, 1, 1),
    "the same in uneven parts": ((3, 2, 45, 50), 5, 2, 3),
}


@pytest.fixture(scope="module")
def emulation() -> Iterator[Emulation]:
    emulation = Emulation(build.build("general_conv", [build.HERE / "general_conv.cu"], "check"))
    emulation.set_order(Order.WARP_PRIORITIES, seed=5)
    yield emulation
    emulation.set_order(Order.ROUND_ROBIN)


def chunk_of(in_group: int, dtype: torch.dtype) -> int:
    return 8 if dtype is torch.float32 and in_group > 4 else 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("shape", "kernel", "groups", "splits"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("any_kernel", [False, True], ids=["of its size", "of any size"])
def test_convolutions_and_gradients(
    emulation: Emulation,
    any_kernel: bool,
    shape: tuple[int, int, int, int],
    kernel: int,
    groups: int,
    splits: int,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(sum(shape) + kernel)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    channels = shape[1]
    in_group = channels // groups
    weights = normal(2, channels, in_group, kernel, kernel)
    spikes = (torch.rand(shape, generator=generator) < 0.3).to(dtype)
    grad = normal(2, *shape)
    chunk = chunk_of(in_group, dtype)
    packed = groups * -(-in_group // chunk) * in_group * kernel**2 * 2 * chunk
    taps = 5 if kernel > 3 else 3
    sums = splits * groups * -(-in_group // 4) * in_group * kernel * -(-kernel // taps) * 2 * 4 * taps
    room = [torch.full((packed,), torch.nan, dtype=dtype) for _ in range(2)]
    room.append(torch.full((sums,), torch.nan, dtype=torch.float64))
    z, grad_spikes, *grad_weights = (
        torch.full(size, torch.nan, dtype=dtype) for size in (grad.shape, shape, weights[0].shape, weights[0].shape)
    )

    behind = torch.zeros(96, dtype=dtype)  # which the weight gradient reads, too
    padded = [torch.cat([F.pad(x, [kernel // 2] * 4).flatten(), behind]) for x in (spikes, grad)]
    inputs, outputs = (*weights, *padded), (*room, z, grad_spikes, *grad_weights)
    known = {f"input {i}": (x, Kind.INPUT) for i, x in enumerate(inputs)}
    known |= {f"output {i}": (x, Kind.OUTPUT) for i, x in enumerate(outputs)}
    pointers = (ctypes.c_void_p * 11)(*(x.data_ptr() for x in (*inputs, *outputs)))
    sizes = (ctypes.c_int64 * 6)(*shape, kernel, groups)
    with emulation.registered(**known):
        error = emulation.library.general_conv(dtype.itemsize, sizes, splits, any_kernel, pointers)
    assert not error, emulation.report_text

    pad, exact = kernel // 2, torch.float64
    for path in range(2):
        w, g = weights[path].to(exact), grad[path].to(exact)
        near(z[path], F.conv2d(spikes.to(exact), w, padding=pad, groups=groups))
        near(grad_weights[path], 2 * conv2d_weight(spikes.to(exact), w.shape, g, padding=pad, groups=groups))
    back = [conv2d_input(shape, weights[p].to(exact), grad[p].to(exact), padding=pad, groups=groups) for p in range(2)]
    near(grad_spikes, back[0] + back[1])


def near(found: Tensor, exact: Tensor) -> None:
    error = float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))
    assert error < (3e-7 if found.dtype is torch.float32 else 1e-15), f"relative error {error:.2g}"
