"""bench/gpu_check.sh on a machine without a GPU: its steps, limits and report, with commands that do nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import sanitize

ROOT = Path(__file__).resolve().parents[1]
STUBS = {
    "nvcc": "",
    "python3": f"""
case "$*" in
  *gpu_report*) exec {sys.executable} "$@" ;;
  *xdist*) exit 1 ;;
  *"-k gpu"*) [ "$TWINS" = 0 ] && echo "9 passed" || echo "a twin is wrong"; exit "$TWINS" ;;
  *"-m pytest"*) echo "$SUITE" ;;
  *"--device cuda"*) for last; do :; done; echo '{{"rows": [1]}}' > "$last"; echo "a table" ;;
  -) echo 9.0 ;;
  *) echo "done for $TORCH_CUDA_ARCH_LIST" ;;
esac""",
    "compute-sanitizer": """[ "$2" != racecheck ] || sleep $RACECHECK""",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the sources as the script itself needs, and the stubs in bin/."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "bench", root / "bench", ignore=shutil.ignore_patterns("__pycache__", "results"))
    for folder in ("stc_cuda", "python_ref", "bin"):
        (root / folder).mkdir()
    for name, text in STUBS.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (root / "bin" / name).chmod(0o755)
    return root


def check(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {
        **os.environ,
        "PATH": path,
        "STC_CUDA_COMMIT": "abc",
        "TWINS": "0",
        "RACECHECK": "0",
        "SUITE": "7 passed",
        **environment,
    }
    variables.pop("PYTHONPATH", None)
    command = ["bash", str(root / "bench" / "gpu_check.sh"), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


def test_a_suite_in_which_nothing_passed_has_failed(checkout: Path) -> None:
    done = check(checkout, SUITE="434 skipped")
    assert done.returncode == 1
    assert "| suite | failed: no test passed |" in done.stdout


def test_every_step_passes(checkout: Path) -> None:
    done = check(checkout)
    assert done.returncode == 0, done.stderr
    results = checkout / "bench" / "results"
    assert sorted(path.name for path in results.iterdir()) == ["gpu_check.json", "gpu_check.log"]
    found = json.loads((results / "gpu_check.json").read_text())
    names = ["build", "import", "suite", "twins", "latency", "memcheck", "racecheck", "initcheck"]
    assert [step["name"] for step in found["steps"]] == names
    assert {step["status"] for step in found["steps"]} == {"passed"}
    assert found["steps"][0]["said"] == "done for 9.0"
    assert found["latency"] == {"rows": [1]}
    assert found["environment"]["commit"] == "abc"
    assert found["environment"]["torch"] == torch.__version__
    assert "| build | passed |" in done.stdout
    assert "a table" in done.stdout
    check(checkout)  # a second time, over what the first has left
    assert json.loads((results / "gpu_check.json").read_text())["steps"][0]["status"] == "passed"


def test_goes_on_after_failed_and_slow_steps(checkout: Path, tmp_path: Path) -> None:
    done = check(checkout, str(tmp_path / "results"), TWINS="3", RACECHECK="60", GPU_CHECK_SECONDS="6")
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "results" / "gpu_check.json").read_text())
    status = {step["name"]: step["status"] for step in found["steps"]}
    assert status.pop("twins") == "failed with 3"
    assert status.pop("racecheck") == "over its time limit"
    assert status.pop("initcheck") == "no time left"
    assert set(status.values()) == {"passed"}
    assert found["latency"] == {"rows": [1]}
    assert "a twin is wrong" in done.stdout
    assert "a twin is wrong" in (tmp_path / "results" / "gpu_check.log").read_text()


def test_sanitizer_that_is_missing_is_skipped(checkout: Path) -> None:
    if shutil.which("compute-sanitizer"):
        pytest.skip("compute-sanitizer is installed")
    (checkout / "bin" / "compute-sanitizer").unlink()
    done = check(checkout)
    assert done.returncode == 0, done.stderr
    assert "| memcheck | skipped: compute-sanitizer is not installed |" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would start")
def test_says_that_there_is_no_gpu(checkout: Path) -> None:
    done = check(checkout, PYTHON=sys.executable)
    assert done.returncode == 2
    assert f"torch {torch.__version__} sees no GPU; run this on a machine with an NVIDIA GPU" in done.stderr


def test_says_what_else_is_wrong(checkout: Path) -> None:
    done = check(checkout, "one", "two")
    assert done.returncode == 2
    assert "got 2 arguments, expected at most one" in done.stderr


def test_watched_calls_run() -> None:
    """bench/sanitize.py calls the layer as it is; on the CPU, its smallest shape."""
    assert sanitize.run(8, 3, 3, 5, torch.float32, False, device="cpu") == 11
    assert sanitize.run(8, 3, 3, 5, torch.float32, True, device="cpu") == 10  # none of the initial spikes
