"""Small training runs for the tests: a blob that moves, 16 x 16 pixels, three frames to three."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from stc_cuda.cli import main

IN, OUT, SIDE, BATCH = 3, 3, 16, 4
STEPS_PER_EPOCH = 4


def write_config(folder: Path, **changes: Any) -> Path:
    """A configuration file and its data in ``folder``; changes are ``section={option: value}``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    start, velocity = rng.uniform(3, 12, (20, 1, 2)), rng.uniform(-1, 1, (20, 1, 2))
    centre = start + velocity * np.arange(IN + OUT)[:, None]
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"))
    distance = (grid - centre[..., None, None]) ** 2
    videos = np.exp(-distance.sum(2) / 8).astype(np.float32)[:, :, None]
    np.save(folder / "videos.npy", videos)
    config: dict[str, dict[str, Any]] = {
        "data": {"name": "array", "root": str(folder / "videos.npy"), "in_frames": IN, "out_frames": OUT},
        "model": {"hidden": [16, 16], "patch_size": 2, "kernel_size": 3, "groups": 2},
        "optimizer": {"lr": 5e-3, "warm_up_epochs": 0.5, "schedule_by": "step"},
        "sampling": {"kind": "scheduled", "rate": 0.05, "until": 12},
        "training": {"epochs": 2, "batch_size": BATCH, "tensorboard": False},
        "validation": {"pictures": 0},
    }
    for section, options in changes.items():
        config[section].update(options)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def train(folder: Path, *arguments: str, **changes: Any) -> int:
    """Trains in ``folder/run``; the exit status."""
    return main(["train", str(write_config(folder, **changes)), "--out", str(folder / "run"), *arguments])


def state_of(run: Path, name: str = "last") -> dict[str, Any]:
    """The saved state without what depends on the clock."""
    state = torch.load(run / f"{name}.resume.pt", weights_only=True)
    state.pop("seconds")
    for entry in state["history"]:
        entry.pop("training_seconds")
    state["config"]["data"].pop("root")
    return state


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Names of what is not the same, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in differences(a.get(key), b.get(key), f"{path}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [path]


def history_of(run: Path) -> list[dict[str, Any]]:
    """The validations of a run."""
    return json.loads((run / "history.json").read_text())
