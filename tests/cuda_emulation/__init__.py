"""CUDA on a CPU (README.md). Importing this package makes ``backend="cuda_emulated"``, the project's CUDA kernels."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "cuda_emulated"


def _register() -> None:
    from . import backend as backend  # at whose end it registers, also where it is being imported already


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers as soon as stc_cuda is there; the emulation on its own needs neither it nor torch."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "stc_cuda":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "stc_cuda" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterImport())
