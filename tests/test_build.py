"""What gets compiled: the choices of setup.py, and what the extension says of itself against what it holds."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import build_cuda
import stc_cuda
from build_cuda import BuildError, Toolkit, choose_architectures, choose_toolkit

ROOT = Path(__file__).resolve().parents[1]
INFO = stc_cuda.build_info()
EXTENSION = importlib.import_module("stc_cuda._C").__file__
KNOWN = {"75", "80", "86", "90", "100", "103", "120", "121"}
needs_cuda_build = pytest.mark.skipif(INFO["cuda"] is None, reason="the build has no CUDA kernels")

MakeHome = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path) -> MakeHome:
    """Makes folders that look like a toolkit, or almost."""

    def make(name: str, release: str = "13.0", header: bool = True, nvcc: bool = True) -> Path:
        folder = tmp_path / name
        (folder / "bin").mkdir(parents=True)
        (folder / "lib64").mkdir()
        if header:
            (folder / "include").mkdir()
            (folder / "include" / "cuda_runtime.h").touch()
        if nvcc:
            script = folder / "bin" / "nvcc"
            script.write_text(
                "#!/bin/sh\n"
                f"[ $1 = --version ] && echo 'Cuda compilation tools, release {release}, V{release}.88'\n"
                "[ $1 = --list-gpu-arch ] && echo compute_80 && echo compute_90\n"
                "exit 0\n"
            )
            script.chmod(0o755)
        return folder

    return make


def choose(environ: dict[str, str], usual: Path, torch_cuda: str | None = "13.0") -> Toolkit | str:
    return choose_toolkit(environ, "2.14.1", torch_cuda, usual)


def test_places_are_tried_in_order(home: MakeHome) -> None:
    first, second, third, fourth = (home(name) for name in ("first", "second", "third", "fourth"))
    environ = {"CUDA_HOME": str(first), "CUDA_PATH": str(second), "PATH": str(third / "bin")}
    for expected in (first, second, third):
        found = choose(environ, fourth)
        assert isinstance(found, Toolkit)
        assert found == Toolkit(expected, "13.0", frozenset({"80", "90"}))
        assert found.library_dir == expected / "lib64"
        (expected / "include" / "cuda_runtime.h").unlink()
    found = choose(environ, fourth)
    assert isinstance(found, Toolkit)
    assert found.home == fourth


def test_the_folder_of_a_wrapper_is_no_toolkit(home: MakeHome) -> None:
    wrapper, usual = home("local", header=False), home("cuda")
    found = choose({"PATH": str(wrapper / "bin")}, usual)
    assert isinstance(found, Toolkit)
    assert found.home == usual


def test_a_toolkit_of_another_major_version_is_passed_by(home: MakeHome, tmp_path: Path) -> None:
    old, new = home("old", release="12.9"), home("new", release="13.2")
    environ = {"CUDA_HOME": str(old), "PATH": ""}
    found = choose(environ, new)
    assert isinstance(found, Toolkit)
    assert (found.home, found.version) == (new, "13.2")
    reason = choose(environ, tmp_path / "none")
    assert isinstance(reason, str)
    assert f"{old} (CUDA_HOME) is CUDA 12.9" in reason
    assert "CUDA 13" in reason


def test_the_reason_names_what_each_place_lacks(home: MakeHome, tmp_path: Path) -> None:
    no_header, no_nvcc = home("no_header", header=False), home("no_nvcc", nvcc=False)
    broken = home("broken")
    (broken / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    environ = {"CUDA_HOME": str(no_header), "CUDA_PATH": str(no_nvcc), "PATH": str(broken / "bin")}
    reason = choose(environ, tmp_path / "none")
    assert isinstance(reason, str)
    for part in (
        f"{no_header} (CUDA_HOME) has no include/cuda_runtime.h;",
        f"{no_nvcc} (CUDA_PATH) has no bin/nvcc;",
        f"{broken} (nvcc on the PATH) has a bin/nvcc that does not run;",
        f"{tmp_path / 'none'} (the usual place) has no include/cuda_runtime.h and no bin/nvcc",
    ):
        assert part in reason


def test_force_flags(home: MakeHome, tmp_path: Path) -> None:
    usual, none = home("cuda"), tmp_path / "none"
    force_cuda, force_cpu = {"STC_CUDA_FORCE_CUDA": "1", "PATH": ""}, {"STC_CUDA_FORCE_CPU": "1", "PATH": ""}
    assert isinstance(choose(force_cuda, usual), Toolkit)
    assert choose(force_cpu, usual) == "STC_CUDA_FORCE_CPU=1 was set"
    assert isinstance(choose({"STC_CUDA_FORCE_CPU": "0", "STC_CUDA_FORCE_CUDA": ""}, usual), Toolkit)
    with pytest.raises(BuildError, match="exclude each other"):
        choose({**force_cuda, **force_cpu}, usual)
    with pytest.raises(BuildError, match="STC_CUDA_FORCE_CPU: got 'yes', expected 0 or 1"):
        choose({"STC_CUDA_FORCE_CPU": "yes"}, usual)
    with pytest.raises(BuildError, match=r"CUDA 13 toolkit and none was found.*install.*CUDA_HOME.*unset"):
        choose(force_cuda, none)
    with pytest.raises(BuildError, match=r"2\.14\.1 is a build without CUDA.*install a torch"):
        choose(force_cuda, usual, torch_cuda=None)
    assert choose({}, usual, torch_cuda=None) == "torch 2.14.1 is a build without CUDA"


@pytest.mark.parametrize(
    ("listed", "known", "expected"),
    [
        ("", KNOWN, "sm_80 sm_90 sm_100 sm_120 compute_120"),
        ("  ", {"75", "80", "90"}, "sm_80 sm_90 compute_90"),
        ("9.0", KNOWN, "sm_90"),
        ("8.0;9.0+PTX", KNOWN, "sm_80 sm_90 compute_90"),
        ("8.6 9.0a;12.0", KNOWN, "sm_86 sm_90a sm_120"),
        ("8.0;8.0;", KNOWN, "sm_80"),
        ("Ampere", KNOWN, "sm_80 sm_86 compute_86"),
        ("Turing;Hopper", KNOWN, "sm_75 compute_75 sm_90 compute_90"),
        ("native", KNOWN, "sm_80 sm_90"),
    ],
)
def test_architectures(listed: str, known: set[str], expected: str) -> None:
    assert choose_architectures(listed, known, visible=[(9, 0), (8, 0), (9, 0)]) == expected.split()


@pytest.mark.parametrize("entry", ["7.0", "sm_90", "9", "9.0+ptx", "90", "Pascal", "8.0,9.0", "9.0;nonsense"])
def test_architectures_that_cannot_be(entry: str) -> None:
    with pytest.raises(BuildError, match=r"TORCH_CUDA_ARCH_LIST: got '.*', expected .*\(7\.5, 8\.0.*Hopper"):
        choose_architectures(entry, KNOWN)


def test_architectures_when_there_is_nothing_to_choose_from() -> None:
    with pytest.raises(BuildError, match=r"nvcc compiles for 7\.0, 7\.5 and so for none of 8\.0"):
        choose_architectures("", {"70", "75"})
    with pytest.raises(BuildError, match="'native', and torch sees no GPU"):
        choose_architectures("native", KNOWN)


def test_flags_of_nvcc() -> None:
    flags = build_cuda.architecture_flags(["sm_90", "sm_90a", "compute_90"])
    assert flags == [
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]


@pytest.mark.parametrize(
    ("jobs", "sources", "architectures", "threads"), [(1, 2, 4, 1), (2, 2, 4, 1), (16, 2, 4, 4), (16, 4, 5, 4)]
)
def test_nvcc_uses_the_jobs_that_are_left(jobs: int, sources: int, architectures: int, threads: int) -> None:
    environ = build_cuda.nvcc_environment({"NVCC_APPEND_FLAGS": "-lineinfo"}, jobs, sources, architectures)
    assert environ == {"NVCC_APPEND_FLAGS": f"-lineinfo --threads={threads}"}


def test_build_info_agrees_with_itself() -> None:
    assert (INFO["cuda"] is None) == (INFO["cuda_skipped"] is not None) == (INFO["cuda_architectures"] == [])
    if INFO["cuda"] is not None:
        assert torch.version.cuda is not None
        assert INFO["cuda"].split(".")[0] == torch.version.cuda.split(".")[0]
        assert all(re.fullmatch(r"(sm|compute)_\d+[af]?", name) for name in INFO["cuda_architectures"])


def test_cuda_is_registered_if_it_was_compiled() -> None:
    compiled = INFO["cuda"] is not None
    assert ("cuda" in stc_cuda.backend_names()) == compiled
    for name in ("stc_forward", "stc_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"stc_cuda::{name}", "CUDA") == compiled
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"stc_cuda::{name}", "CPU")


def _cuobjdump() -> str:
    packages = ("triton/backends/nvidia/bin", "nvidia/cu13/bin", "nvidia/cuda_cuobjdump/bin")
    places = [Path(folder) / package for package in packages for folder in sys.path]
    path = os.pathsep.join(map(str, [os.environ["PATH"], build_cuda.USUAL_HOME / "bin", *places]))
    found = shutil.which("cuobjdump", path=path)
    assert found is not None, "needs cuobjdump: pip install triton, or nvidia-cuda-cuobjdump"
    return found


@needs_cuda_build
def test_the_extension_holds_the_architectures_that_it_names() -> None:
    def listed(option: str, prefix: str) -> set[str]:
        done = subprocess.run([_cuobjdump(), option, EXTENSION], capture_output=True, text=True)
        numbers = re.findall(r"\.sm_(\d+[af]?)\.", done.stdout)
        return {f"{prefix}_{number}" for number in numbers}

    assert listed("-lelf", "sm") | listed("-lptx", "compute") == set(INFO["cuda_architectures"])


def _import(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("cuda", "skipped", "torch_cuda", "warns"),
    [
        (None, "there was no toolkit", "13.0", True),
        (None, "STC_CUDA_FORCE_CPU=1 was set", "13.0", False),
        (None, "torch 2.14.1 is a build without CUDA", None, False),
        ("13.0", None, "13.0", False),
    ],
)
def test_an_import_that_misses_the_kernels_warns_once(
    cuda: str | None, skipped: str | None, torch_cuda: str | None, warns: bool
) -> None:
    build = {"cuda": cuda, "cuda_skipped": skipped}
    done = _import(
        "import sys, types, torch\n"
        f"torch.ops.load_library({EXTENSION!r})\n"
        f"torch.version.cuda = {torch_cuda!r}\n"
        "module = types.ModuleType('stc_cuda._extension')\n"
        f"module.extension = types.SimpleNamespace(build_info=lambda: {build!r})\n"
        "sys.modules['stc_cuda._extension'] = module\n"
        "import stc_cuda, stc_cuda.models\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning: stc_cuda was built without CUDA kernels") == int(warns), done.stderr
    if warns:
        assert "there was no toolkit" in done.stderr
        assert "STC_CUDA_FORCE_CUDA=1 pip install" in done.stderr


def test_importing_this_build_warns_only_where_it_should() -> None:
    done = _import("import stc_cuda")
    assert done.returncode == 0, done.stderr
    expected = torch.version.cuda is not None and INFO["cuda"] is None and "FORCE_CPU" not in INFO["cuda_skipped"]
    assert ("RuntimeWarning" in done.stderr) == expected, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "csrc" / "cuda").iterdir()), ids=lambda path: path.name)
def test_kernels_know_no_torch(path: Path) -> None:
    includes = re.findall(r'^\s*#\s*include\s*["<]([^">]+)[">]', path.read_text(), flags=re.MULTILINE)
    assert not [name for name in includes if re.match(r"(ATen|c10|torch|pybind11)/|Python\.h|ops\.h", name)]


def test_every_source_is_listed_once() -> None:
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    listed = [line.split()[1] for line in lines if not line.startswith("#")]
    there = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.c*") if path.suffix in (".cpp", ".cu")]
    assert sorted(listed) == sorted(there)
