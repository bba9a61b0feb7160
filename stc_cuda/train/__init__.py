"""Training, evaluation and use of predictors. Needs ``pip install 'stc-cuda[train]'``."""

from __future__ import annotations

try:
    from .checkpoints import CheckpointError, load_state, load_weights
    from .config import Config, ConfigError, build_model, load, open_split, preset_names
    from .diagnosis import NonFiniteError
    from .evaluation import evaluate
    from .processes import Processes, start
    from .trainer import Trainer
except ImportError as error:
    if (error.name or "").startswith("stc_cuda"):
        raise
    raise ImportError(
        f"Training needs the package {error.name}, which is not installed: type pip install 'stc-cuda[train]'"
    ) from error

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "NonFiniteError",
    "Processes",
    "Trainer",
    "build_model",
    "evaluate",
    "load",
    "load_state",
    "load_weights",
    "open_split",
    "preset_names",
    "start",
]
