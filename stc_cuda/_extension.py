"""The compiled module, or one sentence about what to do when it cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import torch

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"stc_cuda in {Path(__file__).parent} has no usable compiled extension for Python's torch {torch.__version__}: "
        "it is an uncompiled checkout (leave its folder, or type pip install --no-build-isolation -e .), or it was "
        f"compiled for another torch or Python (type pip install --no-build-isolation --force-reinstall --no-deps .). "
        f"The loader says: {error}"
    ) from error

extension = _C

__all__ = ["extension"]
