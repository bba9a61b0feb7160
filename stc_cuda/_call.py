"""One call of a neuron: checks, and the kernels or the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from ._autograd import run_scan, scan_of
from ._bits import pack_spikes
from ._checks import Pair, channels_of, check_binary, check_circuit, check_scan, state_dtype
from ._circuit import run_circuit
from .backends import runs_on_reference, select_backend
from .cells import CELLS, Cell, Coefficient
from .config import NeuronConfig, STCConfig
from .surrogate import as_surrogate

States = Mapping[str, Tensor | None]
Parameters = Mapping[str, Any]
Threshold = float | Tensor
Config = TypeVar("Config", bound=NeuronConfig)


def split_threshold(v_threshold: Threshold) -> tuple[float, Tensor | None]:
    """A threshold as an option, and as a tensor where it is one."""
    return (1.0, v_threshold) if isinstance(v_threshold, Tensor) else (v_threshold, None)


def surrogate_options(surrogate: object, alpha: float | None, spiking: bool) -> dict[str, Any]:
    """Those of a :class:`stc_cuda.config.NeuronConfig`; ``alpha`` and ``spiking=False`` overrule a surrogate object."""
    options = as_surrogate(surrogate, "surrogate").options
    if options["surrogate_function"] is not None and (alpha is not None or spiking is False):
        raise ValueError("alpha, spiking: got one of them beside a surrogate that is a function, which has its own")
    if alpha is not None:
        options["alpha"] = alpha
    if options["spiking"]:
        options["spiking"] = spiking
    return options


def kept(make: Callable[..., Config]) -> Callable[..., Config]:
    """``make(surrogate, *options)``, whose results are kept for later calls where the surrogate is a name.

    Between two layers of a network the interpreter's data leave the caches, and then what a call does in Python costs
    ten times what it does in a loop of calls.
    """
    keep = lru_cache(maxsize=256, typed=True)(make)

    @wraps(make)
    def get(surrogate: object, *options: Any) -> Config:
        if type(surrogate) is str and not torch.compiler.is_compiling():  # an object's attributes may change
            try:
                return keep(surrogate, *options)
            except TypeError:  # of an option, or because one cannot be hashed
                pass
        return make(surrogate, *options)

    get.keep = keep  # type: ignore[attr-defined]
    return get


def _rows(values: Sequence[Coefficient], channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = [
        x.to(dtype).expand(channels)
        if isinstance(x, Tensor)
        else torch.full((channels,), x, dtype=dtype, device=device)
        for x in values
    ]
    return torch.stack(rows)


@lru_cache(maxsize=64)
def _kept_rows(values: tuple[float, ...], channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # for later calls with gradients, too
        on_host = _rows(values, channels, dtype, torch.device("cpu"))
        return on_host.to(device)  # done when this returns, whichever stream uses it


def _may_keep(current: Tensor) -> bool:
    """Whether a tensor that a call like this makes is an ordinary one, and filled when the call is over."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False  # of fake tensors, a tracer's, or a transform's
    return not current.is_cuda or not torch.cuda.is_current_stream_capturing()


def _per_channel(values: Sequence[Coefficient], current: Tensor, channels: int) -> Tensor | None:
    """Numbers and tensors [1] or [channels] as [K, channels] in the dtype of the state; None for none. Read only."""
    if not values:
        return None
    dtype = state_dtype(current.dtype)
    if any(isinstance(x, Tensor) for x in values) or not _may_keep(current):
        return _rows(values, channels, dtype, current.device)
    return _kept_rows(tuple(values), channels, dtype, current.device)


def _tensors(cell: Cell, parameters: Parameters, threshold: Tensor | None) -> dict[str, Any]:
    given = {name: x for name, x in parameters.items() if name not in cell.options}
    return given if threshold is None else {**given, "v_threshold": threshold}


def _kernel_arguments(
    cell: Cell,
    parameters: Parameters,
    threshold: Tensor | None,
    states: States,
    current: Tensor,
    all_channels: bool,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Threshold [C], coefficients [K, C] and states as the operators take them; C may be 1 unless ``all_channels``."""
    # Before anything is computed from them: parameters of 16 bits may be near those at which a coefficient is 0.
    dtype = state_dtype(current.dtype)
    parameters = {name: x.to(dtype) if isinstance(x, Tensor) else x for name, x in parameters.items()}
    if cell.threshold is not None:
        threshold = cell.threshold(**parameters)
    coefficients = cell.coefficients(**parameters)
    # one number for all channels where that is all there is
    channels = channels_of(current) if all_channels or _of_channels(threshold, coefficients) else 1
    row = None if threshold is None else _per_channel([threshold], current, channels)
    rows = _per_channel(coefficients, current, channels)
    return None if row is None else row[0], rows, _states(states, current)


def _states(states: States, current: Tensor) -> list[Tensor | None]:
    given = list(states.values())
    for i, x in enumerate(given):
        if x is not None:
            # torch hands on the tensors of a list with their negation still to be done
            given[i] = x.to(state_dtype(current.dtype)).resolve_neg()
    return given


def _of_channels(threshold: Tensor | None, coefficients: Sequence[Coefficient]) -> bool:
    return any(isinstance(x, Tensor) and x.shape != (1,) for x in (threshold, *coefficients))


def _reference_arguments(
    cell: Cell, config: NeuronConfig, parameters: Parameters, threshold: Tensor | None, states: States, spikes: States
) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        **parameters,
        **states,
        **spikes,
        "surrogate": config.surrogate if config.surrogate_function is None else _elementwise(config.surrogate_function),
        "alpha": config.alpha,
        "detach_reset": config.detach_reset,
        "spiking": config.spiking,
        "store_v_seq": config.store_v_seq,
    }
    if cell.threshold is None:
        arguments["v_threshold"] = config.v_threshold if threshold is None else threshold
    if cell.hard_reset:
        arguments["v_reset"] = config.v_reset
    return arguments


def _run_reference(cell: Cell, current: Tensor, *weights: Tensor, **arguments: Any) -> tuple[Tensor, ...]:
    """Under ordinary autograd; in one dtype, because the state is never of 16 bits."""
    if cell.equations is None:
        raise ValueError(f"backend: the reference has no equations of the neuron {cell.name!r}, only kernels have")
    dtype, device = state_dtype(current.dtype), current.device.type

    def convert(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(convert, x))
        return x.to(dtype) if isinstance(x, Tensor) else x

    arguments = {name: convert(x) for name, x in arguments.items()}
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return cell.equations(current.to(dtype), *map(convert, weights), **arguments)
    with torch.autocast(device, enabled=False):  # which would give the gate convolutions 16-bit results
        return cell.equations(current.to(dtype), *map(convert, weights), **arguments)


def _elementwise(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A surrogate that is a function, held to what the equations expect of it."""

    def fire(z: Tensor) -> Tensor:
        spikes = function(z)
        if not isinstance(spikes, Tensor) or spikes.shape != z.shape or spikes.is_complex():
            got = f"{spikes.dtype} {list(spikes.shape)}" if isinstance(spikes, Tensor) else type(spikes).__name__
            raise ValueError(
                f"surrogate: got {got} from the function, expected real spikes of the shape {list(z.shape)} of its "
                "argument"
            )
        return spikes.to(z.dtype)

    return fire


def call_scan(
    cell: Cell,
    config: NeuronConfig,
    current: Tensor,
    states: States,
    parameters: Parameters,
    threshold: Tensor | None = None,
    binary_spikes: bool = False,
) -> tuple[Tensor, ...]:
    """An element-wise neuron over ``current [T, N, *]``: ``(spikes, *states but "spikes"[, v_seq])``.

    ``states`` in the order of the cell's. ``binary_spikes``: those among them are known to be 0 or 1 (or soft).
    """
    check_scan(current, states, _tensors(cell, parameters, threshold))
    if not binary_spikes:
        check_binary(states.get("spikes"), config.spiking and config.surrogate_function is None)
    if runs_on_reference(config):
        spike_seq, *rest = _run_reference(
            cell, current, **_reference_arguments(cell, config, parameters, threshold, states, {})
        )
        return (spike_seq.to(current.dtype), *rest)
    scan, coefficients = None, None
    if threshold is None and CELLS.get(cell.name) is cell and _may_keep(current):
        for x in parameters.values():
            if isinstance(x, Tensor):
                break
        else:
            numbers = tuple(parameters.items())
            scan, coefficients = _kept_scan(cell.name, config, numbers, current.dtype, current.device)
    if scan is not None:
        outputs = scan(cell.name, current, _states(states, current), None, coefficients)
    else:
        threshold, coefficients, before = _kernel_arguments(cell, parameters, threshold, states, current, False)
        outputs = run_scan(cell.name, config, current, threshold, coefficients, before)
    if "spikes" not in states:
        return outputs
    names = ["spike sequence", *states, "v_seq"]
    return tuple(x for name, x in zip(names, outputs, strict=False) if name != "spikes")


@lru_cache(maxsize=256)
def _kept_scan(
    cell: str, config: NeuronConfig, numbers: tuple[tuple[str, Any], ...], dtype: torch.dtype, device: torch.device
) -> tuple[Callable[..., tuple[Tensor, ...]] | None, Tensor | None]:
    """What a call whose parameters are numbers needs beside its tensors: the function to call, and coefficients."""
    coefficients = tuple(CELLS[cell].coefficients(**dict(numbers)))
    rows = _kept_rows(coefficients, 1, state_dtype(dtype), device) if coefficients else None
    return scan_of(config, device), rows


def call_circuit(
    cell: Cell,
    config: STCConfig,
    current: Tensor,
    weights: tuple[Tensor, Tensor],
    states: States,
    spikes: Tensor | None,
    norms: tuple[Pair, Pair, Pair],
    parameters: Parameters,
    threshold: Tensor | None = None,
    binary_spikes: bool = False,
) -> tuple[Tensor, ...]:
    """A circuit neuron over ``current [T, N, C, H, W]``: ``(spikes, *states[, v_seq])``; arguments as above."""
    check_circuit(current, *weights, states, spikes, norms, _tensors(cell, parameters, threshold), config)
    on_reference = runs_on_reference(config)
    if not binary_spikes and (on_reference or not select_backend(config.backend, current.device).checks_spikes):
        check_binary(spikes, config.spiking and config.surrogate_function is None)
    if on_reference:
        spike_seq, *rest = _run_reference(
            cell,
            current,
            *weights,
            groups=config.groups,
            norm_groups=config.resolved_norm_groups,
            eps=config.eps,
            gradient_detach=config.gradient_detach,
            **{
                name: None if pair[0] is None else pair
                for name, pair in zip(("current_norm", "temporal_norm", "spatial_norm"), norms, strict=True)
            },
            **_reference_arguments(cell, config, parameters, threshold, states, {"spikes": spikes}),
        )
        if not config.packed_spikes:
            return (spike_seq.to(current.dtype), *rest)
        check_binary(spike_seq, True, "packed_spikes", "of the surrogate function, since only those can be packed")
        return (pack_spikes(spike_seq, config.groups), *rest)
    threshold, coefficients, before = _kernel_arguments(cell, parameters, threshold, states, current, True)
    flat = (parameter for pair in norms for parameter in pair)
    return run_circuit(cell.name, config, current, *weights, spikes, *flat, threshold, coefficients, *before)
