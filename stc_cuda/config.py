"""Options of the neurons, checked once when they are put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: Surrogates that the kernels know, with their default ``alpha``. Formulas: :mod:`stc_cuda.reference.surrogate`.
SURROGATE_ALPHA: dict[str, float] = {
    "sigmoid": 4.0,
    "atan": 2.0,
    "piecewise_quadratic": 1.0,
    "piecewise_exp": 1.0,
    "softsign": 2.0,
    "superspike": 1.0,
    "erf": 2.0,
    "rect": 1.0,
    "fast_sigmoid": 25.0,
}


#: Of float32, in which most states are.
LARGEST = (2 - 2.0**-23) * 2.0**127


def _require_finite(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    # A comparison, which torch.compile can trace for a symbolic number.
    if not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name}: got {value}, expected a finite number, of float32's range")


def _require_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an int")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class NeuronConfig:
    """Options that all neurons share; the same names and meanings as in :func:`stc_cuda.lif`.

    ``surrogate_function`` is a function of ``z = u - v_threshold`` that no kernel knows; it takes the place of
    ``surrogate``, and the reference runs the call.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range; the message names it, what was given and what was expected.
    """

    v_threshold: float = 1.0
    v_reset: float | None = None
    surrogate: str = "sigmoid"
    alpha: float | None = None
    surrogate_function: Callable[[Tensor], Tensor] | None = None
    detach_reset: bool = False
    spiking: bool = True
    store_v_seq: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        _require_finite("v_threshold", self.v_threshold)
        if self.v_reset is not None:
            _require_finite("v_reset", self.v_reset)
        if not isinstance(self.surrogate, str):
            raise TypeError(f"surrogate: got {type(self.surrogate).__name__}, expected a name: {_surrogate_names()}")
        if self.surrogate not in SURROGATE_ALPHA:
            raise ValueError(f"surrogate: got {self.surrogate!r}, expected one of {_surrogate_names()}")
        if self.alpha is not None:
            _require_finite("alpha", self.alpha)
            if self.alpha <= 0:
                raise ValueError(f"alpha: got {self.alpha}, expected a number above 0")
        self._require_flags("detach_reset", "spiking", "store_v_seq")
        if not isinstance(self.backend, str):
            raise TypeError(f"backend: got {type(self.backend).__name__}, expected a name such as 'auto'")

    def _require_flags(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name}: got {type(value).__name__}, expected True or False")

    @property
    def resolved_alpha(self) -> float:
        """``alpha``, or the surrogate's own default where that is None."""
        return SURROGATE_ALPHA[self.surrogate] if self.alpha is None else float(self.alpha)

    @property
    def cell_options(self) -> tuple[Any, ...]:
        """What the operators are told of the cell."""
        return self.v_threshold, self.v_reset, self.surrogate, self.resolved_alpha, self.spiking


@dataclass(frozen=True)
class STCConfig(NeuronConfig):
    """Options of :class:`stc_cuda.STCFunction`; the same names and meanings as in :func:`stc_cuda.stc_lif`.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range; the message names it, what was given and what was expected.
    """

    groups: int
    norm_groups: int | None = None
    eps: float = 1e-5
    gradient_detach: bool = False
    packed_spikes: bool = False
    recompute_every: int | None = None

    def __post_init__(self) -> None:
        _require_count("groups", self.groups)
        for name in ("norm_groups", "recompute_every"):
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name))
        _require_finite("eps", self.eps)
        if self.eps < 0:
            raise ValueError(f"eps: got {self.eps}, expected 0 or more")
        super().__post_init__()
        self._require_flags("gradient_detach", "packed_spikes")
        if self.packed_spikes and not self.spiking:
            raise ValueError("packed_spikes: got True with spiking=False, but only 0/1 spikes can be packed into bits")

    @property
    def resolved_norm_groups(self) -> int:
        """``norm_groups``, or ``groups`` where that is None."""
        return self.groups if self.norm_groups is None else self.norm_groups


def _surrogate_names() -> str:
    return ", ".join(repr(name) for name in SURROGATE_ALPHA)
