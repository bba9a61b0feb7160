"""Compiles the extension stc_cuda._C and says which folders are packages; the rest is in pyproject.toml."""

import json
import os
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a build by pip does not look there

import build_cuda

try:
    import torch
    from torch.utils import cpp_extension
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

try:
    toolkit = build_cuda.choose_toolkit(os.environ, torch.__version__, torch.version.cuda)
    if isinstance(toolkit, str):
        skipped, architectures = toolkit, []
        chosen = f"the CPU only: {skipped}"
    else:
        skipped = None
        listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
        gpus = range(torch.cuda.device_count() if listed == "native" else 0)
        visible = [torch.cuda.get_device_capability(gpu) for gpu in gpus]
        architectures = build_cuda.choose_architectures(listed, toolkit.known, visible)
        chosen = f"the CPU and CUDA {toolkit.version} ({toolkit.home}) for {', '.join(architectures)}"
except build_cuda.BuildError as error:
    sys.exit(f"stc-cuda: {error}")


class Build(cpp_extension.BuildExtension):
    """Always asks ninja, which knows what is out of date (headers, flags), in a folder that outlives the build."""

    def finalize_options(self):
        super().finalize_options()
        self.force = True
        self.build_temp = f"build/{sys.implementation.cache_tag}-torch-{torch.__version__}"

    def build_extensions(self):
        print(f"stc-cuda: compiling for {chosen}", flush=True)
        super().build_extensions()


def define(name: str, text: str) -> str:
    return f"-D{name}={json.dumps(text)}"


version = re.search(r'__version__ = "(.+)"', Path("stc_cuda/_version.py").read_text())[1]
lines = [line.split() for line in Path("csrc/sources.txt").read_text().splitlines() if not line.startswith("#")]
sources = {part: [path for other, path in lines if other == part] for part in ("core", "torch", "cuda")}

# Not as define_macros, which nvcc would get as well: another version would compile the kernels anew.
defines = [define("STC_CUDA_VERSION", version)]
if sys.platform == "win32":
    compile_args, link_args = ["/O2", "/openmp"], []
else:
    link_args = ["-fopenmp"] if sys.platform == "linux" else []
    compile_args = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", *link_args]

os.environ.setdefault("MAX_JOBS", str(build_cuda.parallel_jobs()))
# So that ninja is found, too, when this environment's Python is called by its path instead of being activated.
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))

if architectures:
    cpp_extension.CUDA_HOME = str(toolkit.home)  # torch's own guess can be the parent of a wrapper's folder
    defines.append(define("STC_CUDA_TOOLKIT", toolkit.version))
    defines.append(define("STC_CUDA_ARCHITECTURES", " ".join(architectures)))
    kernels = sum(path.endswith(".cu") for path in sources["cuda"])
    jobs = int(os.environ["MAX_JOBS"])
    os.environ.update(build_cuda.nvcc_environment(os.environ, jobs, kernels, len(architectures)))
else:
    defines.append(define("STC_CUDA_SKIPPED", skipped))

setup(
    packages=[*find_packages(include=["stc_cuda", "stc_cuda.*"]), "stc_cuda.reference"],
    package_dir={"stc_cuda.reference": "python_ref"},
    ext_modules=[
        cpp_extension.CppExtension(
            "stc_cuda._C",
            sources["core"] + sources["torch"] + (sources["cuda"] if architectures else []),
            include_dirs=["csrc", *([str(toolkit.home / "include")] if architectures else [])],
            library_dirs=[str(toolkit.library_dir)] if architectures else [],
            libraries=["c10_cuda", "cudart"] if architectures else [],
            extra_compile_args={
                "cxx": [*compile_args, *defines],
                "nvcc": ["-O3", *build_cuda.architecture_flags(architectures)],
            },
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_ext": Build},
)
