"""docs/new_neuron.md, done with a copy of the sources: a neuron of one's own takes a struct and a class."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulation import build

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "new_neuron.md").read_text()

# In the copy only. The circuits take most of the time to compile, and optimizing the rest of it.
ONE_CIRCUIT = ("CellList<StcLif, StcPlif, StcLmh>", "CellList<StcLif>")
LESS_OPTIMIZED = ('"-O3", "-g0"', '"-O1", "-g0"')

# The launchers of the kernels that this test does without, for the linker.
NO_CIRCUITS = """
#include "launch.h"
namespace stc::cuda {
template <class T> int64_t general_forward_workspace(const Shape&) { return 0; }
template <class T> int64_t general_backward_workspace(const Shape&, int) { return 0; }
template <class T> int general_forward(const StcForward<T>&, void*, Stream) { return 1; }
template <class T> int general_backward(const StcBackward<T>&, void*, Stream) { return 1; }
template int64_t general_forward_workspace<float>(const Shape&);
template int64_t general_forward_workspace<double>(const Shape&);
template int64_t general_backward_workspace<float>(const Shape&, int);
template int64_t general_backward_workspace<double>(const Shape&, int);
template int general_forward<float>(const StcForward<float>&, void*, Stream);
template int general_forward<double>(const StcForward<double>&, void*, Stream);
template int general_backward<float>(const StcBackward<float>&, void*, Stream);
template int general_backward<double>(const StcBackward<double>&, void*, Stream);
int64_t persistent_forward_workspace(const StcForward<float>&, const Plan&) { return 0; }
int64_t persistent_backward_workspace(const StcBackward<float>&, const Plan&) { return 0; }
int persistent_forward(const StcForward<float>&, const Plan&, void*, Stream) { return 1; }
int persistent_backward(const StcBackward<float>&, const Plan&, void*, Stream) { return 1; }
int device_limits(int*, int64_t*) { return 1; }
const char* error_string(int) { return "left out"; }
}  // namespace stc::cuda
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name}: expected {old!r} once"
    file.write_text(text.replace(old, new))


def copy_sources(to: Path) -> None:
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in ("csrc", "stc_cuda", "tests/cuda_emulation"):
        shutil.copytree(ROOT / folder, to / folder, ignore=ignored)
    # Where an installation has it; the finder of an editable one would know another.
    shutil.copytree(ROOT / "python_ref", to / "stc_cuda" / "reference", ignore=ignored)
    for file in ("setup.py", "build_cuda.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, to)


def add_neuron(to: Path) -> None:
    struct, listed = blocks("cpp")
    cells = to / "csrc" / "cell.h"
    replace(cells, "// ---- the lists", f"{struct}\n// ---- the lists")
    replace(cells, listed.replace(", AdaptiveLif", ""), listed)
    for block in blocks("python"):
        (to / re.match(r"# (\w+\.py)\n", block)[1]).write_text(block)  # type: ignore[index]


def run(folder: Path, *command: str, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder / 'tests'}", **variables}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_page_makes_a_neuron(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    add_neuron(tmp_path)
    replace(tmp_path / "csrc" / "cell.h", *ONE_CIRCUIT)
    replace(tmp_path / "setup.py", *LESS_OPTIMIZED)
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace", STC_CUDA_FORCE_CPU="1", STC_CUDA_FORCE_CUDA="0")
    where = "import stc_cuda, stc_cuda.reference; print(stc_cuda.__file__, stc_cuda.reference.__file__)"
    assert run(tmp_path, "-c", where).count(str(tmp_path)) == 2
    assert run(tmp_path, "check_adaptive.py") == "adaptive_lif is right on auto\n"
    if build.why_not():
        return
    (tmp_path / "no_circuits.cu").write_text(NO_CIRCUITS)
    kernels = "[SOURCES / 'cuda' / 'scan.cu', build.ROOT / 'no_circuits.cu']"
    compiling = f"from cuda_emulation.backend import *; print(compile_kernels('plain', kernels={kernels}))"
    library = run(tmp_path, "-c", compiling).split()[-1]
    command = re.search(r"python -c '(.*)'", PAGE)[1]  # type: ignore[index]
    out = run(tmp_path, "-c", command, STC_EMULATION_LIBRARY=library)
    assert out == "adaptive_lif is right on cuda_emulated\n"
