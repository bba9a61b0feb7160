"""How users say which surrogate gradient they want."""

from __future__ import annotations

from dataclasses import dataclass

from .config import SURROGATE_ALPHA


@dataclass(frozen=True)
class Surrogate:
    """A surrogate gradient by name.

    Args:
        name: one of ``"sigmoid"``, ``"atan"``.
        alpha: steepness (dimensionless); ``None`` is the surrogate's own default (sigmoid 4, atan 2).
        spiking: ``False`` replaces the Heaviside step by the surrogate's primitive (a soft spike in (0, 1)).
    """

    name: str = "sigmoid"
    alpha: float | None = None
    spiking: bool = True


def as_surrogate(surrogate_function: object) -> Surrogate:
    """Reads a name, a :class:`Surrogate`, or a SpikingJelly surrogate object (by class name, ``.alpha``, ``.spiking``).

    Raises:
        ValueError: no kernel knows this surrogate.
    """
    if isinstance(surrogate_function, Surrogate):
        surrogate = surrogate_function
    elif isinstance(surrogate_function, str):
        surrogate = Surrogate(surrogate_function)
    else:
        alpha = getattr(surrogate_function, "alpha", None)
        surrogate = Surrogate(
            name=type(surrogate_function).__name__.lower(),
            alpha=None if alpha is None else float(alpha),
            spiking=bool(getattr(surrogate_function, "spiking", True)),
        )
    if surrogate.name not in SURROGATE_ALPHA:
        known = ", ".join(map(repr, SURROGATE_ALPHA))
        raise ValueError(f"surrogate_function: got {surrogate_function!r}, expected one of {known}")
    return surrogate
