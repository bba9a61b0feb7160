"""Who computes a case, and how a pass of it is run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import stc_cuda
from stc_cuda import reference

from . import authors
from .cases import BACKWARD, DETACHED, FORWARD, RATES, ROLLOUT, TRAINING, Case, Inputs, make_inputs
from .timing import Prepare

# From gradient_detach to spikes.
Call = Callable[[bool], Tensor]
Neuron = Callable[..., tuple[Tensor, ...]]

OURS, GRAPH, EAGER, AUTHORS = "stc_cuda", "stc_cuda, CUDA graph", "eager reference", "authors' cell"
COMPILED, AUTOTUNED = "torch.compile", "torch.compile max-autotune"
SPIKINGJELLY = "SpikingJelly"
RIVALS = (GRAPH, EAGER, AUTHORS, COMPILED, AUTOTUNED, SPIKINGJELLY)
# On the command line.
RIVAL_KEYS = {
    "graph": GRAPH,
    "reference": EAGER,
    "authors": AUTHORS,
    "compile": COMPILED,
    "max-autotune": AUTOTUNED,
    "spikingjelly": SPIKINGJELLY,
}
CIRCUITS: dict[str, Neuron] = {OURS: stc_cuda.stc_lif, EAGER: reference.stc_lif, AUTHORS: authors.stc_lif}
COMPILE_SECONDS = {COMPILED: 40.0, AUTOTUNED: 60.0}  # for the first run, with every graph of a pass


@dataclass(frozen=True)
class Contestant:
    """One way to compute a case.

    Attributes:
        call: from ``gradient_detach`` to spikes.
        graph: captured in a CUDA graph, and replayed.
        eager: whether what it keeps for backward can be counted.
    """

    call: Call
    graph: bool = False
    eager: bool = True


@dataclass(frozen=True)
class Problem:
    """The contestants of a case and what they share."""

    contestants: dict[str, Contestant]
    leaves: list[Tensor]
    parameters: list[Tensor]


def call_circuit(neuron: Neuron, inputs: Inputs, gradient_detach: bool) -> tuple[Tensor, ...]:
    return neuron(*inputs.args, groups=inputs.groups, gradient_detach=gradient_detach, **inputs.norms, **inputs.state)


def _circuit(case: Case, device: torch.device, wanted: set[str]) -> Problem:
    inputs = make_inputs(case.layer, *RATES[case.rate], device)

    def spikes(neuron: Neuron, detach: bool) -> Tensor:
        return call_circuit(neuron, inputs, detach)[0]

    def compiled(mode: str) -> Contestant:
        function = torch.compile(reference.stc_lif, fullgraph=True, dynamic=False, mode=mode)

        def call(detach: bool) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return spikes(function, detach)

        return Contestant(call, eager=False)

    contestants = {name: Contestant(partial(spikes, f)) for name, f in CIRCUITS.items() if name in wanted}
    if GRAPH in wanted and device.type == "cuda":
        contestants[GRAPH] = Contestant(partial(spikes, stc_cuda.stc_lif), graph=True, eager=False)
    if case.section == "compiled":
        torch.compiler.reset()
        modes = {COMPILED: "default", AUTOTUNED: "max-autotune"}
        contestants |= {name: compiled(mode) for name, mode in modes.items() if name in wanted}
    return Problem(contestants, inputs.leaves, inputs.parameters)


def has_spikingjelly() -> bool:
    return importlib.util.find_spec("spikingjelly") is not None


def _neuron(case: Case, device: torch.device, wanted: set[str]) -> Problem:
    layer = case.layer
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(layer.samples, layer.channels, layer.size, layer.size, generator=generator).to(device)
    current = torch.stack([first.roll(t, dims=-1) for t in range(layer.steps)]).requires_grad_()
    logit = torch.zeros(1, device=device, requires_grad=True)  # a decay of one half, as tau = 2
    ours: dict[str, Callable[[], Tensor]] = {
        "lif": lambda: stc_cuda.lif(current, tau=2.0)[0],
        "plif": lambda: stc_cuda.plif(current, logit, textbook=True)[0],
        "integrate_fire": lambda: stc_cuda.integrate_fire(current)[0],
    }
    contestants = {OURS: Contestant(lambda detach: ours[case.name]())}
    if GRAPH in wanted and device.type == "cuda":
        contestants[GRAPH] = Contestant(lambda detach: ours[case.name](), graph=True, eager=False)
    parameters = [logit] if case.name == "plif" else []
    if SPIKINGJELLY in wanted and has_spikingjelly():
        from spikingjelly.activation_based import neuron, surrogate

        options = {"v_reset": None, "step_mode": "m", "surrogate_function": surrogate.Sigmoid()}
        make = {
            "lif": lambda: neuron.LIFNode(tau=2.0, **options),
            "plif": lambda: neuron.ParametricLIFNode(init_tau=2.0, **options),
            "integrate_fire": lambda: neuron.IFNode(**options),
        }
        node = make[case.name]().to(device)
        parameters += list(node.parameters())

        def theirs(detach: bool) -> Tensor:
            node.reset()
            return node(current)

        contestants[SPIKINGJELLY] = Contestant(theirs)
    return Problem(contestants, [current, *parameters], parameters)


def make_problem(case: Case, device: torch.device, wanted: set[str]) -> Problem:
    """The case's inputs and those of the wanted contestants that there are for it."""
    return (_neuron if case.section == "neurons" else _circuit)(case, device, wanted | {OURS})


def preparation(contestant: Contestant, what: str, leaves: list[Tensor]) -> Prepare:
    """How a pass is prepared and run."""
    detach, name = what.endswith(DETACHED), what.removesuffix(DETACHED)

    def forget_gradients() -> None:
        for leaf in leaves:
            leaf.grad = None

    def forward() -> None:
        with torch.no_grad():
            contestant.call(detach)

    def training() -> None:
        spikes = contestant.call(detach)
        spikes.backward(torch.ones_like(spikes))

    def prepare_forward() -> Callable[[], object]:
        return forward

    def prepare_training() -> Callable[[], object]:
        forget_gradients()
        return training

    def prepare_backward() -> Callable[[], object]:
        forget_gradients()
        spikes = contestant.call(detach)
        upstream = torch.ones_like(spikes)
        return lambda: spikes.backward(upstream)

    by_name = {
        FORWARD: prepare_forward,
        ROLLOUT: prepare_forward,
        BACKWARD: prepare_backward,
        TRAINING: prepare_training,
    }
    prepare = by_name[name]
    return _captured(prepare) if contestant.graph else prepare


def _captured(prepare: Prepare) -> Prepare:
    """The same run as one CUDA graph, captured at the first call. Not for a pass that is a part of one: its inputs
    would have to be made by a graph of the same memory."""
    graphs: list[torch.cuda.CUDAGraph] = []

    def replay() -> Callable[[], object]:
        if not graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    prepare()()
            torch.cuda.current_stream().wait_stream(stream)
            run, graph = prepare(), torch.cuda.CUDAGraph()
            torch.cuda.empty_cache()  # a capture cannot, and what is cached serves none
            with torch.cuda.graph(graph):
                run()
            graphs.append(graph)
        return graphs[0].replay

    return replay


def takes_part(contestant: Contestant, what: str) -> bool:
    return not (contestant.graph and what.startswith(BACKWARD))
