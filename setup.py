"""Compiles the extension stc_cuda._C and says which folders are packages; the rest is in pyproject.toml."""

import os
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "stc-cuda is compiled against the torch that it will run with, and this build sees none; type: "
        "pip install 'torch>=2.11' 'setuptools>=77' ninja && pip install --no-build-isolation ."
    )

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
    sys.exit(
        f"stc-cuda needs torch 2.11 or newer, and this environment has {torch.__version__}; type: "
        "pip install --upgrade 'torch>=2.11' && pip install --no-build-isolation ."
    )

GIB_PER_COMPILER = 2  # what one source that includes torch's headers takes at most


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


class Build(BuildExtension):
    """Always asks ninja, which knows what is out of date (headers, flags), in a folder that outlives the build."""

    def finalize_options(self):
        super().finalize_options()
        self.force = True
        self.build_temp = f"build/{sys.implementation.cache_tag}-torch-{torch.__version__}"


version = re.search(r'__version__ = "(.+)"', Path("stc_cuda/_version.py").read_text())[1]
listed = [line.split() for line in Path("csrc/sources.txt").read_text().splitlines() if not line.startswith("#")]
sources = [path for part, path in listed if part in ("core", "torch")]

if sys.platform == "win32":
    compile_args, link_args = ["/O2", "/openmp"], []
else:
    link_args = ["-fopenmp"] if sys.platform == "linux" else []
    compile_args = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", *link_args]

os.environ.setdefault("MAX_JOBS", str(parallel_jobs()))
# So that ninja is found, too, when this environment's Python is called by its path instead of being activated.
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))

setup(
    packages=[*find_packages(include=["stc_cuda", "stc_cuda.*"]), "stc_cuda.reference"],
    package_dir={"stc_cuda.reference": "python_ref"},
    ext_modules=[
        CppExtension(
            "stc_cuda._C",
            sources,
            include_dirs=["csrc"],
            define_macros=[("STC_CUDA_VERSION", f'"{version}"')],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_ext": Build},
)
