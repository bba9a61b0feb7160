"""nvcc takes the CUDA sources as they are, without a warning: compile errors need no GPU to show."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("source", ["general.cu", "persistent.cu"])
def test_compiles_without_a_warning(source: str, tmp_path: Path) -> None:
    assert NVCC is not None
    command = [NVCC, "-arch=sm_90", "-Werror", "all-warnings", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    command += ["-c", str(ROOT / "csrc" / "cuda" / source), "-o", str(tmp_path / "object.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
