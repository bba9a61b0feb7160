"""What a run saves: weights for use (safetensors), and the whole state to go on from.

``last.safetensors`` and ``best.safetensors`` hold the weights under the names of the authors' models, and the
configuration in their header. ``last.resume.pt`` and ``best.resume.pt`` hold everything that a resumed run needs, the
weights once more: each is right on its own, whenever the process is killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .._files import write_atomically
from .config import Config, parse

FORMAT = 1
WEIGHTS, STATE = "{}.safetensors", "{}.resume.pt"
_CONFIG_KEY, _SHAPE_KEY, _DIGEST_KEY = "stc_cuda.config", "stc_cuda.frame_shape", "stc_cuda.sha256"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says what is left and what to do."""


def save(folder: Path, name: str, state: Mapping[str, Any], frame_shape: tuple[int, int, int]) -> None:
    """Writes ``name``'s two files, each whole or not at all.

    Args:
        folder: of the run.
        name: ``"last"`` or ``"best"``.
        state: of the run, plain values and tensors; ``"model"`` and ``"config"`` go into the weights' file.
        frame_shape: ``(C, H, W)``.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written to; the checkpoint before stays.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    weights = {key: value.detach().cpu().contiguous() for key, value in state["model"].items()}
    header = {
        _CONFIG_KEY: json.dumps(state["config"]),
        _SHAPE_KEY: json.dumps(frame_shape),
        _DIGEST_KEY: _digest(weights),
        "step": str(state["step"]),
    }
    try:
        write_atomically(folder / STATE.format(name), buffer.getvalue())
        write_atomically(folder / WEIGHTS.format(name), to_safetensors(weights, header))
    except OSError as error:
        kept = folder / STATE.format(name)
        left = f"the checkpoint before it is intact: {kept}" if kept.exists() else "there is no earlier checkpoint"
        raise CheckpointError(
            f"{folder}: the checkpoint of step {state['step']} could not be written ({error.strerror or error}); "
            f"{left}. Make room, then type stc-cuda train --resume {folder}"
        ) from error


def load_state(path: Path) -> dict[str, Any]:
    """Reads a ``.resume.pt`` file onto the CPU. Nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or not a state of a run, or of a newer version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected the state that stc-cuda train saves")
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads damaged numbers without a word
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not have its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers and unpickler raise all kinds for bytes that are something else
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({_first_line(error)}); {_advice(path)}") from error
    needed = {"format", "model", "config", "step"}
    if not isinstance(state, dict) or not needed <= state.keys():
        raise CheckpointError(f"{path}: not the state of a run; expected {', '.join(sorted(needed))}; {_advice(path)}")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: got format {state['format']}, expected {FORMAT}; it is of another version of stc-cuda"
        )
    return state


def load_weights(path: Path) -> tuple[dict[str, Tensor], Config, tuple[int, int, int]]:
    """Reads a ``.safetensors`` file: weights, configuration, and the frames' ``(C, H, W)``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or not one that ``stc-cuda train`` wrote.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected a .safetensors file of stc-cuda train")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not safetensors ({_first_line(error)}); {_advice(path)}") from error
    if _CONFIG_KEY not in header or _SHAPE_KEY not in header:
        raise CheckpointError(f"{path}: its header names no configuration; expected a file of stc-cuda train")
    if _DIGEST_KEY in header and header[_DIGEST_KEY] != _digest(weights):
        raise CheckpointError(f"{path}: damaged (the weights do not have their checksum); {_advice(path)}")
    try:
        channels, height, width = json.loads(header[_SHAPE_KEY])
        config = parse(json.loads(header[_CONFIG_KEY]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged, or of another version of stc-cuda: its header holds no configuration "
            f"({_first_line(error)}); {_advice(path)}"
        ) from error
    return weights, config, (channels, height, width)


def seed_everything(seed: int) -> None:
    """Seeds every generator of :func:`random_state`."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that training code may draw from, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes; safetensors has no checksum of its own."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        x = weights[key]
        digest.update(f"{key} {x.dtype} {list(x.shape)}\n".encode())
        digest.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _advice(path: Path) -> str:
    other = "best" if path.name.startswith("last.") else "last"
    candidate = path.with_name(path.name.replace(path.name.split(".")[0], other, 1))
    return f"{candidate} is there, too: try it" if candidate.is_file() else "there is no other checkpoint beside it"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
