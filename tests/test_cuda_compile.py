"""What nvcc and ptxas make of the CUDA sources, for every architecture.

Errors, spills, launches that do not fit and slow instructions need no GPU to show.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.kernel_table import COMMAND, DOCUMENT, LAYERS, PERSISTENT, launches, table
from bench.kernels import (
    ARCHITECTURES,
    Kernel,
    Layer,
    Object,
    compile_all,
    compile_one,
    find_cuobjdump,
    find_nvcc,
    nvcc_version,
    plan,
    template_of,
)

pytestmark = [
    pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc"),
    pytest.mark.skipif(
        find_cuobjdump() is None, reason="needs cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    ),
]
by_architecture = pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: f"sm_{arch}")


@pytest.fixture(scope="session")
def objects() -> list[Object]:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return compile_all(max(1, len(os.sched_getaffinity(0)) // workers))


def kernels(objects: list[Object], arch: int, *names: str) -> Iterator[tuple[Kernel, Object]]:
    found = [(k, o) for o in objects if o.arch == arch for k in o.kernels if k.name in names]
    assert found, f"no {' or '.join(names)} for sm_{arch}: the names in this test must be those of the sources"
    yield from found


def listed(complaints: list[str]) -> str:
    return "\n".join([f"{len(complaints)} complaints", *complaints])


# The persistent backward pass is a few registers short on some architectures, outside of its inner loops, and so is the
# general convolution of 7x7 on sm_100; general kernels put the states of any neuron into an array, and hold them in
# double precision. All else spills nothing.
MAY_SPILL = re.compile(
    r"persistent_backward<|\b(load_state|update|differentiate)<|\bgate_convolutions<float, 8, 7, false>"
)
MAY_SPILL_BYTES = 256
DOUBLES_MAY_SPILL_BYTES = 512


@by_architecture
def test_compiles_without_a_warning(objects: list[Object], arch: int) -> None:
    """Register spills and local memory among them, in any kernel but those of MAY_SPILL."""
    warnings = [warning for compiled in objects if compiled.arch == arch for warning in compiled.warnings]
    warnings = [warning for warning in warnings if not MAY_SPILL.search(warning)]
    assert not warnings, listed(warnings)


@by_architecture
def test_what_is_spilled_is_little(objects: list[Object], arch: int) -> None:
    complaints = []
    for compiled in (compiled for compiled in objects if compiled.arch == arch):
        for kernel in compiled.kernels:
            if kernel.spills > (DOUBLES_MAY_SPILL_BYTES if "double" in str(kernel) else MAY_SPILL_BYTES):
                complaints.append(f"{kernel}: {kernel.spills} bytes spilled")
    assert not complaints, listed(complaints)


@by_architecture
def test_persistent_kernels_keep_everything_in_registers(objects: list[Object], arch: int) -> None:
    complaints = []
    for kernel, compiled in kernels(objects, arch, *PERSISTENT, "weight_gradient_partials"):
        local = {name: n for name, n in compiled.instructions[kernel.symbol].items() if name.startswith(("LDL", "STL"))}
        if MAY_SPILL.search(str(kernel)):
            if kernel.spills > MAY_SPILL_BYTES:
                complaints.append(f"{kernel}: {kernel.spills} bytes spilled")
        elif kernel.stack or kernel.spills or local:
            complaints.append(f"{kernel}: {kernel.stack} bytes of stack, {kernel.spills} bytes spilled, {local or ''}")
    assert not complaints, listed(complaints)


def plannable() -> Iterator[Layer]:
    """Every layer that plan() may give to the persistent kernels, as far as it matters."""
    for in_group in (8, 16):
        for kernel in (3, 5):
            for height in range(1, 33):
                for width in range(1, 33):
                    yield Layer(2 * in_group, 2, height, width, kernel)


@by_architecture
def test_planned_launches_fit_the_device(objects: list[Object], arch: int) -> None:
    """Static and dynamic shared memory, registers and threads of a block, for every map that plan() takes."""
    limit = ARCHITECTURES[arch].shared_block * 1024
    complaints, fitting = set(), 0
    for name in PERSISTENT:
        instances: dict[tuple[str | int, ...], list[tuple[Kernel, int]]] = {}
        for kernel, compiled in kernels(objects, arch, name):
            key = (kernel.neuron, *kernel.numbers[:3])
            instances.setdefault(key, []).append((kernel, compiled.largest_blocks[kernel.symbol]))
        for layer in plannable():
            for attached, neuron in itertools.product((False, True), ("stclif", "stcplif", "stclmh")):
                planned = plan(layer, arch, name == "persistent_backward", attached, neuron)
                if planned.kernel != "persistent":
                    continue
                threads = planned.warps * 32
                same = instances.get((neuron, layer.in_group, layer.kernel, planned.runs_per_warp), [])
                if not same:
                    runs = planned.runs_per_warp
                    complaints.add(f"{name} for sm_{arch}: no instance has the {runs} runs a warp of {layer}")
                for kernel, largest in same:
                    used = kernel.static_shared + planned.shared_memory
                    if used > limit:
                        complaints.add(f"{kernel}: {layer} takes {used} bytes of shared memory of {limit}")
                    elif threads > largest or not kernel.blocks_per_sm(threads, planned.shared_memory):
                        complaints.add(f"{kernel}: {layer} launches {threads} threads, more than can be resident")
                    else:
                        fitting += 1
    assert not complaints, listed(sorted(complaints)[:20])
    assert fitting > 10_000


@by_architecture
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_of_the_table_run_persistently(objects: list[Object], arch: int, layer: Layer) -> None:
    for name, directions in (("persistent_forward", 1), ("persistent_backward", 2)):
        found = {(k.neuron, planned) for k, _ in kernels(objects, arch, name) for planned in launches(k, layer)}
        plans = Counter(neuron for neuron, _ in found)
        assert plans == dict.fromkeys(("stclif", "stcplif", "stclmh"), directions), (
            f"{name} for sm_{arch}, {layer}: only the plans {plans} have an instance"
        )


# ---- instructions ------------------------------------------------------------------------------------------------
#
# Loops over the K dimension of a product are not unrolled (#pragma unroll 1), so that the instructions of one iteration
# are all there are, or a multiple where a compiler unrolls after all. Fewer would mean a product that was dropped.


def tensor_core_products(kernel: Kernel) -> dict[str, int]:
    """mma.m16n8k16 in one iteration over K, by type of the operands."""
    channels, size = kernel.numbers[:2]
    tiles = channels // 8
    if kernel.name == "weight_gradient_partials":
        # taps of a kernel row x C inputs in n tiles of 8 x bf16 terms of the gradient; a warp has one m tile
        return {"bf16": size * tiles * 3}
    runs = kernel.numbers[2]
    # 16 pixels of a run in n tiles of 8 x 2C outputs in m tiles of 16 x fp16 terms of a weight, which the forward pass
    # takes one after the other
    products = {"f16": runs * 2 * tiles * (2 if kernel.name == "persistent_backward" else 1)}
    if kernel.parameters.get("Attached") == "true":
        # n tiles x one m tile of at most 16 inputs x the pairs of bf16 terms (0,0) (0,1) (1,0) (0,2) (1,1) (2,0)
        products["bf16"] = runs * 2 * 6
    return products


def found_products(instructions: dict[str, int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, n in instructions.items():
        if name.startswith("HMMA.16816.F32"):
            found["bf16" if name.endswith("BF16") else "f16"] += n
    return dict(found)


@by_architecture
def test_products_are_on_tensor_cores(objects: list[Object], arch: int) -> None:
    complaints = []
    for kernel, compiled in kernels(objects, arch, *PERSISTENT, "weight_gradient_partials"):
        expected, found = tensor_core_products(kernel), found_products(compiled.instructions[kernel.symbol])
        multiple = {name: n > 0 and n % expected.get(name, n + 1) == 0 for name, n in found.items()}
        if found.keys() != expected.keys() or not all(multiple.values()):
            complaints.append(f"{kernel}: {found} HMMA.16816.F32, expected multiples of {expected}")
    assert not complaints, listed(complaints)


# fp32 tensors of neurons are read and written four at a time where they are aligned; the 32-bit accesses beside that
# serve ragged and strided rows.
def wide_accesses(kernel: Kernel) -> dict[str, int]:
    """The least number of 128-bit accesses, from the fours of neurons of a thread, of loops that are unrolled."""
    channels = kernel.numbers[0]
    if kernel.name == "weight_gradient_partials":
        return {"LDG": 1, "STG": kernel.numbers[1] * channels // 8}  # z', in a loop; all sums
    tiles = channels // 8
    if kernel.name == "persistent_forward":
        # the current in a loop over all fours, and again in one over the runs; there spikes, u and v_seq, too
        return {"LDG": 1 + tiles, "STG": 3 * tiles}
    return {"LDG": 1, "STG": 3}  # u; the gradient of the current, z' of both gates; all in loops over the fours


@by_architecture
def test_global_accesses_are_128_bits_wide(objects: list[Object], arch: int) -> None:
    complaints = []
    for kernel, compiled in kernels(objects, arch, *PERSISTENT, "weight_gradient_partials"):
        found: Counter[str] = Counter()
        for name, count in compiled.instructions[kernel.symbol].items():
            # LDGSTS is cp.async; loads marked CONSTANT are those of packed weights
            if access := re.match(r"(LDG|STG)(?:STS)?\b(?!.*CONSTANT).*\.128\b", name):
                found[access[1]] += count
        for name, least in wide_accesses(kernel).items():
            if found[name] < least:
                complaints.append(f"{kernel}: {found[name]} {name} of 128 bits, expected at least {least}")
    assert not complaints, listed(complaints)


# ---- the document, and the gate itself -----------------------------------------------------------------------------


def test_document_is_what_the_compiler_says_now(objects: list[Object]) -> None:
    text = DOCUMENT.read_text()
    if f"nvcc {nvcc_version()}" not in text:
        pytest.skip(f"docs/kernels.md was made with another nvcc than {nvcc_version()}, which allocates in its own way")
    assert text == table(objects), f"docs/kernels.md is out of date; type: {COMMAND}"


PLANTED = """
namespace stc::cuda {
template <int Count>
__global__ void __launch_bounds__(1024, 2) spills(float* x) {
  float values[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i) values[i] = x[i * 7 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; ++i) x[i * 5 + threadIdx.x] = values[i] * values[Count - 1 - i];
}
template __global__ void spills<96>(float*);
__global__ void counts(int* x, int n) {
  int values[64] = {};
  for (int k = 0; k < n; ++k) ++values[x[k] & 63];
  for (int k = 0; k < 64; ++k) x[k] = values[k];
}
}
"""


def test_planted_spill_and_local_array_are_seen(tmp_path: Path) -> None:
    (tmp_path / "planted.cu").write_text(PLANTED)
    compiled = compile_one(tmp_path / "planted.cu", 90, tmp_path)
    assert compiled is not None
    found = {kernel.name: kernel for kernel in compiled.kernels}
    assert str(found["spills"]) == "spills<96> for sm_90"
    assert found["spills"].spills > 0
    assert found["spills"].registers == 32  # what 65,536 leave each of 2,048 threads
    assert compiled.largest_blocks[found["spills"].symbol] == 1024
    assert found["counts"].stack == 256
    assert not found["counts"].spills
    assert any("sm_90" in w and "spills<96>" in w and "spilled to local memory" in w for w in compiled.warnings)
    assert any("sm_90" in w and "counts" in w and "Local memory used" in w for w in compiled.warnings)
    instructions = compiled.instructions[found["spills"].symbol]
    assert sum(n for name, n in instructions.items() if name.startswith("STL")) > 0


def test_template_arguments_of_a_demangled_name() -> None:
    assert template_of("void stc::cuda::f<16, stc::Pair<3, (stc::Kind)1>, true>(g<4>)") == (
        "f",
        ("16", "stc::Pair<3, (stc::Kind)1>", "true"),
    )
    assert template_of("stc::cuda::(anonymous namespace)::plain(float*)") == ("plain", ())


def test_occupancy() -> None:
    """By hand, from the programming guide's table of limits."""

    def blocks(arch: int, registers: int, threads: int, shared: int) -> int:
        return Kernel("", "k", (), arch, registers, 0, 0, 0, 0).blocks_per_sm(threads, shared)

    assert blocks(90, 128, 512, 0) == 1  # 16 units a warp: 16 warps
    assert blocks(90, 64, 512, 0) == 2
    assert blocks(90, 65, 512, 0) == 1  # 72 registers are given out: 28 warps
    assert blocks(90, 32, 256, 0) == 8  # 2,048 threads
    assert blocks(86, 32, 256, 0) == 6  # 1,536 threads
    assert blocks(86, 16, 32, 0) == 16  # blocks
    assert blocks(120, 32, 32, 49 * 1024) == 2  # 100 KiB in blocks of 50
    assert blocks(90, 32, 32, 228 * 1024) == 0
