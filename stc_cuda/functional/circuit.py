"""Neurons of the Spatio-Temporal Circuit over a sequence."""

from __future__ import annotations

from torch import Tensor

from .. import cells
from .._call import Threshold, call_circuit, kept, split_threshold, surrogate_options
from .._checks import Pair, check_norm_pair
from ..config import STCConfig

Norm = tuple[Tensor, Tensor] | None


@kept
def _config(
    surrogate: object,
    alpha: float | None,
    spiking: bool,
    groups: int,
    norm_groups: int | None,
    eps: float,
    v_threshold: float,
    v_reset: float | None,
    gradient_detach: bool,
    detach_reset: bool,
    store_v_seq: bool,
    packed_spikes: bool,
    recompute_every: int | None,
    backend: str,
) -> STCConfig:
    return STCConfig(
        groups=groups,
        norm_groups=norm_groups,
        eps=eps,
        v_threshold=v_threshold,
        v_reset=v_reset,
        gradient_detach=gradient_detach,
        detach_reset=detach_reset,
        store_v_seq=store_v_seq,
        packed_spikes=packed_spikes,
        recompute_every=recompute_every,
        backend=backend,
        **surrogate_options(surrogate, alpha, spiking),
    )


def _norms(current_norm: object, temporal_norm: object, spatial_norm: object) -> tuple[Pair, Pair, Pair]:
    return (
        check_norm_pair("current_norm", current_norm),
        check_norm_pair("temporal_norm", temporal_norm),
        check_norm_pair("spatial_norm", spatial_norm),
    )


def stc_lif(
    current: Tensor,
    temporal_weight: Tensor,
    spatial_weight: Tensor,
    *,
    groups: int,
    current_norm: Norm = None,
    temporal_norm: Norm = None,
    spatial_norm: Norm = None,
    norm_groups: int | None = None,
    eps: float = 1e-5,
    v: Tensor | None = None,
    spikes: Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    gradient_detach: bool = False,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
    packed_spikes: bool = False,
    recompute_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    r"""Runs the Spatio-Temporal Circuit LIF neuron over a sequence.

    Per step :math:`t`, with zero state before the first step unless ``v`` and ``spikes`` are given::

        I_t = GN_x(current_t)
        a_t = GN_a(gconv(s_{t-1}; temporal_weight))
        b_t = GN_b(gconv(s_{t-1}; spatial_weight))
        u_t = (1 + tanh a_t) v_{t-1} + (1 + tanh b_t) I_t
        s_t = Heaviside(u_t - v_threshold)
        v_t = u_t - v_threshold s_t                        (soft reset, v_reset None)
        v_t = u_t (1 - s_t) + v_reset s_t                  (hard reset)

    Source: "Autaptic Synaptic Circuit Enhances Spatio-temporal Predictive Learning of Spiking Neural Networks",
    ICML 2024.

    Args:
        current: feed-forward current ``[T, N, C, H, W]``, float32, float64, float16 or bfloat16, any strides. T and N
            may be 0.
        temporal_weight: grouped convolution of the temporal pathway ``[C, C/groups, K, K]``, K odd. Weights and norms
            are of the current's dtype or of the state's.
        spatial_weight: the same for the spatial pathway.
        groups: groups of both convolutions; divides C.
        current_norm: ``(weight [C], bias [C])`` of GN_x, or ``None`` for no norm.
        temporal_norm: the same for GN_a.
        spatial_norm: the same for GN_b.
        norm_groups: groups of the three GroupNorms; ``None`` means ``groups``.
        eps: added to the variance in the GroupNorms.
        v: membrane potential before the first step ``[N, C, H, W]``. The state is float64 for a float64 current and
            float32 for all others: it outgrows 16-bit numbers.
        spikes: spikes before the first step ``[N, C, H, W]``, 0 or 1 unless ``spiking=False``; dtype of ``current``. On
            a GPU the check of that waits for them.
        v_threshold: firing threshold, in units of the membrane potential; a number, or a tensor ``[1]`` or ``[C]``,
            which learns.
        v_reset: ``None`` resets by subtraction of the threshold; a number is the potential after a spike.
        surrogate: surrogate gradient: a name, a :class:`stc_cuda.Surrogate`, a SpikingJelly surrogate object or a
            function of ``u - v_threshold`` (slow, with a warning).
        alpha: its steepness; ``None`` is the surrogate's own default.
        gradient_detach: no gradient through the spikes that enter the gate convolutions (their weights still learn).
        detach_reset: no gradient through the spikes in the reset.
        spiking: ``False`` replaces the Heaviside step by the surrogate's primitive.
        store_v_seq: also return the membrane potential after reset of every step.
        packed_spikes: return the spikes as bits, uint8 ``[T, N, groups, H, W, ceil(C/groups/8)]`` (bit ``c % 8`` of
            byte ``c // 8`` is channel ``c`` of the group; :func:`unpack_spikes` reads them). Inference only.
        recompute_every: to need less memory for backward, keep the state every so many steps and compute the steps
            between once more, some at a time: 4 + 4/k bytes per neuron and step in float32 instead of 8 (4 + 8/k
            instead of 12 for :func:`stc_lmh`), for a forward pass more. The reference does not read it.
        backend: ``"auto"`` (compiled kernels of the device), ``"cpu"``, ``"reference"`` (plain PyTorch, slow, with
            ordinary autograd) or a registered name.

    Returns:
        ``(spikes [T, N, C, H, W], v [N, C, H, W])``, with ``v_seq [T, N, C, H, W]`` after them if ``store_v_seq``;
        spikes of the current's dtype, potentials of the state's.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes do not fit.
        ValueError: a rank, shape, group count, device, option or initial spike is not as described here.
    """
    number, threshold = split_threshold(v_threshold)
    config = _config(
        surrogate,
        alpha,
        spiking,
        groups,
        norm_groups,
        eps,
        number,
        v_reset,
        gradient_detach,
        detach_reset,
        store_v_seq,
        packed_spikes,
        recompute_every,
        backend,
    )
    norms = _norms(current_norm, temporal_norm, spatial_norm)
    weights = (temporal_weight, spatial_weight)
    return call_circuit(cells.STC_LIF, config, current, weights, {"v": v}, spikes, norms, {}, threshold)


def stc_plif(
    current: Tensor,
    temporal_weight: Tensor,
    spatial_weight: Tensor,
    decay_logit: Tensor,
    *,
    groups: int,
    current_norm: Norm = None,
    temporal_norm: Norm = None,
    spatial_norm: Norm = None,
    norm_groups: int | None = None,
    eps: float = 1e-5,
    v: Tensor | None = None,
    spikes: Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    gradient_detach: bool = False,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
    packed_spikes: bool = False,
    recompute_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    r"""Runs the Spatio-Temporal Circuit on a LIF neuron with a learnt decay over a sequence.

    As :func:`stc_lif` with another potential before the reset::

        u_t = sigmoid(w) (1 + tanh a_t) v_{t-1} + (1 - sigmoid(w)) (1 + tanh b_t) I_t

    Args:
        decay_logit: w ``[1]`` or ``[C]``; the authors' t_m.
        others: as for :func:`stc_lif`, and so are results and errors.
    """
    number, threshold = split_threshold(v_threshold)
    config = _config(
        surrogate,
        alpha,
        spiking,
        groups,
        norm_groups,
        eps,
        number,
        v_reset,
        gradient_detach,
        detach_reset,
        store_v_seq,
        packed_spikes,
        recompute_every,
        backend,
    )
    norms = _norms(current_norm, temporal_norm, spatial_norm)
    weights = (temporal_weight, spatial_weight)
    parameters = {"decay_logit": decay_logit}
    return call_circuit(cells.STC_PLIF, config, current, weights, {"v": v}, spikes, norms, parameters, threshold)


def stc_lmh(
    current: Tensor,
    temporal_weight: Tensor,
    spatial_weight: Tensor,
    *,
    dendrite_decay: Tensor,
    soma_to_dendrite: Tensor,
    dendrite_to_soma: Tensor,
    soma_decay: Tensor,
    groups: int,
    current_norm: Norm = None,
    temporal_norm: Norm = None,
    spatial_norm: Norm = None,
    norm_groups: int | None = None,
    eps: float = 1e-5,
    v: Tensor | None = None,
    dendrite: Tensor | None = None,
    spikes: Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    gradient_detach: bool = False,
    detach_reset: bool = True,
    spiking: bool = True,
    store_v_seq: bool = False,
    packed_spikes: bool = False,
    recompute_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    r"""Runs the Spatio-Temporal Circuit on the two-compartment LM-H neuron over a sequence.

    As :func:`stc_lif` with a dendrite before the soma::

        d_t = (sigmoid(dendrite_decay) - 1/2) d_{t-1} + (sigmoid(soma_to_dendrite) - 1/2) v_{t-1} + (1 + tanh b_t) I_t
        u_t = (sigmoid(dendrite_to_soma) + 1/2) d_t + (sigmoid(soma_decay) + 1/2) (1 + tanh a_t) v_{t-1}

    With all logits at 0 its forward pass is that of :func:`stc_lif`. The reset is detached unless
    ``detach_reset=False``.

    Args:
        dendrite_decay, soma_to_dendrite, dendrite_to_soma, soma_decay: logits ``[1]`` or ``[C]``, the authors' d_u,
            s_u, d_p and s_p.
        dendrite: d before the first step ``[N, C, H, W]``, dtype of ``v``.
        others: as for :func:`stc_lif`, and so are errors.

    Returns:
        ``(spikes [T, N, C, H, W], v [N, C, H, W], dendrite [N, C, H, W])``, with ``v_seq [T, N, C, H, W]`` after them
        if ``store_v_seq``.
    """
    number, threshold = split_threshold(v_threshold)
    config = _config(
        surrogate,
        alpha,
        spiking,
        groups,
        norm_groups,
        eps,
        number,
        v_reset,
        gradient_detach,
        detach_reset,
        store_v_seq,
        packed_spikes,
        recompute_every,
        backend,
    )
    norms = _norms(current_norm, temporal_norm, spatial_norm)
    weights = (temporal_weight, spatial_weight)
    states = {"v": v, "dendrite": dendrite}
    parameters = {
        "dendrite_decay": dendrite_decay,
        "soma_to_dendrite": soma_to_dendrite,
        "dendrite_to_soma": dendrite_to_soma,
        "soma_decay": soma_decay,
    }
    return call_circuit(cells.STC_LMH, config, current, weights, states, spikes, norms, parameters, threshold)
