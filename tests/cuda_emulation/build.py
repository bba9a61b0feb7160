"""Compiles CUDA sources for the CPU: the kernels and the emulation become one shared library.

    plain   as they are, but for the alignment of pointers and the bounds of arrays (-fsanitize=undefined)
    asan    with AddressSanitizer as well
    check   with the hooks of -fsanitize=thread, served by checker.cpp instead of libtsan, and more checks of undefined

    python tests/cuda_emulation/build.py --mode check --name kernels csrc/cuda/*.cu

Objects and libraries go to build/emulation/ and are made again only when something they depend on has changed.

AddressSanitizer has to be in a process from its start. A Python that loads a library of mode asan must run with
``environment("asan")``, which preloads it and lets it go on after a finding, so that the finding becomes a report of
the launch like any other; leaks are not looked for, Python itself has many.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "emulation"
MODES = ("plain", "asan", "check")

COMMON_FLAGS = ["-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
RUNTIME_FLAGS = ["-O2", "-std=c++17"]
KERNEL_FLAGS = [
    "-O1",  # -O2 takes half as long again to compile and runs no faster
    "-fno-strict-aliasing",  # kernels reinterpret memory as vectors
    "-Wno-unknown-pragmas",  # unroll
]
# The checks of -fsanitize=undefined are those that have a handler in undefined.cpp.
MODE_FLAGS = {
    "plain": ["-fsanitize=alignment,bounds"],
    "asan": [
        "-fsanitize=alignment,bounds,address",
        "-fsanitize-recover=address",
        "-fno-omit-frame-pointer",
        # Calls instead of code in place, and none for local arrays, whose bounds are checked: a fifth of the time.
        "--param=asan-instrumentation-with-call-threshold=0",
        "--param=asan-stack=0",
    ],
    "check": [
        "-fsanitize=alignment,bounds,shift,integer-divide-by-zero,signed-integer-overflow,bool,enum,thread",
        "--param=tsan-instrument-func-entry-exit=0",
        "-fno-optimize-sibling-calls",  # a hook knows the source line by its return address
        *(f"-fno-builtin-{name}" for name in ("memcpy", "memmove", "memset")),
    ],
}
# gcc puts no hook before the accesses of these functions, so the calls go to the checker.
CHECKED_FUNCTIONS = ("memcpy", "memmove", "memset")


class BuildError(RuntimeError):
    pass


def cuda_include() -> Path:
    """The folder of the toolkit's headers, which define the vector and half types; no compiler of it is needed."""
    places = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        places.append(str(Path(nvcc).resolve().parents[1]))
    for place in [*places, "/usr/local/cuda"]:
        if place and (Path(place) / "include" / "cuda_runtime.h").exists():
            return Path(place) / "include"
    raise BuildError("no CUDA headers: set CUDA_HOME to a toolkit whose include/ has cuda_runtime.h")


def why_not() -> str | None:
    """What this machine lacks for building anything; None if nothing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the emulation needs Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    try:
        cuda_include()
        _compiler()
    except BuildError as missing:
        return str(missing)
    return None


def parallel_jobs() -> int:
    return max(1, int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0))))


# Faults of kernels go to faults.cpp.
_ASAN_WITHOUT = ("detect_leaks", "halt_on_error", "use_sigaltstack", "handle_segv", "handle_sigbus", "handle_sigfpe")


def environment(mode: str) -> dict[str, str]:
    """What a process that loads a library of this mode needs in its environment beside the usual."""
    if mode != "asan":
        return {}
    libraries = [_output([_compiler(), f"-print-file-name={name}"]) for name in ("libasan.so", "libstdc++.so")]
    return {
        "LD_PRELOAD": " ".join(libraries),  # with libstdc++, or exceptions would be thrown past it
        "ASAN_OPTIONS": ":".join(f"{option}=0" for option in _ASAN_WITHOUT),
    }


def build(
    name: str,
    kernels: Iterable[Path | str],
    mode: str = "plain",
    *,
    host: Iterable[Path | str] = (),
    flags: Sequence[str] = (),
    host_flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    standard: int = 17,
) -> Path:
    """A shared library build/emulation/<mode>/<name>.so of the kernels, the emulation and uninstrumented host code.

    ``kernels`` are the .cu files, compiled with ``flags``; ``host`` are .cpp files (say, the registration with torch),
    compiled with ``host_flags`` instead. ``standard`` is the year of the C++ standard of the kernels.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}; there are {', '.join(MODES)}")
    include = ["-isystem", str(cuda_include())]
    project = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}", f"-I{HERE}"]
    kernel_flags = [*COMMON_FLAGS, *KERNEL_FLAGS, *MODE_FLAGS[mode], f"-std=c++{standard}", *project, *include, *flags]
    runtime_flags = [*COMMON_FLAGS, *RUNTIME_FLAGS, *include]
    runtime = [path for path in sorted(HERE.glob("*.cpp")) if path.name != "operators.cpp"]
    runtime = [path for path in runtime if mode == "check" or path.name != "checker.cpp"]

    jobs = [_Object(Path(path).resolve(), BUILD / mode, kernel_flags, checked=mode == "check") for path in kernels]
    jobs += [
        _Object(Path(path).resolve(), BUILD / mode, [*COMMON_FLAGS, "-O2", *include, *host_flags]) for path in host
    ]
    jobs += [_Object(path, BUILD / "runtime", runtime_flags) for path in runtime]
    library = BUILD / mode / f"{name}.so"
    with ThreadPoolExecutor(parallel_jobs()) as pool:
        list(pool.map(_Object.bring_up_to_date, jobs))
    with _lock(library):
        link = [_compiler(), "-shared", "-Wl,-Bsymbolic,-z,defs", *(str(job.object) for job in jobs)]
        link += ["-fsanitize=address"] if mode == "asan" else []
        link += [*link_flags, "-ldl", "-lpthread"]
        stamp = library.with_suffix(".command")
        made = library.stat().st_mtime_ns if library.exists() else 0
        newer = any(job.object.stat().st_ctime_ns > made for job in jobs)
        if newer or not stamp.exists() or stamp.read_text() != shlex.join(link):
            # To a new file: the old one may be loaded by somebody.
            fresh = library.with_suffix(".fresh")
            _run([*link, "-o", str(fresh)])
            fresh.replace(library)
            stamp.write_text(shlex.join(link))
    return library


class _Object:
    """One source and what it is compiled to."""

    def __init__(self, source: Path, folder: Path, flags: Sequence[str], checked: bool = False) -> None:
        language = ["-x", "c++"] if source.suffix == ".cu" else []
        self.source = source
        self.checked = checked
        self.command = [_compiler(), *flags, *language, "-c", str(source)]
        digest = hashlib.sha256(shlex.join(self.command).encode()).hexdigest()[:12]
        self.object = folder / f"{source.stem}-{digest}.o"
        self.dependencies = self.object.with_suffix(".d")

    def is_current(self) -> bool:
        if not self.object.exists() or not self.dependencies.exists():
            return False
        made = self.object.stat().st_mtime_ns
        files = self.dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        return all(os.path.exists(file) and os.stat(file).st_mtime_ns <= made for file in files)

    def bring_up_to_date(self) -> None:
        with _lock(self.object):
            if not self.is_current():
                self._compile()

    def _compile(self) -> None:
        fresh = self.object.with_suffix(".fresh.o")
        started = time_ns()
        _run([*self.command, "-MMD", "-MF", str(self.dependencies), "-MT", "object", "-o", str(fresh)])
        if self.checked:
            renamed = [f"--redefine-sym={name}=emu_checked_{name}" for name in CHECKED_FUNCTIONS]
            _run(["objcopy", *renamed, str(fresh)])
        os.utime(fresh, ns=(started, started))  # so that a source saved meanwhile counts as newer
        fresh.replace(self.object)


def time_ns() -> int:
    """The clock of the file system, which the times of files are compared with."""
    probe = BUILD / ".clock"
    probe.touch()
    return probe.stat().st_mtime_ns


@contextmanager
def _lock(product: Path) -> Iterator[None]:
    """One maker of a file at a time: workers of pytest-xdist ask for the same libraries."""
    product.parent.mkdir(parents=True, exist_ok=True)
    with product.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compiler() -> str:
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler.split()[0]) is None:
        raise BuildError(f"no compiler {compiler!r}: install g++ or set CXX to one")
    return compiler


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.stderr:
        sys.stderr.write(result.stderr)
    if result.returncode:
        raise BuildError(f"failed: {shlex.join(command)}\n{result.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="+", type=Path, help=".cu files")
    parser.add_argument("--host", nargs="*", type=Path, default=[], help=".cpp files without kernels")
    parser.add_argument("--mode", choices=MODES, default="plain")
    parser.add_argument("--name", default="kernels")
    arguments = parser.parse_args()
    try:
        library = build(arguments.name, arguments.kernels, arguments.mode, host=arguments.host)
    except BuildError as error:
        sys.exit(str(error))
    print(library)
    for name, value in environment(arguments.mode).items():
        print(f"to be loaded with {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
