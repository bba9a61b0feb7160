"""Runs the kernels of faults.cu, right or with a fault switched on, and tells what came of it.

python cases.py LIBRARY < runs.json > outcomes.json      in a process of its own, as AddressSanitizer needs
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cuda_emulation.control import Emulation, Kind, Order


@dataclass
class Outcome:
    error: int  # a cudaError_t
    text: str
    right: bool  # the values that came out


@dataclass
class Buffer:
    name: str
    array: np.ndarray
    kind: Kind


def given(name: str, array: np.ndarray) -> Buffer:
    return Buffer(name, np.ascontiguousarray(array), Kind.INPUT)


def wanted(name: str, shape: tuple[int, ...], dtype: Any) -> Buffer:
    """An output, full of bits that make NaN."""
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xFF
    return Buffer(name, array, Kind.OUTPUT)


def changed(name: str, array: np.ndarray) -> Buffer:
    return Buffer(name, array, Kind.INOUT)


class Emulated:
    """The self-tests on the CPU."""

    def __init__(self, path: Path | str) -> None:
        self.emulation = Emulation(path)
        self.library = self.emulation.library
        self.library.last_text.restype = ctypes.c_char_p
        self.library.launch_shape.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t]

    def fault(self, name: str) -> int:
        number = self.library.fault_number(name.encode())
        assert number >= 0, f"faults.cu has no fault {name!r}"
        return number

    def call(self, function: str, *arguments: Buffer | int) -> tuple[int, str]:
        """Launches with the buffers' arrays, changing those of outputs; the error and its text."""
        buffers = [a for a in arguments if isinstance(a, Buffer)]
        with self.emulation.registered(**{b.name: (b.array, b.kind) for b in buffers}):
            plain = [ctypes.c_void_p(a.array.ctypes.data) if isinstance(a, Buffer) else a for a in arguments]
            error = getattr(self.library, function)(*plain)
        return error, self.library.last_text(error).decode()


class OnGpu:
    """The self-tests compiled by nvcc, on the GPU that torch sees."""

    def __init__(self, path: Path | str) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.last_text.restype = ctypes.c_char_p
        self.library.launch_shape.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t]

    fault = Emulated.fault

    def call(self, function: str, *arguments: Buffer | int) -> tuple[int, str]:
        import torch

        tensors = {a.name: torch.from_numpy(a.array.view(np.uint8)).cuda() for a in arguments if isinstance(a, Buffer)}
        plain = [ctypes.c_void_p(tensors[a.name].data_ptr()) if isinstance(a, Buffer) else a for a in arguments]
        torch.cuda.synchronize()
        error = getattr(self.library, function)(*plain)
        for a in arguments:
            if isinstance(a, Buffer):
                a.array.view(np.uint8)[...] = tensors[a.name].cpu().numpy()
        return error, self.library.last_text(error).decode()


Device = Emulated | OnGpu


def f16_product(a: np.ndarray, b_columns: np.ndarray) -> np.ndarray:
    return a.astype(np.float64) @ b_columns.astype(np.float64).T


def small_integers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, shape)


def run_add(device: Device, fault: int) -> Outcome:
    n = 1000
    a, b = (given(name, small_integers(k, n).astype(np.float32)) for k, name in enumerate("ab"))
    c, total = wanted("c", (n,), np.float32), changed("total", np.zeros(1, np.int32))
    error, text = device.call("run_add", a, b, c, total, n, fault)
    return Outcome(error, text, np.array_equal(c.array, a.array + b.array) and total.array[0] == 4)


def run_reverse(device: Device, fault: int) -> Outcome:
    n = 20
    x = given("records", small_integers(3, n, 12).astype(np.float32))
    assigned, copied = (wanted(name, (n, 12), np.float32) for name in ("assigned", "copied"))
    error, text = device.call("run_reverse", x, assigned, copied, n, fault)
    right = np.array_equal(assigned.array, x.array[::-1]) and np.array_equal(copied.array, x.array[::-1])
    return Outcome(error, text, right)


def run_moments(device: Device, fault: int) -> Outcome:
    x = given("x", small_integers(4, 2, 128).astype(np.float32))
    out = wanted("moments", (2, 2), np.float32)
    error, text = device.call("run_moments", x, out, 2, fault)
    mean = x.array.mean(1)
    expected = np.stack([mean, ((x.array - mean[:, None]) ** 2).sum(1)], 1)
    return Outcome(error, text, np.allclose(out.array, expected, rtol=1e-5))


def run_stencil(device: Device, fault: int) -> Outcome:
    n = 150
    x, w = given("x", small_integers(5, n).astype(np.float32)), given("weights", np.array([1, 2, 4], np.float32))
    y = wanted("y", (n,), np.float32)
    error, text = device.call("run_stencil", x, w, y, n, fault)
    padded = np.pad(x.array, 1)
    return Outcome(error, text, np.array_equal(y.array, padded[:-2] + 2 * padded[1:-1] + 4 * padded[2:]))


def run_pipeline(device: Device, fault: int) -> Outcome:
    steps = 5
    rows = small_integers(6, steps, 128).astype(np.float32)
    x, out = changed("x", rows.copy()), wanted("sums", (128,), np.float32)
    error, text = device.call("run_pipeline", x, out, steps, fault)
    return Outcome(error, text, np.array_equal(out.array, rows.sum(0)[::-1]))


def run_product(device: Device, fault: int) -> Outcome:
    a, b = small_integers(7, 16, 16).astype(np.float16), small_integers(8, 32, 16).astype(np.float16)
    d = wanted("d", (16, 32), np.float32)
    error, text = device.call("run_product", given("a", a.view(np.uint16)), given("b", b.view(np.uint16)), d, fault)
    return Outcome(error, text, np.array_equal(d.array, f16_product(a, b)))


def run_pack(device: Device, fault: int) -> Outcome:
    x = given("x", np.random.default_rng(9).standard_normal((2, 4, 4, 32)).astype(np.float32))
    words, low = wanted("words", (2, 4, 4), np.uint32), wanted("bytes", (2, 4, 4), np.uint8)
    error, text = device.call("run_pack", x, words, low, 2, fault)
    expected = ((x.array >= 0).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32)
    right = np.array_equal(words.array, expected)
    return Outcome(error, text, right and np.array_equal(low.array, (expected & 0xFF)[..., ::-1]))


def run_relay(device: Device, threads_at_barrier: int) -> Outcome:
    out = wanted("relayed", (32,), np.int32)
    error, text = device.call("twin_relay", out, threads_at_barrier)
    lane = np.arange(32)
    return Outcome(error, text, np.array_equal(out.array, (31 - lane) * 7 + 1 + lane * 7))


def run_recurse(device: Device, fault: int) -> Outcome:
    out = changed("out", np.array([5] + [0] * 32, np.float32))
    error, text = device.call("run_recurse", out, fault)
    return Outcome(error, text, np.all(out.array == 5))


KERNELS: dict[str, Callable[[Device, int], Outcome]] = {
    name.removeprefix("run_"): function for name, function in globals().items() if name.startswith("run_")
}
RIGHT_RELAY, DEADLOCKED_RELAY = 64, 96


def run(device: Emulated, kernel: str, fault: str = "none", order: int = 0, seed: int = 1) -> Outcome:
    device.emulation.set_order(Order(order), seed)
    if kernel == "relay":
        return run_relay(device, DEADLOCKED_RELAY if fault == "deadlock" else RIGHT_RELAY)
    return KERNELS[kernel](device, device.fault(fault))


def main() -> None:
    device = Emulated(sys.argv[1])
    outcomes = [asdict(run(device, **arguments)) for arguments in json.load(sys.stdin)]
    json.dump(outcomes, sys.stdout, default=bool)


if __name__ == "__main__":
    main()
