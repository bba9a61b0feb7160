"""Whether setup.py compiles the CUDA kernels, with which toolkit and for which GPUs. Knows no torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FORCE_CUDA, FORCE_CPU = "STC_CUDA_FORCE_CUDA", "STC_CUDA_FORCE_CPU"
GIB_PER_COMPILER = 2  # what one source that includes torch's headers takes at most; nvcc takes half a GiB
USUAL_HOME = Path("/usr/local/cuda")
DEFAULT_CAPABILITIES = ("8.0", "9.0", "10.0", "12.0")
# The names that torch's own extensions take in TORCH_CUDA_ARCH_LIST.
NAMED_CAPABILITIES = {
    "Volta+Tegra": "7.2",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
    "Rubin": "10.7+PTX",
}


class BuildError(Exception):
    """What was asked of the build cannot be done; the text says why and what to do."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can compile the kernels for the torch at hand."""

    home: Path
    version: str
    known: frozenset[str]  # numbers of the architectures that its compiler takes: "80", "90", ...

    @property
    def library_dir(self) -> Path:
        return next((self.home / name for name in ("lib64", "lib") if (self.home / name).is_dir()), self.home / "lib64")


def ask_nvcc(nvcc: Path) -> tuple[str, frozenset[str]]:
    """Version and known architectures of a compiler; an empty version when it does not run."""
    try:
        version, listed = (
            subprocess.run([str(nvcc), option], capture_output=True, text=True, check=True).stdout
            for option in ("--version", "--list-gpu-arch")
        )
    except (OSError, subprocess.CalledProcessError):
        return "", frozenset()
    found = re.search(r"release (\d+\.\d+)", version)
    return found[1] if found else "", frozenset(re.findall(r"compute_(\d+)", listed))


def find_toolkit(environ: Mapping[str, str], torch_cuda: str, usual_home: Path = USUAL_HOME) -> Toolkit | list[str]:
    """The first usable toolkit, or what each place that was looked at lacks.

    A folder counts only with its headers: the parent of a wrapper called nvcc on the PATH is none.
    """
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    places = [(Path(environ[name]), name) for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    places += [(Path(on_path).parents[1], "nvcc on the PATH")] if on_path else []
    lacking = []
    for home, origin in [*places, (usual_home, "the usual place")]:
        missing = [name for name in ("include/cuda_runtime.h", "bin/nvcc") if not (home / name).exists()]
        if missing:
            lacking.append(f"{home} ({origin}) has no {' and no '.join(missing)}")
            continue
        version, known = ask_nvcc(home / "bin" / "nvcc")
        if version.split(".")[0] == torch_cuda.split(".")[0]:
            return Toolkit(home, version, known)
        got = f"is CUDA {version}" if version else "has a bin/nvcc that does not run"
        lacking.append(f"{home} ({origin}) {got}")
    return lacking


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        raise BuildError(f"{name}: got {value!r}, expected 0 or 1")
    return value == "1"


def choose_toolkit(
    environ: Mapping[str, str], torch_version: str, torch_cuda: str | None, usual_home: Path = USUAL_HOME
) -> Toolkit | str:
    """The toolkit to compile the CUDA kernels with, or the reason why they are left out.

    Raises:
        BuildError: the environment forces what cannot be, or two things that exclude each other.
    """
    force_cuda, force_cpu = _flag(environ, FORCE_CUDA), _flag(environ, FORCE_CPU)
    if force_cuda and force_cpu:
        raise BuildError(f"{FORCE_CUDA}=1 and {FORCE_CPU}=1 exclude each other; unset one of them")
    if force_cpu:
        return f"{FORCE_CPU}=1 was set"
    if torch_cuda is None:
        reason = f"torch {torch_version} is a build without CUDA"
        remedy = "install a torch that is built for CUDA"
    else:
        found = find_toolkit(environ, torch_cuda, usual_home)
        if isinstance(found, Toolkit):
            return found
        major = torch_cuda.split(".")[0]
        remedy = f"install the toolkit of CUDA {major}, or set CUDA_HOME to its folder"
        reason = f"torch {torch_version} needs a CUDA {major} toolkit and none was found: {'; '.join(found)}"
    if force_cuda:
        raise BuildError(f"{FORCE_CUDA}=1 was set, but {reason}. Either {remedy}, or unset {FORCE_CUDA}")
    return reason


def choose_architectures(listed: str, known: Collection[str], visible: Sequence[tuple[int, int]] = ()) -> list[str]:
    """What to compile for, as nvcc calls it: ``["sm_80", "sm_90", "compute_90"]``; ``compute_`` stands for PTX.

    Args:
        listed: ``TORCH_CUDA_ARCH_LIST`` in torch's syntax; empty = the default.
        known: numbers of the architectures that the compiler takes.
        visible: compute capabilities of the GPUs of this machine, for ``native``.
    """
    if not listed.strip():
        capabilities = [entry for entry in DEFAULT_CAPABILITIES if entry.replace(".", "") in known]
        if not capabilities:
            raise BuildError(f"nvcc compiles for {_spell(known)} and so for none of {', '.join(DEFAULT_CAPABILITIES)}")
        capabilities[-1] += "+PTX"
    elif listed == "native":
        if not visible:
            raise BuildError("TORCH_CUDA_ARCH_LIST: got 'native', and torch sees no GPU here; name the architectures")
        capabilities = [f"{major}.{minor}" for major, minor in sorted(set(visible))]
    else:
        entries = re.split(r"[\s;]+", listed.strip(" ;"))
        capabilities = [part for entry in entries for part in NAMED_CAPABILITIES.get(entry, entry).split(";")]
    names = []
    for entry in capabilities:
        parsed = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not parsed or parsed[1] + parsed[2] not in known:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: got {entry!r}, expected a compute capability that this nvcc compiles for "
                f"({_spell(known)}; 9.0+PTX adds PTX for later GPUs) or one of {', '.join(NAMED_CAPABILITIES)}"
            )
        number = parsed[1] + parsed[2] + parsed[3]
        names += [f"sm_{number}", *([f"compute_{number}"] if parsed[4] else [])]
    return list(dict.fromkeys(names))


def _spell(known: Collection[str]) -> str:
    return ", ".join(f"{number[:-1]}.{number[-1]}" for number in sorted(known, key=int))


def architecture_flags(names: Sequence[str]) -> list[str]:
    """The options of nvcc for what :func:`choose_architectures` returned."""
    return [f"-gencode=arch=compute_{name.split('_')[1]},code={name}" for name in names]


def nvcc_environment(environ: Mapping[str, str], jobs: int, sources: int, architectures: int) -> dict[str, str]:
    """Lets nvcc compile the architectures of one source side by side where that leaves jobs idle.

    In the environment and not on the command line: the number of jobs follows the memory that is free, and another
    command line would compile everything anew.
    """
    threads = max(1, min(architectures, jobs // max(1, sources)))
    return {"NVCC_APPEND_FLAGS": f"{environ.get('NVCC_APPEND_FLAGS', '')} --threads={threads}".strip()}


def parallel_jobs() -> int:
    """As many compilers at once as there are cores and as fit into the memory that is free now, one at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gib_free = [cores * GIB_PER_COMPILER]
    for path, pattern, unit in (
        ("/proc/meminfo", r"MemAvailable:\s*(\d+) kB", 2**20),
        ("/sys/fs/cgroup/memory.max", r"(\d+)", 2**30),
    ):
        if os.path.exists(path) and (found := re.search(pattern, Path(path).read_text())):
            gib_free.append(int(found[1]) // unit)
    return max(1, min(gib_free) // GIB_PER_COMPILER)
