"""The registry of backends: which implementation runs a call.

A backend is functions with the signatures of the operators ``stc_cuda::stc_forward``, ``stc_backward`` (see
csrc/ops.h), ``scan_forward``, ``scan_backward`` and, where it has one, ``scan_backward_in_place`` (csrc/scan_ops.h).
Registering one is enough for ``backend="name"`` to work everywhere. The reference is none of them: it runs under
ordinary autograd (_call.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ._build import build_info
from .config import NeuronConfig


@dataclass(frozen=True)
class Backend:
    """One implementation of the recurrences.

    Attributes:
        name: what users pass as ``backend=``.
        forward: called like ``torch.ops.stc_cuda.stc_forward``.
        backward: called like ``torch.ops.stc_cuda.stc_backward``.
        scan_forward: called like ``torch.ops.stc_cuda.scan_forward``; None = the backend has no element-wise neurons.
        scan_backward: called like ``torch.ops.stc_cuda.scan_backward``.
        scan_backward_in_place: called like ``torch.ops.stc_cuda.scan_backward_in_place``, for neurons with one
            potential; None = ``scan_backward`` serves those, too.
        scan: called like ``torch.ops.stc_cuda.scan``, which has gradients; None = they are made of the three above.
        device_types: ``torch.device.type`` of the tensors it takes; empty = any.
        checks_spikes: whether ``forward`` itself raises for initial spikes other than 0 and 1 in spiking mode. Where it
            does not, that is checked before a call.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    device_types: frozenset[str]
    checks_spikes: bool = False
    scan_forward: Callable[..., Any] | None = None
    scan_backward: Callable[..., Any] | None = None
    scan_backward_in_place: Callable[..., Any] | None = None
    scan: Callable[..., Any] | None = None


REFERENCE = "reference"

_BACKENDS: dict[str, Backend] = {}
# The backend that "auto" stands for, by device type.
_AUTO: dict[str, str] = {"cpu": "cpu", "cuda": "cuda"}


def register_backend(backend: Backend) -> None:
    """Makes ``backend`` selectable by name; a name can be registered once."""
    if backend.name in _BACKENDS or backend.name in ("auto", REFERENCE):
        raise ValueError(f"backend: {backend.name!r} is registered already")
    _BACKENDS[backend.name] = backend


def backend_names() -> list[str]:
    """Names that ``backend=`` accepts, ``"auto"`` first."""
    return ["auto", *sorted([*_BACKENDS, REFERENCE])]


_warned_of: set[str] = set()


def runs_on_reference(config: NeuronConfig) -> bool:
    """Whether a call runs on the reference: it was asked for, or the surrogate is a function that no kernel knows.

    Warns of the latter once for each kind of function.

    Raises:
        ValueError: kernels were asked for by name and do not know the surrogate.
    """
    function = config.surrogate_function
    if function is None or config.backend == REFERENCE:
        return config.backend == REFERENCE
    if config.backend == "auto" and torch.compiler.is_compiling():  # whose graph has no warnings, and no names
        return True
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if config.backend != "auto":
        raise ValueError(
            f"backend: {config.backend!r} was asked for, and no kernel knows the surrogate {name}; pass "
            "backend='auto' or 'reference' for the slow PyTorch path, or a surrogate by name (stc_cuda.Surrogate)"
        )
    if name not in _warned_of:
        _warned_of.add(name)
        warnings.warn(
            f"stc_cuda: no kernel knows the surrogate {name}, so calls with it run on the reference (plain PyTorch, "
            "slowly); kernels know those of stc_cuda.Surrogate",
            stacklevel=4,  # the caller of a functional form
        )
    return True


def select_backend(name: str, device: torch.device) -> Backend:
    """The backend that runs tensors of ``device`` under the name given by the user.

    ``"auto"`` means the compiled kernels of the device and never falls back to a slower path.

    Raises:
        ValueError: the name is unknown, or the backend does not take tensors of this device.
        NotImplementedError: this build has no kernels for the device.
    """
    chosen = _AUTO.get(device.type, device.type) if name == "auto" else name
    backend = _BACKENDS.get(chosen)
    if backend is not None and (device.type in backend.device_types or not backend.device_types):
        return backend
    if chosen not in _BACKENDS:
        if name == "auto" or name in _AUTO:
            skipped = build_info()["cuda_skipped"] if chosen == "cuda" else None
            because = f" ({skipped}; see Install in the README)" if skipped else ""
            raise NotImplementedError(
                f"backend: {name!r} was asked for tensors on {device}, and this build of stc_cuda has no kernels for "
                f"{chosen!r}{because}; move the tensors to the CPU, or pass backend='reference' for the slow PyTorch "
                "path"
            )
        raise ValueError(f"backend: got {name!r}, expected one of {', '.join(map(repr, backend_names()))}")
    raise ValueError(
        f"backend: {name!r} takes tensors on {' or '.join(sorted(_BACKENDS[chosen].device_types))}, "
        f"and current is on {device}"
    )
