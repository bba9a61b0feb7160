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
    "one pixel, many samples": ((300, 5, 1, 1), 3, 1, 2),
    "a line of one map that is half as long": ((3, 4, 4, 6), 3, 2, 1),
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


Shape = tuple[int, int, int, int]


def convolve(
    emulation: Emulation,
    weights: Tensor,
    spikes: Tensor,
    grad: Tensor,
    groups: int,
    splits: int = 1,
    any_kernel: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of weights [2, C, C / groups, K, K], spikes [N, C, H, W] and gradients of both gates [2, N, C, H, W]: the gates'
    convolutions, the gradient of the spikes and those of the weights, twice added up."""
    channels, in_group, kernel, dtype = *weights.shape[1:4], weights.dtype
    chunk = chunk_of(in_group, dtype)
    packed = groups * -(-in_group // chunk) * in_group * kernel**2 * 2 * chunk
    taps = 5 if kernel > 3 else 3
    sums = splits * groups * -(-in_group // 4) * in_group * kernel * -(-kernel // taps) * 2 * 4 * taps
    results = (grad.shape, spikes.shape, weights.shape)
    room = [torch.full((size,), torch.nan, dtype=dtype) for size in (packed, packed, sums)]
    z, grad_spikes, grad_weights = (torch.full(size, torch.nan, dtype=dtype) for size in results)
    behind = torch.zeros(96, dtype=dtype)  # which the weight gradient reads, too
    padded = [torch.cat([F.pad(x, [kernel // 2] * 4).flatten(), behind]) for x in (spikes, grad)]
    inputs, outputs = (*weights, *padded), (*room, z, grad_spikes, *grad_weights)
    known = {f"input {i}": (x, Kind.INPUT) for i, x in enumerate(inputs)}
    known |= {f"output {i}": (x, Kind.OUTPUT) for i, x in enumerate(outputs)}
    pointers = (ctypes.c_void_p * 11)(*(x.data_ptr() for x in (*inputs, *outputs)))
    sizes = (ctypes.c_int64 * 6)(len(spikes), channels, *spikes.shape[2:], kernel, groups)
    with emulation.registered(**known):
        error = emulation.library.general_conv(dtype.itemsize, sizes, splits, any_kernel, pointers)
    assert not error, emulation.report_text
    return z, grad_spikes, grad_weights


def drawn(shape: Shape, kernel: int, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, spikes and gradients of the gates."""
    generator = torch.Generator().manual_seed(sum(shape) + kernel)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    weights = normal(2, shape[1], shape[1] // groups, kernel, kernel)
    return weights, (torch.rand(shape, generator=generator) < 0.3).to(dtype), normal(2, *shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("shape", "kernel", "groups", "splits"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("any_kernel", [False, True], ids=["of its size", "of any size"])
def test_convolutions_and_gradients(
    emulation: Emulation,
    any_kernel: bool,
    shape: Shape,
    kernel: int,
    groups: int,
    splits: int,
    dtype: torch.dtype,
) -> None:
    weights, spikes, grad = drawn(shape, kernel, groups, dtype)
    z, grad_spikes, grad_weights = convolve(emulation, weights, spikes, grad, groups, splits, any_kernel)
    weights, spikes, grad = (x.double() for x in (weights, spikes, grad))
    how = {"padding": kernel // 2, "groups": groups}
    for path in range(2):
        near(z[path], F.conv2d(spikes, weights[path], **how))
        near(grad_weights[path], 2 * conv2d_weight(spikes, weights[path].shape, grad[path], **how))
    back = [conv2d_input(shape, weights[path], grad[path], **how) for path in range(2)]
    near(grad_spikes, back[0] + back[1])


@pytest.mark.parametrize("shape", [(3, 3, 3, 4), (2, 3, 5, 9)], ids=["small map", "map"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_numbers_that_are_not_finite_stay_in_their_group(emulation: Emulation, kernel: int, shape: Shape) -> None:
    weights, spikes, grad = drawn(shape, kernel, 3, torch.float32)
    spikes[:, 1], grad[:, :, 2] = torch.nan, torch.inf
    z, grad_spikes, grad_weights = convolve(emulation, weights, spikes, grad, groups=3)
    for channel, (gates, of_spikes, of_weights) in enumerate(
        ((True, True, True), (False, True, False), (True, False, False))
    ):
        assert bool(z[:, :, channel].isfinite().all()) == gates
        assert bool(grad_spikes[:, channel].isfinite().all()) == of_spikes
        assert bool(grad_weights[:, channel].isfinite().all()) == of_weights


def near(found: Tensor, exact: Tensor) -> None:
    error = float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))
    assert error < (3e-7 if found.dtype is torch.float32 else 1e-15), f"relative error {error:.2g}"
