"""Element-wise neurons over a sequence: those without recurrent convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from .. import cells
from .._call import States, Threshold, call_scan, kept, split_threshold, surrogate_options
from ..backends import REFERENCE
from ..cells import Cell, Coefficient
from ..config import LARGEST, NeuronConfig


@kept
def _config(
    surrogate: object,
    alpha: float | None,
    spiking: bool,
    v_threshold: float,
    v_reset: float | None,
    detach_reset: bool,
    store_v_seq: bool,
    backend: str,
) -> NeuronConfig:
    return NeuronConfig(
        v_threshold=v_threshold,
        v_reset=v_reset,
        detach_reset=detach_reset,
        store_v_seq=store_v_seq,
        backend=backend,
        **surrogate_options(surrogate, alpha, spiking),
    )


def scan(
    neuron: str,
    current: Tensor,
    *,
    states: States,
    coefficients: Sequence[Coefficient] = (),
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Runs any neuron of ``ScanCells`` (csrc/cell.h) over a sequence.

    Args:
        neuron: the ``kName`` of the cell.
        current: as for :func:`lif`.
        states: tensors ``[N, *]`` before the first step by name, in the order of the cell's states; ``None`` = zeros.
            One called ``"spikes"`` holds the spikes of the step before.
        coefficients: the cell's, in its order; each a number or a tensor ``[1]`` or ``[C]``, which learns.
        v_threshold, v_reset, surrogate, alpha, detach_reset, spiking, store_v_seq, backend: as for :func:`lif`, but
            for what only the reference runs, ``backend="reference"`` and a function as ``surrogate``: its equations
            are those of the neurons' own functions and take parameters, not coefficients.

    Returns:
        ``(spikes, *states)`` without ``"spikes"``, and ``v_seq`` after them if ``store_v_seq``.

    Raises:
        TypeError, ValueError: as :func:`lif`; also for a neuron that is not in ScanCells, or another number of states
            or coefficients than it has.
    """
    number, threshold = split_threshold(v_threshold)
    config = _config(surrogate, alpha, spiking, number, v_reset, detach_reset, store_v_seq, backend)
    if config.backend == REFERENCE or config.surrogate_function is not None:
        got = f"backend: got {REFERENCE!r}" if config.backend == REFERENCE else "surrogate: got a function"
        own = f"call stc_cuda.{neuron}" if neuron in cells.CELLS else "write a function for the neuron"
        raise ValueError(
            f"{got}, expected what kernels can run, since the reference takes no coefficients; {own} for it"
        )
    if not isinstance(states, Mapping):
        raise TypeError(f"states: got {type(states).__name__}, expected tensors or None by name")
    if not isinstance(coefficients, Sequence):
        raise TypeError(f"coefficients: got {type(coefficients).__name__}, expected a sequence of numbers and tensors")
    known = cells.CELLS.get(neuron)
    if known and tuple(states) != known.states:
        raise ValueError(f"states: got {', '.join(states) or 'none'}, expected {', '.join(known.states)} in this order")
    if known and v_reset is not None and not known.hard_reset:
        raise ValueError(f"v_reset: got {v_reset}, expected None: {neuron} has a reset of its own")
    given = {f"coefficients[{i}]": x for i, x in enumerate(coefficients)}
    numbers = tuple(name for name, x in given.items() if isinstance(x, (int, float)))
    cell = Cell(neuron, tuple(states), coefficients=lambda **_: coefficients, options=numbers)
    return call_scan(cell, config, current, states, given, threshold)


def integrate_fire(
    current: Tensor,
    *,
    v: Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Runs the integrate-and-fire neuron over a sequence: ``u_t = v_{t-1} + x_t``, then spike and reset as :func:`lif`.

    It is SpikingJelly's ``IFNode`` (whose ``v_reset`` is 0 by default, and which begins at ``v_reset``). Arguments,
    results and errors are those of :func:`lif` without ``tau`` and ``decay_input``.
    """
    number, threshold = split_threshold(v_threshold)
    config = _config(surrogate, alpha, spiking, number, v_reset, detach_reset, store_v_seq, backend)
    return call_scan(cells.INTEGRATE_FIRE, config, current, {"v": v}, {}, threshold)


def lif(
    current: Tensor,
    *,
    tau: float = 2.0,
    decay_input: bool = True,
    v: Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Runs the leaky integrate-and-fire neuron over a sequence.

    Per step t, with zero state before the first step unless ``v`` is given::

        u_t = rest + (1 - 1/tau) (v_{t-1} - rest) + x_t / tau       rest = v_reset, or 0 where that is None
        s_t = Heaviside(u_t - v_threshold)
        v_t = u_t - v_threshold s_t                                 (soft reset, v_reset None)
        v_t = u_t (1 - s_t) + v_reset s_t                           (hard reset)

    With ``decay_input=False`` the input is ``x_t`` itself. With the defaults this is the LIF of the STC paper's
    comparison, 0.5 v + 0.5 x; it is SpikingJelly's ``LIFNode`` too (whose ``v_reset`` is 0 by default, and which begins
    at ``v_reset``; this one at 0 unless ``v`` is given).

    Args:
        current: input ``[T, N, *]`` or ``[T, N, C, *]``, float32, float64, float16 or bfloat16. T and N may be 0. Any
            order of the dimensions within a step (channels_last, say) is taken as it is and kept for the results;
            overlapping or spread-out memory is copied.
        tau: membrane time constant in steps, above 0 (keep = 1 - 1/tau).
        decay_input: whether the input is divided by ``tau``.
        v: membrane potential before the first step ``[N, *]``, float64 for a float64 current and float32 for others.
        v_threshold: firing threshold; a number, or a tensor ``[1]`` or ``[C]``, which learns.
        v_reset: ``None`` resets by subtraction of the threshold; a number is the potential after a spike.
        surrogate: surrogate gradient: a name, a :class:`stc_cuda.Surrogate`, a SpikingJelly surrogate object or a
            function of ``u - v_threshold`` (slow, with a warning).
        alpha: its steepness; ``None`` is the surrogate's own default.
        detach_reset: no gradient through the spikes in the reset.
        spiking: ``False`` replaces the Heaviside step by the surrogate's primitive.
        store_v_seq: also return the membrane potential after reset of every step.
        backend: ``"auto"`` (compiled kernels of the device), ``"cpu"``, ``"cuda"``, ``"reference"`` (plain PyTorch,
            slow, with ordinary autograd) or a registered name.

    Returns:
        ``(spikes [T, N, *], v [N, *])``, with ``v_seq [T, N, *]`` after them if ``store_v_seq``; spikes of the
        current's dtype, potentials of the state's.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes do not fit.
        ValueError: a rank, shape, device or option is not as described here.
    """
    if isinstance(tau, bool) or not isinstance(tau, (int, float)):
        raise TypeError(f"tau: got {type(tau).__name__}, expected a number (plif has a decay that learns)")
    if not 1 / LARGEST < tau < math.inf:  # 1 / tau is a coefficient
        raise ValueError(f"tau: got {tau}, expected a finite time constant above 0, whose inverse float32 can hold")
    if not isinstance(decay_input, bool):
        raise TypeError(f"decay_input: got {type(decay_input).__name__}, expected True or False")
    number, threshold = split_threshold(v_threshold)
    config = _config(surrogate, alpha, spiking, number, v_reset, detach_reset, store_v_seq, backend)
    return call_scan(cells.LIF, config, current, {"v": v}, {"tau": tau, "decay_input": decay_input}, threshold)


def plif(
    current: Tensor,
    decay_logit: Tensor,
    *,
    textbook: bool = False,
    v: Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Runs the LIF neuron with a learnt decay (parametric LIF, Fang et al. 2021) over a sequence.

    ::

        u_t = rest + keep (v_{t-1} - rest) + gain x_t               keep = sigmoid(w), rest as for lif

    The authors of STC weight the input by ``gain = 1 - w``, not by ``1 - sigmoid(w)``; at w = 0 that is 1, not 0.5.
    Their checkpoints depend on it, so it is the default here; ``textbook=True`` gives ``gain = 1 - sigmoid(w)``, which
    with ``w`` of the other sign is SpikingJelly's ``ParametricLIFNode``.

    Args:
        decay_logit: w ``[1]`` or ``[C]``.
        textbook: whether ``gain`` is ``1 - sigmoid(w)``.
        current, v, v_threshold, v_reset, surrogate, alpha, detach_reset, spiking, store_v_seq, backend: as for
            :func:`lif`, and so are results and errors.
    """
    if not isinstance(textbook, bool):
        raise TypeError(f"textbook: got {type(textbook).__name__}, expected True or False")
    number, threshold = split_threshold(v_threshold)
    config = _config(surrogate, alpha, spiking, number, v_reset, detach_reset, store_v_seq, backend)
    parameters = {"decay_logit": decay_logit, "textbook": textbook}
    return call_scan(cells.PLIF, config, current, {"v": v}, parameters, threshold)


def lmh(
    current: Tensor,
    *,
    dendrite_decay: Tensor,
    soma_to_dendrite: Tensor,
    dendrite_to_soma: Tensor,
    soma_decay: Tensor,
    v: Tensor | None = None,
    dendrite: Tensor | None = None,
    v_threshold: Threshold = 1.0,
    v_reset: float | None = None,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = True,
    spiking: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Runs the two-compartment LM-H neuron (Hao et al. 2024) over a sequence.

    ::

        d_t = (sigmoid(dendrite_decay) - 1/2) d_{t-1} + (sigmoid(soma_to_dendrite) - 1/2) v_{t-1} + x_t
        u_t = (sigmoid(dendrite_to_soma) + 1/2) d_t + (sigmoid(soma_decay) + 1/2) v_{t-1}

    then spike and reset as :func:`lif`; the reset is detached unless ``detach_reset=False``.

    Args:
        dendrite_decay, soma_to_dendrite, dendrite_to_soma, soma_decay: logits ``[1]`` or ``[C]``, the authors' d_u,
            s_u, d_p and s_p.
        dendrite: d before the first step ``[N, *]``, dtype of ``v``.
        current, v, v_threshold, v_reset, surrogate, alpha, detach_reset, spiking, store_v_seq, backend: as for
            :func:`lif`, and so are errors.

    Returns:
        ``(spikes [T, N, *], v [N, *], dendrite [N, *])``, with ``v_seq [T, N, *]`` after them if ``store_v_seq``.
    """
    number, threshold = split_threshold(v_threshold)
    config = _config(surrogate, alpha, spiking, number, v_reset, detach_reset, store_v_seq, backend)
    parameters = {
        "dendrite_decay": dendrite_decay,
        "soma_to_dendrite": soma_to_dendrite,
        "dendrite_to_soma": dendrite_to_soma,
        "soma_decay": soma_decay,
    }
    return call_scan(cells.LMH, config, current, {"v": v, "dendrite": dendrite}, parameters, threshold)


def tclif(
    current: Tensor,
    *,
    soma_to_dendrite: Tensor,
    dendrite_to_soma: Tensor,
    reset_gain: Tensor,
    v: Tensor | None = None,
    dendrite: Tensor | None = None,
    spikes: Tensor | None = None,
    v_threshold: Threshold = 1.0,
    surrogate: object = "sigmoid",
    alpha: float | None = None,
    detach_reset: bool = True,
    spiking: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Runs the two-compartment TC-LIF neuron (Zhang et al. 2024), as the authors of STC have it, over a sequence.

    Both compartments are reset by the spike of the step before::

        d_t = d_{t-1} - sigmoid(soma_to_dendrite) v_{t-1} + x_t - reset_gain s_{t-1}
        v_t = v_{t-1} + sigmoid(dendrite_to_soma) d_t - v_threshold s_{t-1}
        s_t = Heaviside(v_t - v_threshold)

    Args:
        soma_to_dendrite, dendrite_to_soma: logits ``[1]`` or ``[C]``, the authors' s_u and s_p.
        reset_gain: ``[1]`` or ``[C]``, used as it is; the authors' t_m.
        dendrite: d before the first step ``[N, *]``, dtype of ``v``.
        spikes: those before the first step ``[N, *]``, 0 or 1 unless ``spiking=False``.
        detach_reset: no gradient through s_{t-1}, as the authors have it.
        current, v, v_threshold, surrogate, alpha, spiking, store_v_seq, backend: as for :func:`lif`, and so are errors.

    Returns:
        ``(spikes [T, N, *], v [N, *], dendrite [N, *])``, with ``v_seq [T, N, *]`` after them if ``store_v_seq``.
    """
    number, threshold = split_threshold(v_threshold)
    config = _config(surrogate, alpha, spiking, number, None, detach_reset, store_v_seq, backend)
    states = {"v": v, "dendrite": dendrite, "spikes": spikes}
    parameters = {
        "soma_to_dendrite": soma_to_dendrite,
        "dendrite_to_soma": dendrite_to_soma,
        "reset_gain": reset_gain,
    }
    return call_scan(cells.TCLIF, config, current, states, parameters, threshold)


def glif(
    current: Tensor,
    *,
    gate_alpha: Tensor,
    gate_beta: Tensor,
    gate_gamma: Tensor,
    tau: Tensor,
    threshold: Tensor,
    leak: Tensor,
    conduct: Tensor,
    reset: Tensor,
    v: Tensor | None = None,
    spikes: Tensor | None = None,
    surrogate: object = "rect",
    alpha: float | None = None,
    detach_reset: bool = False,
    spiking: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Runs the gated LIF neuron (Yao et al. 2022), as the authors of STC have it, over a sequence.

    Every parameter stands for its sigmoid; those of the three gates al, be, ga are constants to the gradient::

        v_t = (1 - al (1 - tau)) v_{t-1} (1 - ga s_{t-1}) - (1 - al) leak + (1 - be (1 - conduct)) x_t
              - (1 - ga) reset s_{t-1}
        s_t = 1 where v_t > threshold, strictly

    Args:
        gate_alpha, gate_beta, gate_gamma, tau, threshold, leak, conduct, reset: logits ``[1]`` or ``[C]``, the authors'
            alpha, beta, gamma, tau, Vth, leak, conduct and reVth.
        spikes: those before the first step ``[N, *]``, 0 or 1 unless ``spiking=False``.
        surrogate: as for :func:`lif`; by default the rectangle of width 1 that the authors take for this neuron.
        detach_reset: no gradient through s_{t-1}.
        current, v, alpha, spiking, store_v_seq, backend: as for :func:`lif`, and so are results and errors.
    """
    config = _config(surrogate, alpha, spiking, 1.0, None, detach_reset, store_v_seq, backend)
    parameters = {
        "gate_alpha": gate_alpha,
        "gate_beta": gate_beta,
        "gate_gamma": gate_gamma,
        "tau": tau,
        "threshold": threshold,
        "leak": leak,
        "conduct": conduct,
        "reset": reset,
    }
    return call_scan(cells.GLIF, config, current, {"v": v, "spikes": spikes}, parameters)
