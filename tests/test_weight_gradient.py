"""The weight gradient of the persistent kernels on tensor cores that cut sums off, as real ones do."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
from cuda_emulation import build
from cuda_emulation.control import Emulation, Kind, Order, Rounding
from torch import Tensor
from torch.nn.grad import conv2d_weight

pytestmark = pytest.mark.emulated

GROUPS = 2


@pytest.fixture(scope="module")
def truncating() -> Iterator[Emulation]:
    """Its checker watches how blocks go from map to map, too, which the small layers of other tests have no need to."""
    emulation = Emulation(build.build("weight_gradient", [build.HERE / "weight_gradient.cu"], "check"))
    emulation.set_mma_rounding(Rounding.TRUNCATE)
    emulation.set_order(Order.WARP_PRIORITIES, seed=3)
    yield emulation
    emulation.set_mma_rounding(Rounding.NEAREST)
    emulation.set_order(Order.ROUND_ROBIN)


def found(emulation: Emulation, gates: tuple[Tensor, Tensor], spikes: Tensor, kernel: int, splits: int) -> Tensor:
    """Both gradients, [2, C, C / groups, K, K], of gradients of the gates and spikes [T, N, C, H, W]."""
    steps, samples, channels, height, width = spikes.shape
    in_group = channels // GROUPS
    bits = spikes.reshape(steps, samples, GROUPS, in_group, height, width).movedim(3, -1).to(torch.int64)
    words = (bits << torch.arange(in_group)).sum(-1)
    packed = words.to(torch.uint16 if in_group == 16 else torch.uint8).contiguous()
    grads = torch.full((2, channels, in_group, kernel, kernel), torch.nan)
    partial = torch.full((splits, grads.numel()), torch.nan)
    sizes = (ctypes.c_int64 * 7)(steps, samples, channels, height, width, kernel, GROUPS)
    inputs, outputs = (*gates, packed), (partial, *grads)
    known = {f"input {i}": (x, Kind.INPUT) for i, x in enumerate(inputs)}
    known |= {f"output {i}": (x, Kind.OUTPUT) for i, x in enumerate(outputs)}
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (*inputs, *outputs)]
    with emulation.registered(**known):
        error = emulation.library.weight_gradient(sizes, splits, *pointers)
    assert not error, emulation.report_text
    return grads


def plain(gates: tuple[Tensor, Tensor], spikes: Tensor, kernel: int) -> Tensor:
    """The same from PyTorch, in the dtype of the arguments."""
    maps = spikes.flatten(0, 1).to(gates[0].dtype)
    size = (spikes.shape[2], spikes.shape[2] // GROUPS, kernel, kernel)
    return torch.stack([conv2d_weight(maps, size, g.flatten(0, 1), padding=kernel // 2, groups=GROUPS) for g in gates])


def relative_error(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["both signs", "one sign"])
@pytest.mark.parametrize(("in_group", "kernel"), [(16, 5), (16, 3), (8, 5), (8, 3)])
def test_error_is_that_of_float32_where_tensor_cores_truncate(
    truncating: Emulation, in_group: int, kernel: int, offset: float
) -> None:
    """Twelve maps in a row: sums that stayed in a tensor core would lose two digits, most where all have one sign."""
    generator = torch.Generator().manual_seed(in_group + kernel)
    shape = (4, 3, GROUPS * in_group, 16, 20)
    spikes = torch.rand(shape, generator=generator) < 0.3
    gates = (torch.randn(shape, generator=generator) + offset, torch.randn(shape, generator=generator) + offset)
    exact = plain((gates[0].double(), gates[1].double()), spikes, kernel)
    eager = relative_error(plain(gates, spikes, kernel), exact)
    error = relative_error(found(truncating, gates, spikes, kernel, splits=1), exact)
    assert error <= 2 * eager, f"relative error {error:.3g}, eager's {eager:.3g}"


def test_wide_range_of_gradients(truncating: Emulation) -> None:
    """Three bf16 numbers hold a float32 whatever its size."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, 1, GROUPS * 8, 5, 7)
    spikes = torch.rand(shape, generator=generator) < 0.3
    for exponent in (-90, 90):
        gates = tuple(torch.randn(shape, generator=generator) * 2.0**exponent for _ in range(2))
        exact = plain((gates[0].double(), gates[1].double()), spikes, 3)
        assert relative_error(found(truncating, (gates[0], gates[1]), spikes, 3, splits=2), exact) < 1e-6
