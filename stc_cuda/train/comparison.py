"""The STC authors' model beside ours: both from one state dict, on the same frames, with the same frames shown.

Their classes come from their repository on the user's disk. In float64 the two must agree to 1e-9; in float32 ours may
be four times as far from their float64 as they are themselves, up to the step where rounding flips a spike, and in the
first ten steps a spike may flip only near the threshold. (Twice is the bound of docs/numerics.md, on the worst of
several equivalent runs. One run is one draw of rounding errors that the recurrence amplifies; so its gradients are
judged together, too.)
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import SpikingPredictor, frames_to_patches, patches_to_frames
from .config import Config, ConfigError, build_model, frame_shape
from .evaluation import parameter_dtype

PACKAGE = "openstl"
CELLS, MODELS = "modules.convlif_modules", "models.convlif_model"
PUBLISHED = (
    "the code of 'Autaptic Synaptic Circuit Enhances Spatio-temporal Predictive Learning of Spiking Neural Networks' "
    "(ICML 2024, proceedings.mlr.press/v235/wang24ci.html), a fork of OpenSTL"
)
GRADIENT = "gradient of "
FREE_STEPS = 10  # so far a float32 network may run on its own and still be judged by where its spikes flip
EXACT = 1e-9  # of float64, relative in the L2 norm
OF_THEIR_ERROR = 4.0  # in float32 ...
FLOOR = 4 * 2.0**-24  # ... or this part of the size
BAND = 64 * 2.0**-24  # how near the threshold, in parts of what the potential is the sum of, a spike may flip ...
FLIP_RATE = 1e-5  # ... and how many may, of the spikes up to the first step where some do
# The rectangle of GLIF and zero gradients of what is hardly used leave sizes with no digits.
UNDERFLOW = 1e-30


class RepositoryError(ValueError):
    """A folder that is not the authors' repository, or whose model cannot be imported or made."""


@dataclass(frozen=True)
class Pair:
    """One quantity of both models.

    Attributes:
        elements: of the tensor.
        theirs, ours: its value, or the L2 norm of a tensor.
        largest: absolute difference of an element.
        relative: L2 norm of the difference over that of theirs.
        their_error, our_error: in float32, such relative differences from their model in float64.
    """

    elements: int
    theirs: float
    ours: float
    largest: float
    relative: float
    their_error: float | None = None
    our_error: float | None = None


@dataclass(frozen=True)
class Spikes:
    """A layer's spikes over all steps: fired in each model, and how many differ, first at ``first_step`` (from 0)."""

    theirs: int
    ours: int
    of: int
    differ: int
    first_step: int | None


@dataclass
class Comparison:
    """What the two models made of the same weights, frames and mask.

    Attributes:
        steps: of the network; ``judged_steps`` of them lie before the first flip of a spike in float32.
        all_gradients: each in parts of its size.
        complaints: where they differ by more than they may; empty if they agree.
    """

    neuron: str
    precision: str
    device: str
    samples: int
    parameters: int
    steps: int
    judged_steps: int
    loss: Pair
    predictions: Pair
    spikes: list[Spikes]
    gradients: dict[str, Pair]
    all_gradients: Pair
    complaints: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as for JSON."""
        return asdict(self)


# --- their classes --------------------------------------------------------------------------------------------------


def import_model(repository: Path, neuron: str) -> type[nn.Module]:
    """The authors' model class of a neuron.

    Executes their file of cells and their file of models and no other: the ``__init__`` files of their packages import
    a great deal that these do not need. Writes nothing into the repository.

    Raises:
        RepositoryError: the files or the class are not there, or cannot be imported; the message says what was
            expected.
    """
    missing = [str(file) for file in map(_file_of, (CELLS, MODELS)) if not (repository / file).is_file()]
    if missing:
        raise RepositoryError(
            f"--repository {repository}: there is no {' and no '.join(missing)}; expected a clone of {PUBLISHED}"
        )
    with _bare_packages(repository):
        cells = _import(repository, CELLS)
        public = {name: value for name, value in vars(cells).items() if not name.startswith("_")}
        vars(sys.modules[f"{PACKAGE}.modules"]).update(public)
        models = _import(repository, MODELS)
    name = f"{neuron.upper()}_Model"
    found = getattr(models, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        known = ", ".join(sorted(key for key in vars(models) if key.endswith("_Model"))) or "none"
        raise RepositoryError(
            f"{repository / _file_of(MODELS)}: has no class {name}; those that end in _Model: {known}"
        )
    return found


def _file_of(module: str) -> Path:
    return Path(PACKAGE, *module.split(".")).with_suffix(".py")


def _import(repository: Path, module: str) -> ModuleType:
    file = repository / _file_of(module)
    try:
        return importlib.import_module(f"{PACKAGE}.{module}")
    except ModuleNotFoundError as error:
        advice = ""
        if (error.name or "").split(".")[0] == "spikingjelly":
            advice = ": type pip install --no-deps spikingjelly (its dependencies would replace torch)"
        raise RepositoryError(f"{file}: needs {error.name}, which is not installed{advice}") from error
    except Exception as error:  # it is their code
        raise RepositoryError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _bare_packages(repository: Path) -> Iterator[None]:
    """Their packages as folders without ``__init__``; afterwards ``sys.modules`` is as it was."""

    def theirs() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == PACKAGE]

    before = {name: sys.modules.pop(name) for name in theirs()}
    wrote = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        for name in (PACKAGE, f"{PACKAGE}.modules", f"{PACKAGE}.models"):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(repository.joinpath(*name.split(".")))]
        yield
    finally:
        sys.dont_write_bytecode = wrote
        for name in theirs():
            del sys.modules[name]
        sys.modules.update(before)


def make_theirs(cls: type[nn.Module], config: Config, ours: SpikingPredictor) -> nn.Module:
    """Their model with the weights of ours, which are loaded strictly.

    Raises:
        RepositoryError: it cannot be made, or its weights have other names or shapes.
        ConfigError: the frames are not square, or the groups are not those that their code has.
    """
    _, height, width = ours.in_shape[1:]
    if height != width:
        raise ConfigError(
            f"data.frame_size: got {height} x {width}, expected square frames: their models know no other"
        )
    model, weight = config.model, ours.conv_last.weight
    options = SimpleNamespace(
        in_shape=ours.in_shape,
        pre_seq_length=config.data.in_frames,
        aft_seq_length=config.data.out_frames,
        patch_size=model.patch_size,
        filter_size=model.kernel_size,
        stride=1,
        layer_norm=1,
        reverse_scheduled_sampling=0,
        gradient_detach=int(model.gradient_detach),
        device=weight.device,
    )
    try:
        theirs = cls(len(model.hidden), list(model.hidden), options).to(weight.device, weight.dtype)
    except Exception as error:  # it is their code
        raise RepositoryError(f"{cls.__name__}: cannot be made: {type(error).__name__}: {error}") from error
    groups = {module.num_groups for module in theirs.modules() if isinstance(module, nn.GroupNorm)}
    if groups - {model.groups}:
        raise ConfigError(
            f"model.groups: got {model.groups}, and their norms have {', '.join(map(str, sorted(groups)))}; type "
            f"--set model.groups={min(groups)} and a model.hidden of multiples of it"
        )
    try:
        theirs.load_state_dict(ours.state_dict(), strict=True)
    except RuntimeError as error:
        raise RepositoryError(f"{cls.__name__}: does not take our weights: {error}") from error
    return theirs


# --- both at work ---------------------------------------------------------------------------------------------------


@dataclass
class _Outcome:
    """Of one model: float64 on the CPU; spikes ``[T, N, C, H, W]`` a layer, and where float32 cannot decide on them."""

    loss: Tensor
    predictions: Tensor
    spikes: list[Tensor]
    gradients: dict[str, Tensor]
    undecided: list[Tensor]


def compare(
    config: Config, repository: Path, device: torch.device, samples: int = 1, checkpoint: Path | None = None
) -> Comparison:
    """Runs both models forward and backward.

    Args:
        config: sizes, neuron, seed, and the precision, fp64 or fp32; no data is read.
        repository: folder of the authors' repository.
        device: where both compute.
        samples: sequences of random frames, each after the given ones shown or hidden by chance.
        checkpoint: weights of the authors' training; ``None`` takes random ones, all away from their initial values.

    Raises:
        RepositoryError: see :func:`import_model` and :func:`make_theirs`.
        ConfigError: a precision or size that cannot be compared.
        FileNotFoundError, ValueError: of :meth:`stc_cuda.models.SpikingPredictor.load_official_checkpoint`.
    """
    precision = config.training.precision
    if precision not in ("fp64", "fp32"):
        raise ConfigError(f"training.precision: got {precision}, expected fp64 or fp32: their code knows no other")
    cls = import_model(repository, config.model.neuron)
    generator = torch.Generator().manual_seed(config.training.seed)
    torch.manual_seed(config.training.seed)
    ours = build_model(config, frame_shape(config))
    if checkpoint is None:
        _move_away_from_start(ours, generator)
    else:
        ours.load_official_checkpoint(checkpoint)
    ours = ours.to(device, parameter_dtype(precision))
    frames = torch.rand(samples, config.total_frames, *ours.in_shape[1:], generator=generator).to(ours.conv_last.weight)
    shown = torch.rand(samples, config.data.out_frames - 1, generator=generator) < 0.5
    theirs = make_theirs(cls, config, ours)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 flips spikes
        mine = _run(ours, frames, lambda x: _ours(ours, x, shown.to(device)), _Spikes)
        other = _run_theirs(theirs, frames, shown, config)
        exact = other if precision == "fp64" else _run_theirs(theirs.double(), frames.double(), shown, config)
    return _judged(config, device, samples, ours, exact, other, mine)


def _move_away_from_start(model: nn.Module, generator: torch.Generator) -> None:
    """Norms and the neurons' own parameters: at ones and zeros a wrong place for them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 4:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def _ours(model: SpikingPredictor, frames: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    predictions = model(frames, shown)
    return predictions, F.mse_loss(predictions, frames[:, 1:])


def _run_theirs(model: nn.Module, frames: Tensor, shown: Tensor, config: Config) -> _Outcome:
    size = config.model.patch_size

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        patches = frames_to_patches(x, size).movedim(2, -1)
        mask = shown.to(x)[..., None, None, None].expand(-1, -1, *patches.shape[2:])
        predictions, loss = model(patches, mask)
        return patches_to_frames(predictions.movedim(-1, 2), size), loss

    with _at_home(frames.dtype, frames.device):
        try:
            return _run(model, frames, call, _TheirSpikes)
        except Exception as error:  # it is their code
            raise RepositoryError(f"{type(model).__name__}: cannot be run: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _at_home(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """What their code takes for granted, for a while: new tensors and casts in its dtype, a GPU to wait for."""
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        torch.set_default_dtype(dtype)
        stack.callback(torch.set_default_dtype, before)
        if dtype == torch.float64:
            stack.enter_context(mock.patch.object(Tensor, "float", Tensor.double))
        if device.type == "cpu":
            stack.enter_context(mock.patch.object(torch.cuda, "synchronize"))
        yield


class _Spikes:
    """What a layer of ours, or of theirs, does at every step."""

    def __init__(self, cell: nn.Module) -> None:
        self.cell = cell
        self.spikes: list[Tensor] = []
        self.undecided: list[Tensor] = []
        self.hooks = [cell.register_forward_hook(self.after_cell)]

    def after_cell(self, cell: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        self.spikes.append(output.detach().bool().cpu())


class _TheirSpikes(_Spikes):
    """Their cells make one step, from input, membrane potential, dendrite if any, and spikes to spikes and states."""

    def __init__(self, cell: Any) -> None:
        super().__init__(cell)
        self.current = torch.zeros(())
        self.hooks.append(cell.conv_x.register_forward_hook(self.after_current))

    def after_current(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.current = output.detach()

    def after_cell(self, cell: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        spikes, v = (x.detach() for x in output[:2])
        self.spikes.append(spikes[None].bool().cpu())
        size = sum((x.detach().abs() for x in inputs[1:]), self.current.abs() + 1)
        self.undecided.append(((self.potential(cell, spikes, v)).abs() <= BAND * size)[None].cpu())

    def potential(self, cell: Any, spikes: Tensor, v: Tensor) -> Tensor:
        """Less the threshold, from the state after the step: GLIF and TC-LIF reset in the next one."""
        if hasattr(cell, "glif"):
            return v - cell.glif.Vth.detach().sigmoid().reshape(-1, 1, 1)
        return v - 1 if type(cell).__name__.startswith("TCLIF") else v + spikes - 1


def _run(
    model: nn.Module,
    frames: Tensor,
    call: Callable[[Tensor], tuple[Tensor, Tensor]],
    record: Callable[[nn.Module], _Spikes],
) -> _Outcome:
    cells: Any = model.cell_list
    layers = [record(cell) for cell in cells]
    model.zero_grad()
    try:
        predictions, loss = call(frames)
        loss.backward()
    finally:
        for hook in (hook for layer in layers for hook in layer.hooks):
            hook.remove()
    gradients = {
        name: (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).double().cpu()
        for name, parameter in model.named_parameters()
    }
    return _Outcome(
        loss.detach().double().cpu(),
        predictions.detach().double().cpu(),
        [torch.cat(layer.spikes) for layer in layers],
        gradients,
        [torch.cat(layer.undecided) for layer in layers if layer.undecided],
    )


# --- the verdict ----------------------------------------------------------------------------------------------------


def _judged(
    config: Config,
    device: torch.device,
    samples: int,
    ours: nn.Module,
    exact: _Outcome,
    theirs: _Outcome,
    mine: _Outcome,
) -> Comparison:
    single = config.training.precision == "fp32"
    steps = theirs.predictions.shape[1]
    judged = min(_first_step(exact, mine), _first_step(exact, theirs))

    def pair(choose: Callable[[_Outcome], Tensor]) -> Pair:
        return _pair(choose(theirs), choose(mine), choose(exact) if single else None)

    sizes = {name: float(gradient.norm()) for name, gradient in exact.gradients.items()}

    def joined(outcome: _Outcome) -> Tensor:
        return torch.cat([outcome.gradients[name].flatten() / size for name, size in sizes.items() if size])

    result = Comparison(
        neuron=config.model.neuron,
        precision=config.training.precision,
        device=str(device),
        samples=samples,
        parameters=sum(parameter.numel() for parameter in ours.parameters()),
        steps=steps,
        judged_steps=judged,
        loss=pair(lambda outcome: outcome.loss),
        predictions=pair(lambda outcome: outcome.predictions[:, : judged if single else steps]),
        spikes=[_spikes(a, b) for a, b in zip(theirs.spikes, mine.spikes, strict=True)],
        gradients={name: pair(lambda outcome, name=name: outcome.gradients[name]) for name in theirs.gradients},  # type: ignore[misc]
        all_gradients=pair(joined),
    )
    result.complaints = _single_precision(result, exact, mine) if single else _double_precision(result)
    return result


def _double_precision(result: Comparison) -> list[str]:
    complaints = [f"spikes of layer {i}: {x.differ} differ" for i, x in enumerate(result.spikes) if x.differ]
    # A learnt number's gradient is a sum that may cancel: its rounding is that of the other learnt numbers' sums.
    numbers = max((pair.theirs for pair in result.gradients.values() if pair.elements == 1), default=0.0)
    for name, pair in _pairs(result).items():
        cancelled = name.startswith(GRADIENT) and pair.elements == 1 and pair.largest <= EXACT * numbers
        if not (pair.relative <= EXACT or cancelled):
            complaints.append(f"{name}: relative difference {pair.relative:.1e}")
    return complaints


def _single_precision(result: Comparison, exact: _Outcome, mine: _Outcome) -> list[str]:
    complaints = []
    step = _first_step(exact, mine)
    if step < min(result.steps, FREE_STEPS):
        # The lowest layer: a flip there is a different input to those above.
        wrong = [a[step] != b[step] for a, b in zip(exact.spikes, mine.spikes, strict=True)]
        layer = next(i for i, flips in enumerate(wrong) if flips.any())
        flipped, outside = int(wrong[layer].sum()), int((wrong[layer] & ~exact.undecided[layer][step]).sum())
        seen = sum(x[: step + 1].numel() for x in exact.spikes)
        if outside or flipped > max(1, FLIP_RATE * seen):
            complaints.append(
                f"step {step}, layer {layer}: {flipped} spikes differ from their float64, {outside} of them where "
                "rounding cannot be why"
            )
    judged = {"predictions": result.predictions} if result.judged_steps else {}
    if result.judged_steps == result.steps:
        judged |= {"loss": result.loss, "gradients": result.all_gradients}
    for name, pair in judged.items():
        assert pair.our_error is not None
        assert pair.their_error is not None
        if not pair.our_error <= OF_THEIR_ERROR * pair.their_error + FLOOR:
            complaints.append(f"{name}: relative error {pair.our_error:.1e}, theirs {pair.their_error:.1e}")
    return complaints


def _pairs(result: Comparison) -> dict[str, Pair]:
    gradients = {f"{GRADIENT}{name}": pair for name, pair in result.gradients.items()}
    return {"loss": result.loss, "predictions": result.predictions, **gradients}


def _pair(theirs: Tensor, ours: Tensor, exact: Tensor | None) -> Pair:
    difference = ours - theirs

    def relative(x: Tensor, to: Tensor) -> float:
        off = float((x - to).norm())
        return off / max(float(to.norm()), UNDERFLOW) if off else off

    errors = () if exact is None else (relative(theirs, exact), relative(ours, exact))
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    return Pair(theirs.numel(), float(theirs.norm()), float(ours.norm()), largest, relative(ours, theirs), *errors)


def _spikes(theirs: Tensor, ours: Tensor) -> Spikes:
    wrong = (theirs != ours).flatten(1).any(1).nonzero()
    first = int(wrong[0]) if len(wrong) else None
    differ = int((theirs != ours).sum())
    return Spikes(int(theirs.sum()), int(ours.sum()), theirs.numel(), differ, first)


def _first_step(a: _Outcome, b: _Outcome) -> int:
    """At which a spike differs in any layer; the number of steps if none does."""
    firsts = [_spikes(x, y).first_step for x, y in zip(a.spikes, b.spikes, strict=True)]
    return min((first for first in firsts if first is not None), default=len(a.spikes[0]))


def in_words(result: Comparison) -> str:
    """The two side by side, and the verdict, as text."""
    single = result.precision == "fp32"
    extra = f"{'their error':>13}{'our error':>13}" if single else ""
    lines = [
        f"{result.neuron}, {result.precision} on {result.device}: {result.parameters:,} parameters from one state "
        f"dict, {result.samples} x {result.steps} steps",
        f"{'':<44}{'theirs':>16}{'ours':>16}{'largest diff':>14}{'relative':>11}{extra}",
    ]

    def line(name: str, pair: Pair) -> str:
        errors = f"{pair.their_error:>13.1e}{pair.our_error:>13.1e}" if single else ""
        return f"{name:<44}{pair.theirs:>16.9g}{pair.ours:>16.9g}{pair.largest:>14.1e}{pair.relative:>11.1e}{errors}"

    names: Mapping[str, Pair] = {**_pairs(result), "all gradients, each in parts of its size": result.all_gradients}
    lines += [line("predictions (norm)" if name == "predictions" else name, pair) for name, pair in names.items()]
    for i, spikes in enumerate(result.spikes):
        first = "" if spikes.first_step is None else f", first in step {spikes.first_step}"
        lines.append(
            f"{f'spikes of layer {i}':<44}{spikes.theirs:>16,}{spikes.ours:>16,}  {spikes.differ:,} of "
            f"{spikes.of:,} differ{first}"
        )
    if result.judged_steps < result.steps and single:
        lines.append(
            f"A spike differs from their float64 in step {result.judged_steps}: the predictions before it are judged, "
            "and no gradient."
        )
    bound = f"within {OF_THEIR_ERROR:.0f} times their own error" if single else f"within {EXACT:.0e}"
    lines.append("; ".join(["DIFFERENT", *result.complaints]) if result.complaints else f"EQUAL {bound}")
    return "\n".join(lines)
