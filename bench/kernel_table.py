"""``python -m bench.kernel_table``: writes docs/kernels.md, what nvcc and ptxas make of the CUDA kernels."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator

from stc_cuda import KernelPlan

from .kernels import (
    ARCHITECTURES,
    ROOT,
    Kernel,
    Layer,
    Object,
    ToolError,
    compile_all,
    nvcc_version,
    plan,
)

DOCUMENT = ROOT / "docs" / "kernels.md"
COMMAND = "python -m bench.kernel_table"
LAYERS = (Layer(256, 16, 32, 32, 5), Layer(128, 16, 16, 16, 5))
PERSISTENT = ("persistent_forward", "persistent_backward")
BESIDE = {"weight_gradient_partials": 128}  # launched once a backward pass; dynamic shared bytes of a thread

_TEXT = """# The CUDA kernels, as compiled

Written by `{command}` with nvcc {version}. It needs no GPU: nothing here was run. A test
compares this file with what the sources give.

Registers, static shared memory and spills are what ptxas reports; dynamic shared memory is what `plan()`
(csrc/plan.cpp) asks for at the shape; blocks a multiprocessor follow from these, from the threads of a block and
from the limits of the compute capability. Architectures with the same figures share a row.
"""
_HEAD = """
| kernel | sm | threads | registers | shared bytes, static + dynamic | blocks a multiprocessor | spilled bytes |
|---|---|---|---|---|---|---|
"""
_REST = """
## All instances

The largest of all instances and architectures ({architectures}).

| kernel | instances | registers | static shared bytes | spilled bytes |
|---|---|---|---|---|
"""


def describe(kernel: Kernel) -> str:
    """Name and template arguments, with the parameters' names."""
    short = {name: re.sub(r"stc::|<.*", "", value) for name, value in kernel.parameters.items()}
    return f"{kernel.name}<{', '.join(f'{name}={value}' for name, value in short.items())}>"


def flags(planned: KernelPlan, attached: bool) -> dict[str, bool]:
    """The boolean template parameters that the launch code takes from the plan or from the call, by name."""
    return {"ResidentWeights": planned.resident_weights, "Attached": attached}


def launched(kernel: Kernel, planned: KernelPlan, attached: bool) -> bool:
    """Whether this instance is the one that a launch with these flags takes."""
    known = flags(planned, attached)
    for name, argument in kernel.parameters.items():
        if argument in ("true", "false"):
            if name not in known:
                raise ToolError(f"flags() in {__file__}: got no {name}, expected every bool parameter of {kernel.name}")
            if str(known[name]).lower() != argument:
                return False
    return True


def launches(kernel: Kernel, layer: Layer) -> Iterator[KernelPlan]:
    """The plans under which this layer launches this instance of a persistent kernel."""
    backward = kernel.name == "persistent_backward"
    for attached in (False, True) if backward else (False,):
        planned = plan(layer, kernel.arch, backward, attached, kernel.neuron)
        sizes = (layer.in_group, layer.kernel, planned.runs_per_warp)
        if planned.kernel == "persistent" and kernel.numbers[:3] == sizes and launched(kernel, planned, attached):
            yield planned


def _rows(objects: list[Object], layer: Layer) -> list[str]:
    same: defaultdict[str, list[int]] = defaultdict(list)
    for name in (*PERSISTENT, *BESIDE):
        for compiled in objects:
            for kernel in sorted(compiled.kernels, key=describe):
                if kernel.name != name:
                    continue
                if name in PERSISTENT:
                    sizes = [(planned.warps * 32, planned.shared_memory) for planned in launches(kernel, layer)]
                elif kernel.numbers[:2] == (layer.in_group, layer.kernel):
                    threads = compiled.largest_blocks[kernel.symbol]
                    sizes = [(threads, threads * BESIDE[name])]
                else:
                    sizes = []
                for threads, dynamic in sizes:
                    shared, blocks = f"{kernel.static_shared:,} + {dynamic:,}", kernel.blocks_per_sm(threads, dynamic)
                    cells = f"{threads} | {kernel.registers} | {shared} | {blocks} | {kernel.spills}"
                    same[f"| `{describe(kernel)}` | {{}} | {cells} |"].append(kernel.arch)
    return [row.format(", ".join(map(str, archs))) for row, archs in sorted(same.items(), key=_order)]


def _order(row: tuple[str, list[int]]) -> tuple[int, str, int]:
    kernel = row[0].split(" | ")[0]
    names = (*PERSISTENT, *BESIDE)
    return next(i for i, name in enumerate(names) if kernel.startswith(f"| `{name}<")), kernel, row[1][0]


def table(objects: list[Object]) -> str:
    """The text of docs/kernels.md."""
    text = _TEXT.format(command=COMMAND, version=nvcc_version())
    for layer in LAYERS:
        text += f"\n## {layer}\n{_HEAD}" + "".join(f"{row}\n" for row in _rows(objects, layer))
    by_name: defaultdict[str, list[Kernel]] = defaultdict(list)
    for compiled in objects:
        for kernel in compiled.kernels:
            by_name[kernel.name].append(kernel)
    text += _REST.format(architectures=", ".join(f"sm_{arch}" for arch in ARCHITECTURES))
    for name, kernels in sorted(by_name.items()):
        instances = len({kernel.arguments for kernel in kernels})
        largest = [max(getattr(k, what) for k in kernels) for what in ("registers", "static_shared", "spills")]
        text += f"| {name} | {instances} | {' | '.join(f'{value:,}' for value in largest)} |\n"
    return text


def main() -> None:
    part = DOCUMENT.with_suffix(".part")
    part.write_text(table(compile_all(len(os.sched_getaffinity(0)))))
    part.replace(DOCUMENT)


if __name__ == "__main__":
    main()
