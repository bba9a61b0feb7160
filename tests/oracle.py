"""Random problems for the STC kernels, the float64 oracle that answers them, and the measures of agreement.

The oracle is ``stc_cuda.reference`` in float64, which test_reference.py checks against independent transcriptions of
the equations. Every comparison follows the numerics policy: spikes of float32 may differ from the oracle's only where
the oracle's ``|u - v_threshold|`` is at most ``BAND (|v| + |I| + 1)``, and gradients of float32 may be at most twice
as wrong as those of plain PyTorch in float32.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.nn.functional as F
from cuda_emulation import NAME as EMULATED  # importing it registers the backend
from torch import Tensor

import stc_cuda

INPUTS = (
    "current",
    "temporal_weight",
    "spatial_weight",
    "v",
    "spikes",
    "current_norm_weight",
    "current_norm_bias",
    "temporal_norm_weight",
    "temporal_norm_bias",
    "spatial_norm_weight",
    "spatial_norm_bias",
)
OUTPUTS = ("spikes", "v", "v_seq")
BAND = 64 * 2.0**-24
ULP = 2.0**-24

KERNEL_BACKENDS = [name for name in stc_cuda.backend_names() if name not in ("auto", "reference")]
ALL_BACKENDS = [*KERNEL_BACKENDS, "reference"]

# Emulated kernels do some 1e7 multiplications a second. They are given the same tests, and of long ones a part.
EMULATED_MULTIPLICATIONS = 2_000_000

Tensors = dict[str, Tensor | None]
Function = Callable[..., tuple[Tensor, ...]]


def device_of(backend: str) -> torch.device:
    """Where the tensors of a backend live."""
    return torch.device("cuda" if backend == "cuda" else "cpu")


def affordable(case: Case, backend: str) -> bool:
    """Whether a random configuration is small enough for the backend; emulation leaves out the largest third."""
    return backend != EMULATED or case.multiplications <= EMULATED_MULTIPLICATIONS


def kernel(backend: str) -> Function:
    """``stc_lif`` on one backend."""

    def call(*args: Tensor, **options: object) -> tuple[Tensor, ...]:
        return stc_cuda.stc_lif(*args, **options, backend=backend)  # type: ignore[arg-type]

    return call


def eager(*args: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The reference itself, under ordinary autograd."""
    return stc_cuda.reference.stc_lif(*args, **options)  # type: ignore[arg-type]


# --- problems -------------------------------------------------------------------------------------------------------

MAPS = ((1, 1), (1, 7), (2, 2), (3, 1), (5, 3), (4, 4), (7, 9), (6, 33), (16, 16), (37, 41))
CHANNELS_PER_GROUP = (1, 3, 5, 8, 16, 17, 33)
LAYOUTS = ("contiguous", "contiguous", "channels_last", "sliced", "transposed", "expanded")
UPSTREAM = (("spikes",), ("v",), ("v_seq",), ("spikes", "v"), ("spikes", "v_seq"), ("spikes", "v", "v_seq"))
MAX_MULTIPLICATIONS = 60_000_000


@dataclass(frozen=True)
class Case:
    """One configuration; ``seed`` makes its tensors."""

    seed: int = 0
    steps: int = 3
    samples: int = 2
    groups: int = 2
    in_group: int = 3
    norm_groups: int | None = None
    height: int = 5
    width: int = 4
    kernel: int = 3
    v_threshold: float = 1.0
    v_reset: float | None = None
    surrogate: str = "sigmoid"
    alpha: float | None = None
    eps: float = 1e-5
    gradient_detach: bool = False
    detach_reset: bool = False
    spiking: bool = True
    store_v_seq: bool = True
    current_norm: bool = True
    temporal_norm: bool = True
    spatial_norm: bool = True
    initial_v: bool = True
    initial_spikes: bool = True
    drive: float = 0.5
    spread: float = 1.0
    gate_gain: float = 0.5
    layout: str = "contiguous"
    upstream: tuple[str, ...] = OUTPUTS

    @property
    def channels(self) -> int:
        return self.groups * self.in_group

    @property
    def norm_elements(self) -> int:
        """Elements that share one mean and deviation."""
        return self.channels // (self.norm_groups or self.groups) * self.height * self.width

    @property
    def degenerate(self) -> bool:
        """Whether a norm leaves (next to) nothing of what enters it, so that gradients before it are rounding."""
        one_weight = self.in_group * self.kernel == 1 and self.norm_groups in (None, self.channels)
        return self.norm_elements <= 2 or one_weight

    @property
    def neurons(self) -> int:
        """Neurons times steps times samples."""
        return self.steps * self.samples * self.channels * self.height * self.width

    @property
    def multiplications(self) -> int:
        """Of both gate convolutions over the whole sequence."""
        return 2 * self.neurons * self.in_group * self.kernel**2

    def options(self) -> dict[str, object]:
        """Keyword arguments of ``stc_lif`` that are not tensors."""
        names = ("groups", "norm_groups", "eps", "v_threshold", "v_reset", "surrogate", "alpha", "gradient_detach")
        names += ("detach_reset", "spiking", "store_v_seq")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        """The fields that differ from a plain case, enough to make it again."""
        plain = Case()
        named = (f.name for f in dataclasses.fields(self))
        return f"Case({', '.join(f'{n}={getattr(self, n)!r}' for n in named if getattr(self, n) != getattr(plain, n))})"


def random_case(seed: int) -> Case:
    """The configuration of a seed: a pure function of it, on every machine."""
    draw = random.Random(seed)
    in_group = draw.choice(CHANNELS_PER_GROUP)
    groups = draw.choice((1, 2, 2, 3, 4))
    divisors = [d for d in range(1, groups * in_group + 1) if groups * in_group % d == 0]
    height, width = draw.choice(MAPS)
    # A drive far from 0 makes nearly all neurons silent or nearly all of them fire.
    drive = draw.uniform(-2.2, 2.5)
    upstream = draw.choice(UPSTREAM)
    case = Case(
        seed=seed,
        steps=draw.randint(1, 8),
        samples=draw.randint(1, 3),
        groups=groups,
        in_group=in_group,
        norm_groups=draw.choice((None, draw.choice(divisors))),
        height=height,
        width=width,
        kernel=draw.choice((1, 3, 5, 7)),
        v_threshold=draw.choice((1.0, 1.0, 0.5, 1.75)),
        v_reset=draw.choice((None, None, 0.0, -0.3, 0.25)),
        surrogate=draw.choice(("sigmoid", "atan")),
        alpha=draw.choice((None, None, 1.3, 6.0)),
        eps=draw.choice((1e-5, 1e-5, 1e-3)),
        gradient_detach=draw.random() < 0.5,
        detach_reset=draw.random() < 0.5,
        spiking=draw.random() < 0.75,
        store_v_seq="v_seq" in upstream or draw.random() < 0.3,
        current_norm=draw.random() < 0.7,
        temporal_norm=draw.random() < 0.7,
        spatial_norm=draw.random() < 0.7,
        initial_v=draw.random() < 0.5,
        initial_spikes=draw.random() < 0.5,
        drive=drive,
        spread=draw.choice((0.3, 1.0, 2.0)),
        gate_gain=draw.choice((0.1, 0.5, 1.0)),
        layout=draw.choice(LAYOUTS),
        upstream=upstream,
    )
    # What is too large for a test suite loses groups, then samples, then steps.
    for name in ("groups", "samples", "steps"):
        while case.multiplications > MAX_MULTIPLICATIONS and getattr(case, name) > 1:
            case = dataclasses.replace(case, **{name: getattr(case, name) - 1})
    if case.norm_groups is not None and case.channels % case.norm_groups:
        case = dataclasses.replace(case, norm_groups=case.in_group)
    if case.samples * case.norm_elements == 1:  # torch.nn.functional.group_norm refuses it
        case = dataclasses.replace(case, samples=2)
    return case


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values under other strides; ``expanded`` repeats the first sample and so changes the values."""
    if layout == "channels_last" and x.dim() >= 4:
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)
    if layout == "transposed" and x.dim() >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        # Every other element of the last axis, from inside a buffer whose rest must never be read.
        wide = x.new_full([n + 3 for n in x.shape[:-1]] + [2 * x.shape[-1] + 3], float("nan"))
        inside = wide[(*(slice(1, n + 1) for n in x.shape[:-1]), slice(1, 2 * x.shape[-1] + 1, 2))]
        inside.copy_(x)
        return inside
    if layout == "expanded" and x.dim() >= 4:
        return x[..., :1, :, :, :].expand_as(x)
    return x


@dataclass
class Problem:
    """A case with its tensors and the gradients that arrive at its outputs."""

    case: Case
    inputs: Tensors
    upstream: dict[str, Tensor]
    options: dict[str, object] = field(default_factory=dict)

    def to(self, **kwargs: object) -> Problem:
        """The same on another device or in another dtype."""
        move = {name: None if x is None else x.to(**kwargs) for name, x in self.inputs.items()}  # type: ignore[arg-type]
        upstream = {name: x.to(**kwargs) for name, x in self.upstream.items()}  # type: ignore[arg-type]
        return dataclasses.replace(self, inputs=move, upstream=upstream)


def make_problem(case: Case, dtype: torch.dtype) -> Problem:
    """The tensors of a case, on the CPU."""
    rng = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=rng, dtype=torch.float64) * std + mean).to(dtype)

    c, state = case.channels, (case.samples, case.channels, case.height, case.width)
    weight_shape = (c, case.in_group, case.kernel, case.kernel)
    # Without a norm the sums themselves must be of the order of the gain.
    fan_in = case.in_group * case.kernel**2
    inputs: Tensors = dict.fromkeys(INPUTS)
    current_scale = (0.0, 1.0) if case.current_norm else (case.drive, case.spread)
    inputs["current"] = normal(case.steps, *state, mean=current_scale[0], std=current_scale[1])
    for path, norm in (("temporal", case.temporal_norm), ("spatial", case.spatial_norm)):
        inputs[f"{path}_weight"] = normal(*weight_shape, std=(1.0 if norm else 2 * case.gate_gain) / fan_in**0.5)
        if norm:
            inputs[f"{path}_norm_weight"] = normal(c, std=case.gate_gain)
            inputs[f"{path}_norm_bias"] = normal(c, std=0.3)
    if case.current_norm:
        inputs["current_norm_weight"] = normal(c, mean=case.spread, std=0.2)
        inputs["current_norm_bias"] = normal(c, mean=case.drive, std=0.2)
    if case.initial_v:
        inputs["v"] = normal(*state, std=0.7)
    if case.initial_spikes:
        inputs["spikes"] = (normal(*state) > 0.5).to(dtype) if case.spiking else normal(*state).sigmoid()
    shapes = {"spikes": (case.steps, *state), "v": state, "v_seq": (case.steps, *state)}
    upstream = {name: normal(*shapes[name]) for name in case.upstream}

    # Weights keep their values under every layout; an expanded weight would make all gates of a group equal.
    def place(name: str, x: Tensor) -> Tensor:
        return lay_out(x, "sliced" if case.layout == "expanded" and "weight" in name else case.layout)

    inputs = {name: None if x is None else place(name, x) for name, x in inputs.items()}
    upstream = {name: place(name, x) for name, x in upstream.items()}
    return Problem(case, inputs, upstream, case.options())


# --- running them ---------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Outputs by name, and the gradient of every given input (zeros where there is none)."""

    outputs: dict[str, Tensor]
    grads: dict[str, Tensor]


def call(function: Function, inputs: Mapping[str, Tensor | None], options: Mapping[str, object]) -> dict[str, Tensor]:
    """Outputs by name."""
    pairs = {
        name: None if inputs[f"{name}_weight"] is None else (inputs[f"{name}_weight"], inputs[f"{name}_bias"])
        for name in ("current_norm", "temporal_norm", "spatial_norm")
    }
    required = (inputs["current"], inputs["temporal_weight"], inputs["spatial_weight"])
    outputs = function(*required, v=inputs["v"], spikes=inputs["spikes"], **pairs, **options)
    return dict(zip(OUTPUTS, outputs, strict=False))


def run(function: Function, problem: Problem, backward: bool = True) -> Outcome:
    """Forward, and backward from ``problem.upstream``."""
    leaves = {n: None if x is None else x.detach().requires_grad_(backward) for n, x in problem.inputs.items()}
    outputs = call(function, leaves, problem.options)
    if not backward:
        return Outcome(outputs, {})
    given = {name: x for name, x in leaves.items() if x is not None}
    used = [name for name in problem.upstream if outputs[name].requires_grad]
    grads = torch.autograd.grad(
        [outputs[name] for name in used],
        list(given.values()),
        [problem.upstream[name] for name in used],
        allow_unused=True,
    )
    found = zip(given.items(), grads, strict=True)
    return Outcome(
        {name: x.detach() for name, x in outputs.items()},
        {name: torch.zeros_like(x) if grad is None else grad for (name, x), grad in found},
    )


def solve(problem: Problem) -> Outcome:
    """The answer: the reference in float64 on the CPU, whatever the dtype of the problem."""
    return run(eager, problem.to(device="cpu", dtype=torch.float64))


def solve_uncancelled(problem: Problem) -> Outcome:
    """The oracle with the mean and deviation of every norm taken as constants.

    Where a norm's group has one or two elements its gradient is zero but for eps, and what any implementation returns
    is the rounding of terms that cancel. Their size, and so the scale of an admissible error, is the gradient here.
    """

    def norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        grouped = x.detach().unflatten(1, (groups, -1)).flatten(2)
        mean = grouped.mean(-1).repeat_interleave(x.shape[1] // groups, 1)[..., None, None]
        var = grouped.var(-1, correction=0).repeat_interleave(x.shape[1] // groups, 1)[..., None, None]
        return (x - mean) / (var + eps).sqrt() * weight[:, None, None] + bias[:, None, None]

    with mock.patch.object(F, "group_norm", norm), mock.patch.object(torch, "group_norm", norm):
        return solve(problem)


@dataclass
class Trace:
    """Per step: state before it, current after its norm, membrane potential before the reset."""

    v_before: Tensor
    spikes_before: Tensor
    current: Tensor
    u: Tensor


def trace(problem: Problem, outputs: Mapping[str, Tensor], state_dtype: torch.dtype = torch.float64) -> Trace:
    """What lies between the oracle's outputs, in float64.

    ``u`` comes from the reference too: below an unreachable threshold the state after the step is ``u``. A
    ``state_dtype`` of float32 rounds the states before each step, so that a float32 kernel can restart from them.
    """
    inputs = problem.to(device="cpu", dtype=torch.float64).inputs
    current = inputs["current"]
    assert current is not None

    def before(name: str) -> Tensor:
        first = inputs[name] if inputs[name] is not None else torch.zeros_like(current[0])
        sequence = outputs["v_seq" if name == "v" else "spikes"]
        return torch.cat([first[None], sequence[:-1]]).to(state_dtype).double()

    v_before, spikes_before = before("v"), before("spikes")
    options = {**problem.options, "v_threshold": 1e30, "v_reset": None, "spiking": True, "store_v_seq": False}
    flat = {**inputs, "current": current.flatten(0, 1)[None]}
    flat |= {"v": v_before.flatten(0, 1), "spikes": spikes_before.flatten(0, 1)}
    with torch.no_grad():
        u = call(eager, flat, options)["v"].reshape(current.shape)
        normed = current
        if inputs["current_norm_weight"] is not None:
            groups = problem.case.norm_groups or problem.case.groups
            normed = torch.group_norm(
                current.flatten(0, 1),
                groups,
                inputs["current_norm_weight"],
                inputs["current_norm_bias"],
                problem.case.eps,
            ).reshape(current.shape)
    return Trace(v_before, spikes_before, normed, u)


# --- measures of agreement ------------------------------------------------------------------------------------------


def gradient_scales(problem: Problem, answer: Outcome) -> dict[str, float]:
    """What an error in each gradient is relative to: its L2 norm, or that of the terms that cancel in it."""
    scales = {name: size(grad) for name, grad in answer.grads.items()}
    if problem.case.degenerate:
        uncancelled = {name: size(grad) for name, grad in solve_uncancelled(problem).grads.items()}
        for norm in ("current_norm", "temporal_norm", "spatial_norm"):
            # The normalised value is itself rounding then, a fraction of what the bias sees.
            if f"{norm}_bias" in uncancelled:
                uncancelled[f"{norm}_weight"] = max(uncancelled[f"{norm}_weight"], uncancelled[f"{norm}_bias"])
        scales = {name: max(scale, uncancelled[name]) for name, scale in scales.items()}
    return scales


def error(found: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference, NaN and shape mismatches included (as infinity)."""
    if found.shape != expected.shape:
        return float("inf")
    difference = torch.linalg.vector_norm(found.double().cpu() - expected.double().cpu()).item()
    return difference if difference == difference else float("inf")


def size(x: Tensor) -> float:
    """L2 norm in float64."""
    return torch.linalg.vector_norm(x.double()).item()


def band(step: Trace, v_threshold: float) -> Tensor:
    """Where the oracle's potential is too close to the threshold for float32 to decide."""
    return (step.u - v_threshold).abs() <= BAND * (step.v_before.abs() + step.current.abs() + 1)


@dataclass
class Flips:
    """Spikes that differ from the oracle's: inside and outside of the band, and which samples have none."""

    inside: int
    outside: int
    clean: Tensor

    @property
    def any(self) -> bool:
        return self.inside + self.outside > 0


def free_running_flips(found: Tensor, expected: Tensor, undecided: Tensor) -> Flips:
    """Counts the flips of each sample's first step that has any; what comes after follows another path."""
    wrong = found.double().cpu() != expected
    inside = outside = 0
    clean = ~wrong.flatten(2).any(-1).any(0)
    for sample in (~clean).nonzero().flatten().tolist():
        first = wrong[:, sample].flatten(1).any(-1).nonzero()[0].item()
        here = wrong[first, sample]
        inside += int((here & undecided[first, sample]).sum())
        outside += int((here & ~undecided[first, sample]).sum())
    return Flips(inside, outside, clean)


def mirrored(problem: Problem) -> Iterator[tuple[str, Problem, Callable[[str, Tensor], Tensor]]]:
    """The same problem in four orders of channels, rows and columns, each with the way back.

    Mathematically equal, differently rounded: how far they lie from the oracle says what float32 can do here.
    """

    def reverse(name: str, x: Tensor) -> Tensor:
        if x.dim() == 1:
            return x.flip(0)
        return x.flip((0, 1, 2, 3)) if name in ("temporal_weight", "spatial_weight") else x.flip((-3, -2, -1))

    def transpose(_: str, x: Tensor) -> Tensor:
        return x.transpose(-1, -2) if x.dim() >= 4 else x

    def both(name: str, x: Tensor) -> Tensor:
        return transpose(name, reverse(name, x))

    def neither(_: str, x: Tensor) -> Tensor:
        return x

    def back(name: str, x: Tensor) -> Tensor:
        return reverse(name, transpose(name, x))

    for label, there, way_back in (
        ("as given", neither, neither),
        ("reversed", reverse, reverse),
        ("transposed", transpose, transpose),
        ("both", both, back),
    ):
        inputs = {n: None if x is None else there(n, x).contiguous() for n, x in problem.inputs.items()}
        upstream = {n: there(n, x).contiguous() for n, x in problem.upstream.items()}
        yield label, dataclasses.replace(problem, inputs=inputs, upstream=upstream), way_back
