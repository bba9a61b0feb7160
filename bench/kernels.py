"""The CUDA kernels as nvcc and ptxas leave them: registers, memory, warnings, instructions. Needs no GPU.

Every source is compiled for every architecture once; what was found stays in build/cuda_objects until the sources, the
compiler or the command change.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stc_cuda import KernelPlan, kernel_plan

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_objects"


@dataclass(frozen=True)
class Architecture:
    """Limits by compute capability, from the CUDA C++ programming guide."""

    shared_block: int  # KiB of shared memory that one block may have
    shared_sm: int  # KiB of a multiprocessor
    threads: int  # resident on a multiprocessor
    blocks: int  # resident on a multiprocessor


ARCHITECTURES = {
    80: Architecture(163, 164, 2048, 32),
    86: Architecture(99, 100, 1536, 16),
    89: Architecture(99, 100, 1536, 24),
    90: Architecture(227, 228, 2048, 32),
    100: Architecture(227, 228, 2048, 32),
    120: Architecture(99, 100, 1536, 24),
}
REGISTERS_SM, REGISTER_UNIT, SM_PARTITIONS = 65536, 256, 4  # a warp takes whole units, in one of four partitions
RESERVED_SHARED = 1024  # bytes that the driver takes of each block's

# Warnings are counted, not made errors: ptxas writes no object after an error, and the figures are wanted then, too.
FLAGS = ("-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage", "-I", str(CSRC), "-I", str(CSRC / "cuda"))


class ToolError(RuntimeError):
    """A tool is missing, or refused a source."""


def _toolkit() -> list[Path]:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return [Path(home) / "bin" for home in homes if home]


def find_nvcc() -> str | None:
    found = (shutil.which("nvcc", path=str(place)) for place in _toolkit())
    return next((path for path in found if path), None) or shutil.which("nvcc")


def find_cuobjdump() -> str | None:
    """From the toolkit, from a package, or from triton, which ships it; it looks for nvdisasm beside itself."""
    packages = [
        Path(p)
        for name in ("nvidia", "triton")
        if (spec := importlib.util.find_spec(name))
        for p in spec.submodule_search_locations or ()
    ]
    places = [*_toolkit(), *(p / "cu13" / "bin" for p in packages), *(p / "backends/nvidia/bin" for p in packages)]
    found = (shutil.which("cuobjdump", path=str(place)) for place in places)
    return next((path for path in found if path), None) or shutil.which("cuobjdump")


def _output(command: list[str], given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode:
        raise ToolError(f"{' '.join(command)} ends with {done.returncode}: {done.stderr[-4000:]}")
    return done.stdout


@functools.cache
def nvcc_version() -> str:
    nvcc = find_nvcc()
    if nvcc is None:
        raise ToolError("no nvcc: put the CUDA toolkit's bin folder on PATH, or set CUDA_HOME")
    return re.search(r"V([\d.]+)", _output([nvcc, "--version"]))[1]  # type: ignore[index]


@dataclass(frozen=True)
class Kernel:
    """One instance of one kernel on one architecture; bytes and registers as ptxas reports them."""

    symbol: str
    name: str
    arguments: tuple[str, ...]  # of the template
    arch: int
    registers: int
    static_shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(self.arguments)}> for sm_{self.arch}"

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads

    @property
    def parameters(self) -> dict[str, str]:
        """The template arguments by the names that the sources give them."""
        return dict(zip(parameter_names()[self.name], self.arguments, strict=True))

    @property
    def neuron(self) -> str:
        """Of a persistent kernel: ``"stclif"`` of the argument ``stc::StcLif<stc::cuda::FastMath>``."""
        return re.match(r"(?:stc::)?(\w+)<", self.parameters["Cell"])[1].lower()  # type: ignore[index]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The template's integers in front: channels a group, kernel size, runs a warp."""
        leading = []
        for argument in self.arguments:
            if not argument.isdigit():
                break
            leading.append(int(argument))
        return tuple(leading)

    def blocks_per_sm(self, threads: int, dynamic_shared: int) -> int:
        """Blocks resident on a multiprocessor."""
        limits = ARCHITECTURES[self.arch]
        units = -(-self.registers * 32 // REGISTER_UNIT)
        warps = REGISTERS_SM // REGISTER_UNIT // SM_PARTITIONS // units * SM_PARTITIONS
        shared = self.static_shared + dynamic_shared
        return min(
            warps // -(-threads // 32),
            limits.threads // threads,
            limits.blocks,
            limits.shared_sm * 1024 // (shared + RESERVED_SHARED) if shared <= limits.shared_block * 1024 else 0,
        )


@dataclass(frozen=True)
class Object:
    """One source compiled for one architecture."""

    source: str
    arch: int
    log: str
    instructions: dict[str, dict[str, int]]  # how often each stands in each kernel's machine code, by symbol
    largest_blocks: dict[str, int]  # threads by __launch_bounds__, by symbol

    @functools.cached_property
    def warnings(self) -> list[str]:
        lines = [line for line in self.log.splitlines() if re.search(r"\bwarning\b", line, re.IGNORECASE)]
        return [f"{self.source} for sm_{self.arch}: {line}" for line in demangle("\n".join(lines)).splitlines()]

    @functools.cached_property
    def kernels(self) -> list[Kernel]:
        entries: list[list[str]] = []
        about = ""
        for line in self.log.splitlines():
            if entry := re.search(r"Compiling entry function '(\w+)'", line):
                entries.append([entry[1]])
            elif properties := re.search(r"Function properties for (\w+)", line):
                about = properties[1]  # a function that a kernel calls has properties, too
            elif numbers := re.match(r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", line):
                if about == entries[-1][0]:
                    entries[-1] += numbers.groups()
            elif used := re.search(r"Used (\d+) registers(.*)", line):
                entries[-1] += used.groups()
        names = demangle("\n".join(entry[0] for entry in entries)).splitlines()
        found = []
        for (symbol, stack, stores, loads, registers, rest), pretty in zip(entries, names, strict=True):
            name, arguments = template_of(pretty)
            shared = re.search(r"(\d+) bytes smem", rest)
            static = int(shared[1]) if shared else 0
            found.append(
                Kernel(symbol, name, arguments, self.arch, int(registers), static, int(stack), int(stores), int(loads))
            )
        return found


def count_instructions(sass: str) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    pattern = r"^(?:\s+Function : (\w+)|\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*))"
    for function, instruction in re.findall(pattern, sass, re.MULTILINE):
        if function:
            here = counts.setdefault(function, Counter())
        else:
            here[instruction] += 1
    return {symbol: dict(count) for symbol, count in counts.items()}


def find_largest_blocks(elf: str) -> dict[str, int]:
    found, symbol, attribute = {}, "", ""
    for line in elf.splitlines():
        if section := re.match(r"\.nv\.info\.(\w+)$", line):
            symbol = section[1]
        elif "Attribute:" in line:
            attribute = line.split()[-1]
        elif attribute == "EIATTR_MAX_THREADS" and (value := re.match(r"\s*Value:\s*(0x[0-9a-f]+)", line)):
            found[symbol] = int(value[1], 16)
    return found


def demangle(text: str) -> str:
    return _output(["c++filt"], text)


def template_of(function: str) -> tuple[str, tuple[str, ...]]:
    """Name and template arguments of a demangled kernel: ``("f", ("16", "true"))`` of ``void ns::f<16, true>(int)``."""
    head = re.match(r"(?:void )?(?:stc::)?(?:cuda::)?(?:\(anonymous namespace\)::)?(\w+)(<?)", function)
    if head is None:
        raise ValueError(f"kernel name: got {function!r}, expected a function of namespace stc::cuda")
    arguments, depth, start = [], 0, head.end()
    if not head[2]:
        return head[1], ()
    for i in range(start, len(function)):
        c = function[i]
        if depth == 0 and c in ",>":
            arguments.append(function[start:i].strip())
            start = i + 1
            if c == ">":
                break
        depth += (c in "<(") - (c in ">)")
    return head[1], tuple(arguments)


@functools.cache
def parameter_names() -> dict[str, tuple[str, ...]]:
    """The template parameters of every kernel, as the sources name them."""
    bounds = r"(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?"
    found = {}
    for path in [*headers(), *sources()]:
        for parameters, name in re.findall(
            rf"template <((?:[^<>]|<[^<>]*>)*)>\s*__global__ void {bounds}(\w+)\(", path.read_text()
        ):
            found[name] = tuple(parameter.split()[-1] for parameter in parameters.split(","))
    return found


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _digest(paths: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256("\0".join(more).encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def sources() -> list[Path]:
    return sorted(CSRC.glob("cuda/**/*.cu"))


def headers() -> list[Path]:
    return sorted(path for pattern in ("*.h", "*.cuh") for path in CSRC.rglob(pattern))


def compile_one(source: Path, arch: int, folder: Path = BUILD, wait: bool = True) -> Object | None:
    """One source for one architecture; None when another process is at it and ``wait`` is false.

    Raises:
        ToolError: nvcc or cuobjdump is missing, or nvcc refuses the source; the text is its own.
    """
    version, cuobjdump = nvcc_version(), find_cuobjdump()
    if cuobjdump is None:
        raise ToolError(
            "no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or install the CUDA toolkit's"
        )
    command = [str(find_nvcc()), f"-arch=sm_{arch}", *FLAGS, "-c", str(source), "-o"]
    stem = f"{source.stem}-sm_{arch}"
    path = folder / f"{stem}-{_digest([source, *headers(), Path(__file__)], version, *command)}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{stem}.lock", wait) as free:
        if not free:
            return None
        if not path.exists():
            for old in folder.glob(f"{stem}-*"):
                old.unlink()
            with tempfile.TemporaryDirectory() as temporary:
                binary = str(Path(temporary) / "object.o")
                done = subprocess.run([*command, binary], capture_output=True, text=True)
                if done.returncode:
                    end = done.stderr[-6000:]
                    raise ToolError(f"{source.name} for sm_{arch}: nvcc ends with {done.returncode}\n{end}")
                instructions = count_instructions(_output([cuobjdump, "--dump-sass", binary]))
                blocks = find_largest_blocks(_output([cuobjdump, "--dump-elf", binary]))
            part = path.with_suffix(".part")
            part.write_text(json.dumps([done.stderr, instructions, blocks]))
            part.replace(path)
    return Object(source.name, arch, *json.loads(path.read_text()))


def compile_all(jobs: int) -> list[Object]:
    """All sources for all architectures. Processes that ask at the same time share the work."""
    tasks = [(source, arch) for source in sources() for arch in ARCHITECTURES]
    found: dict[tuple[Path, int], Object | None] = {}
    for wait in (False, True):  # first what nobody is at, then what others have left undone
        missing = [task for task in tasks if found.get(task) is None]
        with ThreadPoolExecutor(jobs) as pool:
            results = pool.map(functools.partial(_compile_task, wait=wait), missing)
            found.update(zip(missing, results, strict=True))
    return [compiled for task in tasks if (compiled := found[task])]


def _compile_task(task: tuple[Path, int], wait: bool) -> Object | None:
    return compile_one(*task, wait=wait)


# ---- what plan() asks for ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One layer of the persistent kernels."""

    channels: int
    groups: int
    height: int
    width: int
    kernel: int

    @property
    def in_group(self) -> int:
        return self.channels // self.groups

    def __str__(self) -> str:
        shape = f"{self.channels} channels, {self.groups} groups, {self.height}x{self.width}"
        return f"{shape}, K={self.kernel}"


def plan(layer: Layer, arch: int, backward: bool, attached: bool, neuron: str) -> KernelPlan:
    """What :func:`stc_cuda.kernel_plan` gives a layer on a GPU of this architecture."""
    return kernel_plan(
        (1, 1, layer.channels, layer.height, layer.width),
        layer.kernel,
        layer.groups,
        neuron=neuron,
        backward=backward,
        gradient_detach=not attached,
        device="cuda",
        capability=divmod(arch, 10),
        shared_memory=ARCHITECTURES[arch].shared_block * 1024,
    )
