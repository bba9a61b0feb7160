"""How users say which surrogate gradient they want."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
        name: one of the table; not read where ``function`` is given.
        alpha: steepness (dimensionless); ``None`` is the surrogate's own default, that of the table.
        spiking: ``False`` replaces the Heaviside step by the surrogate's primitive, the smooth step with this
            derivative: formulas in :mod:`stc_cuda.reference.surrogate`.
        function: one's own: takes z and returns spikes of its shape, with whatever gradient autograd has for it. No
            kernel knows it, so the call runs on the reference, slowly, and warns of that once. It comes without
            ``alpha`` and ``spiking``.
    """

    name: str = "sigmoid"
    alpha: float | None = None
    spiking: bool = True
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The same as options of :class:`stc_cuda.config.NeuronConfig`."""
        return {
            "surrogate": self.name,
            "alpha": self.alpha,
            "spiking": self.spiking,
            "surrogate_function": self.function,
        }


def as_surrogate(surrogate_function: object, argument: str = "surrogate_function") -> Surrogate:
    """Reads a name, a :class:`Surrogate`, a SpikingJelly surrogate object, or any other callable.

    An object of a class of SpikingJelly's that is called like one of the table is that surrogate
    (``PiecewiseQuadratic(alpha=2.0)``, say), soft where its ``spiking`` is false. Classes of others are functions,
    whatever they are called, those derived from SpikingJelly's too: their gradients may be others.

    Raises:
        ValueError: an unknown name, or nothing that can be called.
    """
    if isinstance(surrogate_function, Surrogate):
        surrogate = surrogate_function
        if surrogate.function is not None:
            if not callable(surrogate.function):
                raise ValueError(f"{argument}: got {surrogate.function!r} as its function, expected a callable")
            if surrogate.alpha is not None or not surrogate.spiking:
                raise ValueError(f"{argument}: got alpha or spiking beside a function, which has its own")
            return Surrogate(function=surrogate.function)
    elif isinstance(surrogate_function, str):
        surrogate = Surrogate(surrogate_function)
    else:
        names = {name.replace("_", ""): name for name in SURROGATE_ALPHA}
        kind = type(surrogate_function)
        known = names.get(kind.__name__.lower()) if kind.__module__.split(".")[0] == "spikingjelly" else None
        alpha = getattr(surrogate_function, "alpha", None)
        if known and isinstance(alpha, (int, float)):
            return Surrogate(known, float(alpha), bool(getattr(surrogate_function, "spiking", True)))
        if callable(surrogate_function) and not isinstance(surrogate_function, type):
            return Surrogate(function=surrogate_function)
        surrogate = Surrogate(name="")
    if surrogate.function is None and surrogate.name not in SURROGATE_ALPHA:
        known_names = ", ".join(map(repr, SURROGATE_ALPHA))
        raise ValueError(
            f"{argument}: got {surrogate_function!r}, expected one of {known_names}, or a function of u - v_threshold"
        )
    return surrogate
