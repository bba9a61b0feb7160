"""The emulation of CUDA on itself: its twins of the device language give what a GPU gives (and can be run on one), and
every planted fault is found. What each mode finds is in FAULTS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cuda_emulation import build
from cuda_emulation.control import Emulation, Kind, Order, Rounding
from cuda_emulation.selftest import cases
from cuda_emulation.selftest.cases import Buffer, Device, Emulated, OnGpu, Outcome, changed, given, wanted

SELFTEST = Path(cases.__file__).parent
SOURCES = sorted(SELFTEST.glob("*.cu"))
ARCHITECTURES = ("80", "90", "120")

pytestmark = pytest.mark.emulated

ALL = "plain asan check"

# kernel -> fault -> the modes that find it, by an error of the launch or by a wrong result, in at least one order.
FAULTS = {
    "add": {
        "global_out_of_bounds": "asan check",
        "far_out_of_bounds": ALL,
        "null_pointer": ALL,
        "input_written": "check",
        "output_read_first": ALL,
        "misaligned_vector": ALL,
        "local_array_out_of_bounds": ALL,
        "blocks_race": "check",
        "atomic_and_plain": "check",
        "ldg_of_written": "check",
    },
    "reverse": {"wide_out_of_bounds": "asan check", "memcpy_out_of_bounds": "asan check"},
    "moments": {
        "no_barrier_after_write": ALL,
        "no_barrier_before_reuse": ALL,
        "static_shared_out_of_bounds": ALL,
        "shared_unwritten": ALL,
        "divergent_barrier": ALL,
        "divergent_shuffle": ALL,
        "lane_outside_mask": ALL,
    },
    "stencil": {"halo_off_by_one": ALL, "too_little_shared": ALL, "shared_misaligned": ALL},
    "pipeline": {
        "no_copy_wait": ALL,
        "no_barrier_after_wait": ALL,
        "no_barrier_before_copy": ALL,
        "copy_never_waited_for": ALL,
        "copy_misaligned": ALL,
        "copy_source_changes": ALL,
    },
    "product": {"fragment_swapped": ALL, "mma_by_part_of_warp": ALL},
    "pack": {"no_syncwarp": ALL, "bytes_race": ALL},
    "relay": {"deadlock": ALL},
    "recurse": {"stack_overflow": ALL},
}


# ---- libraries and devices ---------------------------------------------------------------------------------------


def _nvcc() -> str | None:
    beside_headers = build.cuda_include().parent / "bin" / "nvcc"
    return str(beside_headers) if beside_headers.exists() else shutil.which("nvcc")


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def libraries() -> dict[str, Path]:
    return {mode: build.build("selftest", SOURCES, mode) for mode in build.MODES}


@pytest.fixture(scope="session")
def gpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("selftest") / "selftest.so"
    command = [_nvcc(), "-arch=native", "-shared", "-Xcompiler=-fPIC", f"-I{build.ROOT / 'csrc' / 'cuda'}"]
    subprocess.run([*command, *map(str, SOURCES), "-o", str(library)], check=True)
    return library


needs_gpu = pytest.mark.skipif(not (_has_gpu() and _nvcc()), reason="needs a GPU and nvcc")


@pytest.fixture(params=["plain", "check", pytest.param("gpu", marks=needs_gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "gpu":
        return OnGpu(request.getfixturevalue("gpu_library"))
    return fresh(request.getfixturevalue("libraries")[request.param])


def fresh(path: Path) -> Emulated:
    """The library, which keeps its settings as long as the process lives, with the ones it starts with."""
    device = Emulated(path)
    emulation = device.emulation
    emulation.set_order(Order.ROUND_ROBIN)
    emulation.set_shared_limit(227 * 1024)
    emulation.set_mma_rounding(Rounding.NEAREST)
    emulation.enable_all_sites()
    emulation.reset_sync_counts()
    emulation.reset_reports()
    emulation.reset_traffic()
    return device


@pytest.fixture
def checked(libraries: dict[str, Path]) -> Emulated:
    return fresh(libraries["check"])


def call(device: Device, function: str, *arguments: Buffer | int) -> None:
    error, text = device.call(function, *arguments)
    assert error == 0, text


# ---- the device language, here and on a GPU ----------------------------------------------------------------------


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def mma(device: Device, a: np.ndarray, b: np.ndarray, d: np.ndarray, bfloat16: bool = False) -> np.ndarray:
    """d + a @ b, with a and b as bits."""
    out = changed("d", d.astype(np.float32))
    call(device, "twin_mma", int(bfloat16), given("a", a), given("b", b.T), out)
    return out.array


@pytest.mark.parametrize("bfloat16", [False, True])
def test_mma_is_exact_on_integers(device: Device, bfloat16: bool) -> None:
    a, b, d = (cases.small_integers(seed, *shape) for seed, shape in enumerate([(16, 16), (16, 8), (16, 8)]))
    bits = to_bfloat16 if bfloat16 else lambda x: x.astype(np.float16).view(np.uint16)
    assert np.array_equal(mma(device, bits(a), bits(b), d, bfloat16), d + a @ b)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_mma_of_reals(device: Device, bfloat16: bool) -> None:
    generator = np.random.default_rng(0)
    a, b, d = (generator.standard_normal(shape).astype(np.float32) for shape in [(16, 16), (16, 8), (16, 8)])
    if bfloat16:
        bits_a, bits_b = to_bfloat16(a), to_bfloat16(b)
        a, b = from_bfloat16(bits_a), from_bfloat16(bits_b)
    else:
        a, b = a.astype(np.float16), b.astype(np.float16)
        bits_a, bits_b = a.view(np.uint16), b.view(np.uint16)
    exact = d.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
    terms = np.abs(d) + np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    assert np.all(np.abs(mma(device, bits_a, bits_b, d, bfloat16) - exact) <= 17 * 2.0**-23 * terms)


def test_mma_of_every_half(device: Device) -> None:
    """Each of the 63,488 finite halves, subnormal ones included, goes through A unchanged."""
    finite = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
    finite = finite[(finite & 0x7C00) != 0x7C00]
    one = np.zeros((16, 8), np.float16)
    one[np.arange(8), np.arange(8)] = 1
    zero = np.zeros((16, 8), np.float32)
    for start in range(0, len(finite), 16 * 8 * 16):  # a sixteenth of them
        a = np.zeros((16, 16), np.uint16)
        a[:, :8] = finite[start : start + 128].reshape(16, 8)
        assert np.array_equal(mma(device, a, one.view(np.uint16), zero), a[:, :8].view(np.float16).astype(np.float32))


def test_mma_passes_infinity_and_nan_on(device: Device) -> None:
    a = np.zeros((16, 16), np.float16)
    a[3, 5], a[7, 0] = np.inf, np.nan
    b = np.ones((16, 8), np.float16)
    d = mma(device, a.view(np.uint16), b.view(np.uint16), np.zeros((16, 8)))
    assert np.all(np.isposinf(d[3]))
    assert np.all(np.isnan(d[7]))
    assert np.all(np.delete(d, [3, 7], 0) == 0)


def test_ldmatrix(device: Device) -> None:
    a, b = cases.small_integers(1, 16, 16).astype(np.float16), cases.small_integers(2, 16, 8).astype(np.float16)
    d = wanted("d", (16, 8), np.float32)
    call(device, "twin_mma_by_ldmatrix", given("a", a.view(np.uint16)), given("b", b.view(np.uint16)), d)
    assert np.array_equal(d.array, a.astype(np.float32) @ b.astype(np.float32))


@pytest.mark.parametrize("valid", [0, 4, 12, 16])
def test_cp_async(device: Device, valid: int) -> None:
    source = np.arange(1, 33, dtype=np.uint32)
    out = wanted("out", (4, 32), np.uint32)
    call(device, "twin_copies", given("in", source), out, valid)
    kept = np.where(np.arange(32) % 4 < valid // 4, source, 0)
    assert np.array_equal(out.array, np.stack([source, source, source, kept]))


def test_collectives(device: Device) -> None:
    out = wanted("out", (18, 64), np.int32)
    call(device, "twin_collectives", out)
    thread = np.arange(64)
    lane, warp = thread % 32, thread // 32

    def value(source: np.ndarray) -> np.ndarray:  # what the thread with that lane in the same warp holds
        return (warp * 32 + source) * 3 + 1

    def bits(predicate: np.ndarray) -> np.ndarray:  # a ballot of each warp
        ballots = (predicate.reshape(2, 32).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1)
        return ballots.astype(np.uint32).view(np.int32)[warp]

    odd = lane % 2 == 1
    expected = [
        value(np.full(64, 5)),
        value(lane // 8 * 8 + (lane + 9) % 8),
        value(np.where(lane >= 3, lane - 3, lane)),
        value(np.where(lane % 4 >= 1, lane - 1, lane)),
        value(np.where(lane < 25, lane + 7, lane)),
        value(np.where(lane % 16 < 14, lane + 2, lane)),
        value(lane ^ 17),
        value(lane ^ 1),
        value(lane ^ 4),
        bits(lane % 3 == 0),
        np.full(64, 2),
        np.full(64, 2),
        np.where(lane < 20, bits(odd & (lane < 20)), bits(odd & (lane >= 20))),
        np.array([value(np.arange(64) % 32)[warp == w].sum() for w in warp]),
        value(np.full(64, 31)),
        np.full(64, 40),
        np.full(64, 2),
        np.full(64, 2),
    ]
    for k, row in enumerate(expected):
        assert np.array_equal(out.array[k], row), f"result {k} of collectives in twins.cu"


def test_named_barriers_order_memory_through_a_third_warp(device: Device) -> None:
    outcome = cases.run_relay(device, cases.RIGHT_RELAY)
    assert outcome == Outcome(0, "no error", True)


def test_atomics(device: Device) -> None:
    out = changed("out", np.zeros(6, np.int32))
    call(device, "twin_atomics", out)
    assert out.array.tolist() == [256 * 255 // 2, 255, -255, -1, 1, 77]


def test_bits(device: Device) -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**32, (200, 3), dtype=np.uint32)
    words[:4, 0] = 0, 1, 0x80000000, 0xFFFFFFFF
    out = wanted("out", (200, 9), np.uint32)
    call(device, "twin_bits", given("in", words), out, 200)
    for (x, y, z), got in zip(words.tolist(), out.array.tolist(), strict=True):
        both = (y << 32 | x).to_bytes(8, "little")
        permuted = bytes(both[z >> 4 * i & 7] for i in range(4))
        assert got == [
            x.bit_count(),
            32 - x.bit_length(),
            (x & -x).bit_length(),
            int(f"{x:032b}"[::-1], 2),
            int.from_bytes(permuted, "little"),
            ((y << 32 | x) << (z & 31) >> 32) & 0xFFFFFFFF,
            ((y << 32 | x) >> (z & 31)) & 0xFFFFFFFF,
            x if not ((x >> 23 & 255) == 255 and x & 0x7FFFFF) else got[7],  # a NaN may come back another
            x.bit_count() + y.bit_count(),
        ]


def test_functions(device: Device) -> None:
    x = np.concatenate([np.linspace(-80, 80, 999), [1e-30, 1e30, 2.0**127]]).astype(np.float32)
    out = wanted("out", (len(x), 6), np.float32)
    call(device, "twin_functions", given("in", x), out, len(x))
    exact = x.astype(np.float64)
    with np.errstate(all="ignore"):
        half = x.astype(np.float16).astype(np.float64) + from_bfloat16(to_bfloat16(x))
        expected = [np.exp(exact), 1 / exact, np.abs(exact) ** -0.5, 1 / exact, np.log(np.abs(exact)), half]
    ulp = 2.0**-23
    # 2 units in the last place and, for exp, the rounding of the scaled argument (CUDA's documented bounds).
    allowed = [(2 + np.abs(1.173 * exact)) * ulp, 2 * ulp, 2 * ulp, ulp, np.maximum(4 * ulp, 1e-6), 2 * ulp]
    for k, (want, relative) in enumerate(zip(expected, allowed, strict=True)):
        got = out.array[:, k].astype(np.float64)
        fits = np.isfinite(want) & (np.abs(want) < 3e38) & (np.abs(want) > 1e-35)
        if k == 1:
            assert got[-1] == 0  # __fdividef by more than 2^126
            fits[-1] = False
        slack = relative * np.abs(want) + (2e-7 if k == 4 else 0)  # the logarithm: absolute, around 1
        assert np.all(np.abs(got[fits] - want[fits]) <= slack[fits]), f"function {k} of functions in twins.cu"


def test_truncated_sums_are_never_greater(checked: Emulated) -> None:
    """Tensor cores cut sums off towards zero; with terms of one sign that can only make them smaller."""
    generator = np.random.default_rng(0)
    a, b = (generator.uniform(0.5, 1, shape).astype(np.float16) for shape in [(16, 16), (16, 8)])
    d = generator.uniform(0, 1, (16, 8)).astype(np.float32)
    exact = d.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
    checked.emulation.set_mma_rounding(Rounding.TRUNCATE)
    error = mma(checked, a.view(np.uint16), b.view(np.uint16), d) - exact
    assert np.all(error <= 0)
    assert np.all(error >= -2 * 2.0**-23 * exact)
    assert np.any(error < 0)


# ---- planted faults ----------------------------------------------------------------------------------------------


def found(outcomes: list[Outcome]) -> bool:
    return any(outcome.error != 0 or not outcome.right for outcome in outcomes)


RUNS = [
    {"kernel": kernel, "fault": fault, "order": order.value}
    for kernel, faults in FAULTS.items()
    for fault in ("none", *faults)
    for order in Order
]


@pytest.fixture(scope="module")
def outcomes(libraries: dict[str, Path]) -> dict[tuple[str, str, str], list[Outcome]]:
    """By mode, kernel and fault: what came of it in each order. A process a mode, so that asan can have its own."""

    def run(mode: str) -> list[Outcome]:
        result = subprocess.run(
            [sys.executable, cases.__file__, str(libraries[mode])],
            input=json.dumps(RUNS),
            capture_output=True,
            text=True,
            env={**os.environ, **build.environment(mode)},
            timeout=300,
        )
        assert result.returncode == 0, f"mode {mode}: {result.stderr}"
        return [Outcome(**fields) for fields in json.loads(result.stdout)]

    table: dict[tuple[str, str, str], list[Outcome]] = {}
    with ThreadPoolExecutor(build.parallel_jobs()) as pool:
        for mode, results in zip(build.MODES, pool.map(run, build.MODES), strict=True):
            for arguments, outcome in zip(RUNS, results, strict=True):
                table.setdefault((mode, arguments["kernel"], arguments["fault"]), []).append(outcome)
    return table


Outcomes = dict[tuple[str, str, str], list[Outcome]]


@pytest.mark.parametrize("mode", build.MODES)
@pytest.mark.parametrize("kernel", FAULTS)
def test_right_kernels_pass_in_every_order(outcomes: Outcomes, kernel: str, mode: str) -> None:
    assert outcomes[mode, kernel, "none"] == [Outcome(0, "no error", True)] * len(Order)


@pytest.mark.parametrize(
    ("kernel", "fault", "mode"),
    [(kernel, fault, mode) for kernel, faults in FAULTS.items() for fault in faults for mode in faults[fault].split()],
)
def test_fault_is_found(outcomes: Outcomes, kernel: str, fault: str, mode: str) -> None:
    assert found(outcomes[mode, kernel, fault])


CHECKER_SAYS = {
    "global_out_of_bounds": "out-of-bounds read: 4 bytes in global 'b' +4000 of 4000",
    "far_out_of_bounds": "read of memory that is not registered",
    "input_written": "write to an input: 4 bytes in global 'a'",
    "output_read_first": "read of memory that nobody has written: 4 bytes in global 'c' +4",
    "misaligned_vector": "is no multiple of 16",
    "wide_out_of_bounds": "out-of-bounds read: 48 bytes in global 'records'",
    "memcpy_out_of_bounds": "out-of-bounds read: 48 bytes in global 'records'",
    "blocks_race": "race, read after write: 4 bytes in global 'total'",
    "atomic_and_plain": "race, write after write: 4 bytes in global 'total'",
    "no_barrier_after_write": "race, read after write: 4 bytes in shared 'sums'",
    "no_barrier_before_reuse": "race, write after read: 4 bytes in shared 'sums'",
    "static_shared_out_of_bounds": "out-of-bounds write: 4 bytes in shared 'sums' +16 of 16",
    "shared_unwritten": "read of memory that nobody has written: 4 bytes in shared 'sums' +8",
    "halo_off_by_one": "out-of-bounds read: 4 bytes in shared 'dynamic shared memory, array 0'",
    "no_copy_wait": "read of the target of a cp.async before its wait",
    "no_barrier_before_copy": "race, write after read: 16 bytes in shared 'rows'",
    "no_syncwarp": "race, read after write: 1 bytes in shared 'lowest'",
}


@pytest.mark.parametrize("fault", CHECKER_SAYS)
def test_checker_names_the_fault_and_its_line(outcomes: Outcomes, fault: str) -> None:
    (kernel,) = (kernel for kernel, faults in FAULTS.items() if fault in faults)
    text = "\n".join(outcome.text for outcome in outcomes["check", kernel, fault])
    assert CHECKER_SAYS[fault] in text
    assert "faults.cu:" in text
    assert "+0x" not in text  # every address has its source line


def test_checker_names_the_callers(outcomes: Outcomes) -> None:
    source = (SELFTEST / "faults.cu").read_text().splitlines()
    lines = [
        f"faults.cu:{i}" for i, line in enumerate(source, 1) if "block_sum(" in line and "float block_sum" not in line
    ]
    text = outcomes["check", "moments", "no_barrier_after_write"][0].text
    assert any(f"called at {line}" in text or f"inlined at {line}" in text for line in lines), text


def test_deadlock_says_who_waits_where(outcomes: Outcomes) -> None:
    for outcome in outcomes["plain", "relay", "deadlock"]:
        assert "deadlock" in outcome.text
        assert "64 of 128 have exited" in outcome.text
        assert outcome.text.count("32 (the first is thread") == 2


def test_every_barrier_is_needed(checked: Emulated) -> None:
    """Barrier mutants: without any one of its synchronisations, a kernel is found out."""
    emulation = checked.emulation
    for kernel in FAULTS:
        emulation.reset_sync_counts()
        assert cases.run(checked, kernel).right
        ran = [site for site in emulation.sync_sites() if site["count"]]
        assert len(ran) >= {"add": 0, "reverse": 0, "recurse": 0, "moments": 2, "pipeline": 3, "relay": 4}.get(
            kernel, 1
        )
        for site in ran:
            with emulation.without(site["site"]):
                mutants = [cases.run(checked, kernel, order=order) for order in Order]
            assert found(mutants), f"{kernel} does not need {site['operation']} at {site['site']}"


def test_a_site_can_be_disabled_before_it_has_run(libraries: dict[str, Path]) -> None:
    emulation = Emulation(libraries["plain"])
    assert not emulation.disable_site("nowhere.cuh:1")
    emulation.enable_all_sites()


def test_a_launch_after_a_failed_one_is_unharmed(checked: Emulated) -> None:
    for fault in ("divergent_barrier", "no_barrier_after_write", "divergent_shuffle"):
        outcome = cases.run(checked, "moments", fault)
        assert outcome.error
        assert outcome.text in checked.emulation.report_text
        assert cases.run(checked, "moments") == Outcome(0, "no error", True)


def test_random_orders_repeat_with_the_seed(libraries: dict[str, Path]) -> None:
    device = fresh(libraries["plain"])

    def switches(seed: int) -> int:
        before = device.emulation.switches
        cases.run(device, "pack", order=Order.RANDOM, seed=seed)
        return device.emulation.switches - before

    assert switches(1) == switches(1)
    assert len({switches(seed) for seed in range(20)}) > 1


# ---- limits of a device ------------------------------------------------------------------------------------------


def test_launch_shapes_that_no_gpu_takes(device: Device) -> None:
    for blocks, threads in ((0, 32), (1, 0), (1, 1025)):
        error = device.library.launch_shape(blocks, threads, 0)
        # cudaLaunchKernelEx says "invalid argument" to some of them
        assert device.library.last_text(error).decode() in ("invalid configuration argument", "invalid argument")
    assert device.library.launch_shape(1, 32, 1 << 20) == 1  # cudaErrorInvalidValue


def test_more_shared_memory_than_the_device_has(checked: Emulated) -> None:
    assert cases.run(checked, "moments").right
    checked.emulation.set_shared_limit(8)
    assert (
        "16 bytes of static and 0 of dynamic shared memory; the device allows 8" in cases.run(checked, "moments").text
    )
    assert cases.run(checked, "stencil").error == 1


# ---- traffic -----------------------------------------------------------------------------------------------------


def test_traffic(checked: Emulated) -> None:
    emulation = checked.emulation

    def of(run: Callable[[Device, int], Outcome]) -> dict[str, tuple[int, int, int, int]]:
        emulation.reset_traffic()
        assert run(checked, 0).right
        return {
            name: (t["read"], t["read_unique"], t["written"], t["written_unique"])
            for name, t in emulation.traffic().items()
            if any(t[key] for key in ("read", "written"))
        }

    assert of(cases.run_add) == {
        "a": (4000, 4000, 0, 0),
        "b": (4000, 4000, 0, 0),
        "c": (0, 0, 4000, 4000),
        "total": (0, 0, 16, 4),  # an atomic of each of four blocks
    }
    assert of(cases.run_stencil) == {
        "x": (616, 600, 0, 0),  # two blocks' borders twice
        "weights": (36, 12, 0, 0),  # by each of three blocks
        "y": (0, 0, 600, 600),
    }
    assert of(cases.run_pipeline) == {"x": (2560, 2560, 0, 0), "sums": (0, 0, 512, 512)}  # cp.async counts
    assert of(cases.run_reverse)["records"] == (2 * 960, 960, 0, 0)  # memcpy counts


def test_traffic_of_buffers_of_one_name_is_summed(checked: Emulated) -> None:
    emulation = checked.emulation
    buffers = [np.zeros(8, np.float32) for _ in range(2)]
    for buffer in buffers:
        emulation.register(buffer.ctypes.data, buffer.nbytes, "twice", Kind.INPUT)
    assert emulation.traffic()["twice"]["bytes"] == 64
    for buffer in buffers:
        emulation.unregister(buffer.ctypes.data)
    emulation.reset_traffic()
    assert "twice" not in emulation.traffic()


def test_registering_a_buffer_twice_and_overlapping_ones(checked: Emulated) -> None:
    emulation = checked.emulation
    buffer = np.zeros(8, np.float32)
    start = buffer.ctypes.data
    emulation.register(start, 32, "v", Kind.INPUT)
    emulation.register(start, 32, "v_out", Kind.OUTPUT)
    emulation.unregister(start)
    assert emulation.report_count == 0
    emulation.register(start + 16, 16, "half of v", Kind.INPUT)
    assert "registered 'half of v' in the place of 'v'" in emulation.report_text
    emulation.unregister(start + 16)


def test_parts_of_a_buffer_are_watched_on_their_own(checked: Emulated) -> None:
    emulation = checked.emulation
    buffer = np.zeros(64, np.float32)
    start = buffer.ctypes.data
    for kind in (Kind.OUTPUT, Kind.INOUT):
        emulation.register(start, 256, "whole", kind)
        emulation.register_part(start, 64, "first part")
        emulation.register_part(start + 128, 64, "second part")
        emulation.register(start + 64, 64, "what lies between", Kind.INPUT)
        assert emulation.report_count == 0
        emulation.unregister(start)  # and with it all three, or the next round would find them in its place
    emulation.register(start, 256, "another", Kind.INPUT)
    assert emulation.report_count == 0
    emulation.unregister(start)


# ---- building ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
@pytest.mark.parametrize("standard", [17, 20])
def test_sources_are_cuda(source: Path, standard: int, tmp_path: Path) -> None:
    """nvcc takes what the emulation takes, without a warning."""
    if _nvcc() is None:
        pytest.skip("needs nvcc")
    architectures = ARCHITECTURES if standard == 17 else ARCHITECTURES[:1]
    command = [
        _nvcc(),
        f"-std=c++{standard}",
        *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures),
        "-Werror=all-warnings",
        "-Xcompiler=-Wall,-Wextra",
        f"-I{build.ROOT / 'csrc' / 'cuda'}",
        "-c",
        str(source),
        "-o",
        str(tmp_path / "object.o"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_headers_are_cxx20(tmp_path: Path) -> None:
    include = [f"-I{build.HERE}", f"-I{build.ROOT / 'csrc' / 'cuda'}", "-isystem", str(build.cuda_include())]
    (tmp_path / "try.cpp").write_text('#include "gpu.cuh"\n')
    for standard in ("c++17", "c++20"):
        command = ["g++", f"-std={standard}", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *include]
        result = subprocess.run([*command, str(tmp_path / "try.cpp")], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_built_again_only_when_something_changed(libraries: dict[str, Path]) -> None:
    before = libraries["plain"].stat().st_mtime_ns
    build.build("selftest", SOURCES, "plain")
    assert libraries["plain"].stat().st_mtime_ns == before
