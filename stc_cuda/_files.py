"""Files written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def to_json(thing: Any) -> bytes:
    """Plain values as a JSON file. Numbers that JSON has not (the PSNR of a frame that is met exactly) become the
    strings ``"Infinity"``, ``"-Infinity"`` and ``"NaN"``, which ``float`` reads."""
    return (json.dumps(_finite(thing), indent=1, allow_nan=False) + "\n").encode()


def _finite(thing: Any) -> Any:
    if isinstance(thing, Mapping):
        return {key: _finite(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_finite(value) for value in thing]
    if isinstance(thing, float) and not math.isfinite(thing):
        return "NaN" if math.isnan(thing) else "Infinity" if thing > 0 else "-Infinity"
    return thing


def write_atomically(path: Path, data: bytes) -> None:
    """Writes ``path`` and makes its folder; whatever goes wrong, the file that was there stays as it was.

    The bytes go to ``path`` + ``.part``, reach the disk, and only then take the name: power may fail at any moment.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Nothing is left of the part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a loss of power, where folders can be opened (not on Windows)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
