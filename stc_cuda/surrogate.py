"""How users say which surrogate gradient they want."""

from __future__ import annotations

from dataclasses import dataclass

from .config import SURROGATE_ALPHA


@dataclass(frozen=True)
class Surrogate:
    r"""A surrogate gradient by name: what stands for the derivative of the Heaviside step, at z = u - v_threshold.

    ======================= ======= =============================================== =========================
    name                    alpha   derivative                                      from
    ======================= ======= =============================================== =========================
    ``sigmoid``             4       alpha p (1 - p), p = sigmoid(alpha z)           Neftci et al. 2019
    ``atan``                2       alpha / 2 / (1 + (pi/2 alpha z)^2)              Fang et al. 2021
    ``piecewise_quadratic`` 1       alpha (1 - alpha \|z\|), 0 where negative       Bohte 2011, Esser et al. 2016
    ``piecewise_exp``       1       alpha / 2 exp(-alpha \|z\|)                     Shrestha and Orchard 2018
    ``softsign``            2       alpha / 2 / (1 + alpha \|z\|)^2                 SpikingJelly
    ``superspike``          1       alpha / (1 + \|z\|)^2                           Zenke and Ganguli 2018
    ``erf``                 2       alpha / sqrt(pi) exp(-(alpha z)^2)              Yin et al. 2020
    ``rect``                1       alpha where alpha \|z\| < 1/2, else 0           Wu et al. 2018
    ``fast_sigmoid``        25      1 / (1 + alpha \|z\|)^2                         snnTorch
    ======================= ======= =============================================== =========================

    ``superspike`` has its alpha in front, as in SpikingJelly; ``fast_sigmoid`` is what snnTorch calls so.

    Args:
        name: one of the table.
        alpha: steepness (dimensionless); ``None`` is the surrogate's own default, that of the table.
        spiking: ``False`` replaces the Heaviside step by the surrogate's primitive, the smooth step with this
            derivative: formulas in :mod:`stc_cuda.reference.surrogate`.
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
        # ``PiecewiseQuadratic`` is ``piecewise_quadratic``
        names = {name.replace("_", ""): name for name in SURROGATE_ALPHA}
        given = type(surrogate_function).__name__.lower()
        alpha = getattr(surrogate_function, "alpha", None)
        surrogate = Surrogate(
            name=names.get(given, given),
            alpha=None if alpha is None else float(alpha),
            spiking=bool(getattr(surrogate_function, "spiking", True)),
        )
    if surrogate.name not in SURROGATE_ALPHA:
        known = ", ".join(map(repr, SURROGATE_ALPHA))
        raise ValueError(f"surrogate_function: got {surrogate_function!r}, expected one of {known}")
    return surrogate
