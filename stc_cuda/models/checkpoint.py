"""Checkpoints of the STC authors' models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: In front of every key where a model was saved from inside DistributedDataParallel or a wrapper of it.
PREFIXES = ("module.", "model.")


def read_official_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the weights from ``checkpoint.pth`` or ``latest.pth`` of the authors' training.

    The first is a state dict, the second has one under ``"state_dict"``; prefixes ``module.`` and ``model.`` are taken
    off each key. Nothing in the file is executed (``weights_only``), and everything is read onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, or holds more than weights_only allows, or no weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers and unpickler raise all kinds for bytes that are something else
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened; a broken archive is an OSError without a name
        raise ValueError(
            f"{os.fspath(path)}: cannot be read as a checkpoint of tensors and plain values: {_cause(error)}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(map(_is_weight, content.values())):
        raise ValueError(
            f"{os.fspath(path)}: got {_kind(content)}, expected a state dict (names and dense floating-point "
            "tensors), alone or as the entry 'state_dict'"
        )
    weights: dict[str, Tensor] = {}
    for key, value in content.items():
        name = str(key)
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        if name in weights:
            raise ValueError(f"{os.fspath(path)}: got {name!r} with two prefixes, expected every name once")
        weights[name] = value
    return weights


def load_official_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads the authors' weights into ``model``, all of them or none.

    The files of LM-H and TC-LIF have the same names and shapes, so that each loads into the other.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_official_checkpoint`; a ValueError also when the names and shapes
            are not the model's. It says how both look, and the model keeps its weights. And one when the model has no
            memory yet.
    """
    weights = read_official_checkpoint(path)
    own = model.state_dict()
    if any(value.is_meta for value in own.values()):
        raise ValueError(
            "model: got weights on the meta device, expected memory to load into; call model.to_empty() first"
        )
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    shapes = [
        f"{key}: {list(weights[key].shape)} in the checkpoint, {list(own[key].shape)} in the model"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        lines = [
            f"{os.fspath(path)}: the checkpoint does not fit the model",
            f"  checkpoint: {describe(weights)}",
            f"  model:      {describe(own)}",
            *_some("missing in the checkpoint", missing),
            *_some("not in the model", unexpected),
            *_some("other shapes", shapes),
        ]
        raise ValueError("\n".join(lines))
    model.load_state_dict(weights)


def describe(weights: Mapping[str, Tensor]) -> str:
    """What the names and shapes of a state dict tell of a predictor."""
    layers = 0
    while f"cell_list.{layers}.conv_x.0.weight" in weights:
        layers += 1
    if not layers:
        return f"no layers cell_list.0, cell_list.1, ... among {len(weights)} tensors"
    convolutions = [weights[f"cell_list.{i}.conv_x.0.weight"] for i in range(layers)]
    hidden = tuple(conv.shape[0] for conv in convolutions)
    return (
        f"neuron {_neuron(weights)}, hidden {hidden}, kernel_size {convolutions[0].shape[-1]}, "
        f"patch_size^2 * C {convolutions[0].shape[1]}"
    )


def _neuron(weights: Mapping[str, Tensor]) -> str:
    circuit = "cell_list.0.conv_h.0.weight" in weights
    if "cell_list.0.glif.alpha" in weights:
        return "glif"
    if "cell_list.0.s_u" in weights:
        return "stclmh" if circuit else "lmh or tclif"
    if "cell_list.0.t_m" in weights:
        return "stcplif" if circuit else "plif"
    return "stclif" if circuit else "lif"


def _is_weight(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.is_floating_point() and not x.is_meta


def _cause(error: Exception) -> str:
    """In a line; of what weights_only refuses without PyTorch's advice to go on without it."""
    _, found, refused = str(error).partition("WeightsUnpickler error:")
    if found:
        return refused.strip().split("\n")[0].strip()
    return f"{type(error).__name__}{': ' if str(error) else ''}{error}"


def _some(title: str, items: list[str], count: int = 4) -> list[str]:
    if not items:
        return []
    more = [f"... {len(items) - count} more"] if len(items) > count else []
    return [f"  {title}: {'; '.join(items[:count] + more)}"]


def _kind(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not any(map(_is_weight, content.values())):
        return f"a dictionary with {', '.join(map(repr, list(content)[:6])) or 'nothing'}"
    other = [f"{key!r} ({_what(x)})" for key, x in content.items() if not _is_weight(x)]
    return f"a dictionary with {', '.join(other[:4])}{' ...' if len(other) > 4 else ''} among its tensors"


def _what(x: object) -> str:
    if not isinstance(x, Tensor):
        return type(x).__name__
    kind = str(x.dtype).removeprefix("torch.")
    return kind if x.layout == torch.strided and not x.is_meta else f"{kind}, {'meta' if x.is_meta else x.layout}"
