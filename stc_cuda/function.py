"""The autograd Function of STC-LIF."""

from __future__ import annotations

from typing import Any

from . import cells
from ._call import call_circuit
from ._circuit import CircuitFunction


class STCFunction(CircuitFunction):
    """The STC-LIF recurrence over a whole sequence as one differentiable call.

    ``STCFunction.apply(current, temporal_weight, spatial_weight, v, spikes, current_norm_weight, current_norm_bias,
    temporal_norm_weight, temporal_norm_bias, spatial_norm_weight, spatial_norm_bias, config)`` returns
    ``(spikes, v)``, or ``(spikes, v, v_seq)`` with ``config.store_v_seq``. Shapes, dtypes, equations and errors are
    those of :func:`stc_cuda.stc_lif`; a norm is a (weight, bias) pair of tensors or two ``None``.

    Saved for backward: the current (the caller's tensor, not a copy), the membrane potential before reset ``u`` and
    the norms' means and deviations. Spikes and gates are recomputed from them. Backward has no derivative of its own:
    ``create_graph=True`` raises NotImplementedError.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if len(args) != 12:
            raise TypeError(
                f"STCFunction.apply: got {len(args)} arguments, expected 12: current, temporal_weight, spatial_weight, "
                "v, spikes, current_norm_weight, current_norm_bias, temporal_norm_weight, temporal_norm_bias, "
                "spatial_norm_weight, spatial_norm_bias, config"
            )
        current, temporal_weight, spatial_weight, v, spikes, *norms, config = args
        pairs = ((norms[0], norms[1]), (norms[2], norms[3]), (norms[4], norms[5]))
        weights = (temporal_weight, spatial_weight)
        return call_circuit(cells.STC_LIF, config, current, weights, {"v": v}, spikes, pairs, {})
