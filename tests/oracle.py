"""Random problems for the neurons, the float64 oracle that answers them, and the measures of agreement.

The oracle is ``stc_cuda.reference`` in float64, which test_reference.py and test_reference_neurons.py check against
independent transcriptions of the equations. Every comparison follows the numerics policy: spikes of float32 may differ
from the oracle's only where the oracle's ``|u - v_threshold|`` is at most ``BAND (|v| + |I| + 1)``, with ``|d|`` added
for a neuron with a dendrite, and gradients of float32 may be at most twice as wrong as those of plain PyTorch in
float32.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.nn.functional as F
from cuda_emulation import NAME as EMULATED  # importing it registers the backend
from torch import Tensor

import stc_cuda
from stc_cuda.config import SURROGATE_ALPHA

WEIGHTS = ("temporal_weight", "spatial_weight")
NORMS = ("current_norm", "temporal_norm", "spatial_norm")
INPUTS = (
    "current",
    *WEIGHTS,
    "v",
    "spikes",
    *(f"{norm}_{part}" for norm in NORMS for part in ("weight", "bias")),
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


def kernel(backend: str, neuron: str = "stc_lif") -> Function:
    """A neuron on one backend."""

    def call(*args: Tensor, **options: object) -> tuple[Tensor, ...]:
        return getattr(stc_cuda, neuron)(*args, **options, backend=backend)

    return call


def reference(neuron: str) -> Function:
    """The reference's function itself, under ordinary autograd."""
    return getattr(stc_cuda.reference, neuron)


eager = reference("stc_lif")


# --- problems -------------------------------------------------------------------------------------------------------

LMH = ("dendrite_decay", "soma_to_dendrite", "dendrite_to_soma", "soma_decay")


@dataclass(frozen=True)
class Neuron:
    """What a function takes beside the current: names of parameters, states and options.

    Attributes:
        takes_spikes: those before the first step are a state of the neuron.
        own_threshold: the threshold is among the parameters.
        resets: by the spike of the same step; otherwise by that of the step before, and v is u.
    """

    parameters: tuple[str, ...] = ()
    states: tuple[str, ...] = ("v",)
    options: tuple[str, ...] = ()
    circuit: bool = False
    takes_spikes: bool = False
    own_threshold: bool = False
    resets: bool = True


CIRCUIT_OPTIONS = ("groups", "norm_groups", "eps", "gradient_detach")
NEURONS = {
    "integrate_fire": Neuron(),
    "lif": Neuron(options=("tau", "decay_input")),
    "plif": Neuron(("decay_logit",), options=("textbook",)),
    "lmh": Neuron(LMH, ("v", "dendrite")),
    "tclif": Neuron(
        ("soma_to_dendrite", "dendrite_to_soma", "reset_gain"), ("v", "dendrite"), takes_spikes=True, resets=False
    ),
    "glif": Neuron(
        ("gate_alpha", "gate_beta", "gate_gamma", "tau", "threshold", "leak", "conduct", "reset"),
        takes_spikes=True,
        own_threshold=True,
        resets=False,
    ),
    "stc_lif": Neuron((), ("v",), CIRCUIT_OPTIONS, circuit=True, takes_spikes=True),
    "stc_plif": Neuron(("decay_logit",), ("v",), CIRCUIT_OPTIONS, circuit=True, takes_spikes=True),
    "stc_lmh": Neuron(LMH, ("v", "dendrite"), CIRCUIT_OPTIONS, circuit=True, takes_spikes=True),
}
ELEMENTWISE = [name for name, neuron in NEURONS.items() if not neuron.circuit]

MAPS = ((1, 1), (1, 7), (2, 2), (3, 1), (5, 3), (4, 4), (7, 9), (6, 33), (16, 16), (37, 41))
CHANNELS_PER_GROUP = (1, 3, 5, 8, 16, 17, 33)
LAYOUTS = ("contiguous", "contiguous", "channels_last", "sliced", "transposed", "expanded")
UPSTREAM = (("spikes",), ("v",), ("v_seq",), ("spikes", "v"), ("spikes", "v_seq"), ("spikes", "v", "v_seq"))
MAX_MULTIPLICATIONS = 60_000_000


@dataclass(frozen=True)
class Case:
    """One configuration; ``seed`` makes its tensors. Neurons without gates read no option of gates and norms."""

    seed: int = 0
    neuron: str = "stc_lif"
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
    dimensions: int = 5
    per_channel: bool = True
    learnt_threshold: bool = False
    tau: float = 2.0
    decay_input: bool = True
    textbook: bool = False

    @property
    def kind(self) -> Neuron:
        return NEURONS[self.neuron]

    @property
    def channels(self) -> int:
        return self.groups * self.in_group

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.samples, self.channels, self.height, self.width)[: self.dimensions - 1]

    @property
    def norm_elements(self) -> int:
        """Elements that share one mean and deviation."""
        return self.channels // (self.norm_groups or self.groups) * self.height * self.width

    @property
    def degenerate(self) -> bool:
        """Whether a norm leaves (next to) nothing of what enters it, so that gradients before it are rounding."""
        one_weight = self.in_group * self.kernel == 1 and self.norm_groups in (None, self.channels)
        return self.kind.circuit and (self.norm_elements <= 2 or one_weight)

    @property
    def neurons(self) -> int:
        """Neurons times steps times samples."""
        return self.steps * math.prod(self.state_shape)

    @property
    def multiplications(self) -> int:
        """Of both gate convolutions over the whole sequence; a neuron without them counts as some ten."""
        return self.neurons * (2 * self.in_group * self.kernel**2 if self.kind.circuit else 10)

    def options(self) -> dict[str, object]:
        """Keyword arguments of the neuron's function that are not tensors."""
        names = ("surrogate", "alpha", "detach_reset", "spiking", "store_v_seq", *self.kind.options)
        if self.kind.resets:
            names += ("v_reset",)
        if not (self.kind.own_threshold or self.learnt_threshold):
            names += ("v_threshold",)
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


DIMENSIONS = (2, 3, 4, 5)
MAX_NEURONS = 20_000
MAX_CIRCUIT_MULTIPLICATIONS = 4_000_000


def random_case_of(neuron: str, seed: int) -> Case:
    """The configuration of a seed for any neuron: every rank, surrogate and shape of its parameters."""
    kind, draw = NEURONS[neuron], random.Random(f"{neuron} {seed}")
    case = random_case(seed)
    upstream = case.upstream + (("dendrite",) if "dendrite" in kind.states and draw.random() < 0.5 else ())
    case = dataclasses.replace(
        case,
        neuron=neuron,
        upstream=upstream,
        surrogate=draw.choice(tuple(SURROGATE_ALPHA)),
        per_channel=draw.random() < 0.5,
        learnt_threshold=not kind.own_threshold and draw.random() < 0.5,
    )
    if case.surrogate == "superspike" or not case.spiking:
        # A slope of 6 amplifies rounding from step to step: superspike's, whose alpha is a factor in front, and any
        # where the primitive itself is the spike.
        case = dataclasses.replace(case, alpha=None)
    if not kind.circuit:
        case = dataclasses.replace(
            case,
            dimensions=draw.choice(DIMENSIONS),
            drive=draw.uniform(-0.5, 1.5),
            tau=draw.choice((1.0, 1.5, 2.0, 7.0)),
            decay_input=draw.random() < 0.5,
            textbook=draw.random() < 0.5,
        )
    for name in ("groups", "samples", "steps", "height", "width"):
        while getattr(case, name) > 1 and (
            case.multiplications > MAX_CIRCUIT_MULTIPLICATIONS if kind.circuit else case.neurons > MAX_NEURONS
        ):
            case = dataclasses.replace(case, **{name: getattr(case, name) - 1})
    if case.channels % (case.norm_groups or 1):
        case = dataclasses.replace(case, norm_groups=case.in_group)
    if kind.circuit and case.samples * case.norm_elements == 1:
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

    c, state, neuron = case.channels, case.state_shape, case.kind
    weight_shape = (c, case.in_group, case.kernel, case.kernel)
    # Without a norm the sums themselves must be of the order of the gain.
    fan_in = case.in_group * case.kernel**2
    taken = ("current", *neuron.states, *(("spikes",) if neuron.takes_spikes else ()))
    inputs: Tensors = dict.fromkeys((*INPUTS, *neuron.states) if neuron.circuit else taken)
    normed = neuron.circuit and case.current_norm
    current_scale = (0.0, 1.0) if normed else (case.drive, case.spread)
    inputs["current"] = normal(case.steps, *state, mean=current_scale[0], std=current_scale[1])
    paths = (("temporal", case.temporal_norm), ("spatial", case.spatial_norm))
    for path, norm in paths if neuron.circuit else ():
        inputs[f"{path}_weight"] = normal(*weight_shape, std=(1.0 if norm else 2 * case.gate_gain) / fan_in**0.5)
        if norm:
            inputs[f"{path}_norm_weight"] = normal(c, std=case.gate_gain)
            inputs[f"{path}_norm_bias"] = normal(c, std=0.3)
    if normed:
        inputs["current_norm_weight"] = normal(c, mean=case.spread, std=0.2)
        inputs["current_norm_bias"] = normal(c, mean=case.drive, std=0.2)
    if case.initial_v:
        inputs |= {name: normal(*state, std=0.7) for name in neuron.states}
    if case.initial_spikes and neuron.takes_spikes:
        inputs["spikes"] = (normal(*state) > 0.5).to(dtype) if case.spiking else normal(*state).sigmoid()
    learnt = c if case.per_channel and case.dimensions > 2 else 1
    inputs |= {name: normal(learnt, std=0.7) for name in neuron.parameters}
    if case.learnt_threshold and not neuron.own_threshold:
        inputs["v_threshold"] = normal(learnt, mean=case.v_threshold, std=0.1)
    shapes = {"spikes": (case.steps, *state), "v": state, "dendrite": state, "v_seq": (case.steps, *state)}
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
        for name in NORMS
        if f"{name}_weight" in inputs
    }
    required = [inputs[name] for name in ("current", *WEIGHTS) if name in inputs]
    others = {n: x for n, x in inputs.items() if n not in ("current", *WEIGHTS) and "_norm_" not in n}
    outputs = function(*required, **others, **pairs, **options)
    names = ("spikes", "v", *(name for name in inputs if name == "dendrite"), "v_seq")
    return dict(zip(names, outputs, strict=False))


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
    return run(reference(problem.case.neuron), problem.to(device="cpu", dtype=torch.float64))


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
    """Per step, in float64: what the oracle starts from, adds up, and makes of it."""

    before: dict[str, Tensor]  # states, v, spikes and so on
    current: Tensor  # after its norm
    u: Tensor  # membrane potential before the reset
    outputs: dict[str, Tensor]  # spikes and states after the step
    v_threshold: Tensor | float

    @property
    def magnitude(self) -> Tensor:
        """Of the terms of a potential; the rounding of float32 is a fraction of it."""
        states = sum(x.abs() for name, x in self.before.items() if name != "spikes")
        return states + self.current.abs() + 1


def v_threshold_of(problem: Problem) -> Tensor | float:
    """In float64, in a shape that broadcasts over a state."""
    case, inputs = problem.case, problem.inputs
    if "v_threshold" in problem.options:
        return case.v_threshold
    theta = inputs["threshold" if case.kind.own_threshold else "v_threshold"]
    assert theta is not None
    theta = theta.cpu().double().reshape(-1, *[1] * (case.dimensions - 3))
    return theta.sigmoid() if case.kind.own_threshold else theta


def states_before(problem: Problem, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The oracle's states before every step, in float64."""
    inputs = problem.to(device="cpu", dtype=torch.float64).inputs
    current = inputs["current"]
    assert current is not None
    kind = problem.case.kind
    sequences = {"v": outputs["v_seq"], "spikes": outputs["spikes"]}
    if "dendrite" in kind.states:  # no function returns its sequence
        state, dendrites = dict(inputs), []
        with torch.no_grad():
            for x, s in zip(current.unbind(0), outputs["spikes"], strict=True):
                after = call(reference(problem.case.neuron), {**state, "current": x[None]}, problem.options)
                state |= {name: after[name] for name in kind.states} | ({"spikes": s} if kind.takes_spikes else {})
                dendrites.append(after["dendrite"])
        sequences["dendrite"] = torch.stack(dendrites)

    def before(name: str) -> Tensor:
        first = torch.zeros_like(current[0]) if inputs[name] is None else inputs[name]
        return torch.cat([first[None], sequences[name][:-1]])  # type: ignore[index]

    return {name: before(name) for name in (*kind.states, *(("spikes",) if kind.takes_spikes else ()))}


def restarted(problem: Problem, before: Mapping[str, Tensor]) -> Problem:
    """Every step from a state of its own, all steps in one call as if they were samples."""
    current = problem.inputs["current"]
    assert current is not None
    states = {name: x.to(current.dtype).flatten(0, 1) for name, x in before.items()}
    inputs = {**problem.inputs, **states, "current": current.flatten(0, 1)[None]}
    return dataclasses.replace(problem, inputs=inputs)


def trace(problem: Problem, outputs: Mapping[str, Tensor], state_dtype: torch.dtype = torch.float64) -> Trace:
    """What lies between the oracle's outputs.

    ``u`` comes from the reference too: below an unreachable threshold the state after the step is ``u``. A
    ``state_dtype`` of float32 rounds the states before each step, so that a float32 kernel can restart from them.
    """
    before = {name: x.to(state_dtype).double() for name, x in states_before(problem, outputs).items()}
    case = problem.case
    steps = restarted(problem.to(device="cpu", dtype=torch.float64), before)
    current = problem.inputs["current"]
    assert current is not None
    with torch.no_grad():
        after = call(reference(case.neuron), steps.inputs, {**steps.options, "store_v_seq": False})
        after = {name: x.reshape(current.shape) for name, x in after.items()}
        u = after["v"]
        if case.kind.resets:
            inputs = {name: x for name, x in steps.inputs.items() if name != "v_threshold"}
            options = {**steps.options, "v_threshold": 1e30, "spiking": True, "store_v_seq": False}
            u = call(reference(case.neuron), inputs, options)["v"].reshape(current.shape)
        normed = current.cpu().double()
        if steps.inputs.get("current_norm_weight") is not None:
            groups = case.norm_groups or case.groups
            weight, bias = steps.inputs["current_norm_weight"], steps.inputs["current_norm_bias"]
            normed = torch.group_norm(normed.flatten(0, 1), groups, weight, bias, case.eps).reshape(current.shape)
    return Trace(before, normed, u, after, v_threshold_of(problem))


# --- measures of agreement ------------------------------------------------------------------------------------------


def gradient_scales(problem: Problem, answer: Outcome) -> dict[str, float]:
    """What an error in each gradient is relative to: its L2 norm, or that of the terms that cancel in it."""
    scales = {name: size(grad) for name, grad in answer.grads.items()}
    if problem.case.degenerate:
        uncancelled = {name: size(grad) for name, grad in solve_uncancelled(problem).grads.items()}
        for norm in NORMS:
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


def band(steps: Trace) -> Tensor:
    """Where the oracle's potential is too close to the threshold for float32 to decide."""
    return (steps.u - steps.v_threshold).abs() <= BAND * steps.magnitude


def on_edge(problem: Problem, steps: Trace) -> bool:
    """Whether float32 cannot decide on which side of a jump of the surrogate gradient some potential lies."""
    if problem.case.surrogate != "rect":
        return False
    alpha = SURROGATE_ALPHA["rect"] if problem.case.alpha is None else problem.case.alpha
    distance = ((steps.u - steps.v_threshold).abs() - 0.5 / alpha).abs()
    return bool((distance <= BAND * steps.magnitude).any())


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
    clean = ~wrong.flatten(2).any(-1).any(0) if wrong.dim() > 2 else ~wrong.any(0)
    for sample in (~clean).nonzero().flatten().tolist():
        first = wrong[:, sample].reshape(len(wrong), -1).any(-1).nonzero()[0].item()
        here = wrong[first, sample]
        inside += int((here & undecided[first, sample]).sum())
        outside += int((here & ~undecided[first, sample]).sum())
    return Flips(inside, outside, clean)


def mirrored(problem: Problem) -> Iterator[tuple[str, Problem, Callable[[str, Tensor], Tensor]]]:
    """The same problem in up to four orders of channels, rows and columns, each with the way back.

    Mathematically equal, differently rounded: how far they lie from the oracle says what float32 can do here.
    """

    within = tuple(range(-max(1, problem.case.dimensions - 2), 0))

    def reverse(name: str, x: Tensor) -> Tensor:
        if x.dim() == 1:
            return x.flip(0)
        return x.flip((0, 1, 2, 3)) if name in WEIGHTS else x.flip(within)

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
    )[: 4 if problem.case.kind.circuit else 2]:
        inputs = {n: None if x is None else there(n, x).contiguous() for n, x in problem.inputs.items()}
        upstream = {n: there(n, x).contiguous() for n, x in problem.upstream.items()}
        yield label, dataclasses.replace(problem, inputs=inputs, upstream=upstream), way_back
