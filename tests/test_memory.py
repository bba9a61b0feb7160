"""What a call keeps for backward: bytes per neuron and step, and nothing outside of save_for_backward."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import oracle
import pytest
import torch
from oracle import Case, kernel, make_problem
from torch import Tensor

import stc_cuda
from stc_cuda.profiling import saved_bytes

LIMIT = 8.2  # bytes per neuron and step in float32: current 4, u 4, and a few statistics
PAPER = Case(seed=61, steps=4, samples=2, groups=16, in_group=16, height=32, width=32, kernel=5, store_v_seq=False)


def paper(backend: str) -> Case:
    return dataclasses.replace(PAPER, steps=2, samples=1, groups=4) if backend == oracle.EMULATED else PAPER


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes by address, each storage once."""
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


def living_tensors() -> list[Tensor]:
    """Every tensor that Python knows; the type is exact, since fakes left by a compiler have no storage."""
    gc.collect()
    return [x for x in gc.get_objects() if type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided]


def tensors_within(value: object, depth: int = 4) -> list[Tensor]:
    """Tensors that hang on an object through attributes and containers."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0:
        return []
    if isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = list(value)
    else:
        inside = list(getattr(value, "__dict__", {}).values())
    return [x for item in inside for x in tensors_within(item, depth - 1)]


@pytest.mark.parametrize("gradient_detach", [False, True])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("state", [True, False])
def test_bytes_saved_per_neuron_and_step(
    backend: str, gradient_detach: bool, norms: bool, state: bool, record_property: object
) -> None:
    changes = dict.fromkeys(("current_norm", "temporal_norm", "spatial_norm"), norms)
    changes |= {"gradient_detach": gradient_detach, "initial_v": state, "initial_spikes": state}
    case = dataclasses.replace(paper(backend), **changes)
    problem = make_problem(case, torch.float32).to(device=oracle.device_of(backend))
    leaves = {name: None if x is None else x.requires_grad_() for name, x in problem.inputs.items()}
    parameters = [x for name, x in leaves.items() if x is not None and ("weight" in name or "bias" in name)]
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    before = storages(living_tensors())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = oracle.call(kernel(backend), leaves, problem.options)
    kept = storages(saved)
    for parameter in parameters:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    # The state before the first step belongs to the caller and to no step.
    for name in ("v", "spikes"):
        if leaves[name] is not None:
            kept.pop(leaves[name].untyped_storage().data_ptr(), None)  # type: ignore[union-attr]
    per_neuron = sum(kept.values()) / case.neurons
    record_property("bytes_saved_per_neuron_and_step", per_neuron)  # type: ignore[operator]
    assert 4.0 < per_neuron <= LIMIT
    # Measuring less than the whole would prove nothing: the current itself is among them.
    assert leaves["current"].untyped_storage().data_ptr() in kept  # type: ignore[union-attr]

    # Nothing hidden on ctx, nor anywhere else that Python can see.
    node = outputs["spikes"].grad_fn
    assert node is not None
    while "CircuitFunction" not in type(node).__name__:
        node = node.next_functions[0][0]
        assert node is not None
    assert not tensors_within(vars(node))
    known = before | kept | storages(list(outputs.values()))
    after = storages(living_tensors())
    hidden = {address: size for address, size in after.items() if address not in known and size > 0}
    assert not hidden


@pytest.mark.parametrize("name", ["no_grad", "no input needs one"])
def test_nothing_is_kept_without_gradients(backend: str, name: str) -> None:
    problem = make_problem(paper(backend), torch.float32).to(device=oracle.device_of(backend))
    saved: list[Tensor] = []
    if name == "no_grad":
        problem.inputs["current"].requires_grad_()  # type: ignore[union-attr]
    with (
        torch.set_grad_enabled(name != "no_grad"),
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x),
    ):
        oracle.call(kernel(backend), problem.inputs, problem.options)
    assert not saved


def test_the_graph_is_freed_after_backward(backend: str) -> None:
    """u and the statistics go when backward has run, though the outputs live on."""
    problem = make_problem(paper(backend), torch.float32).to(device=oracle.device_of(backend))
    problem.inputs["temporal_weight"].requires_grad_()  # type: ignore[union-attr]
    outputs = oracle.call(kernel(backend), problem.inputs, problem.options)
    outputs["spikes"].sum().backward()
    with pytest.raises(RuntimeError, match=r"second time|backward pass has run already"):
        outputs["spikes"].sum().backward()


def test_forward_in_inference_allocates_only_its_outputs(backend: str) -> None:
    """No charge sequence is written that nobody asked for: new storage per neuron and step is the spikes' 4 bytes."""
    if oracle.device_of(backend).type != "cpu":
        pytest.skip("needs a GPU's own counters")
    problem = make_problem(paper(backend), torch.float32)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        outputs = oracle.call(kernel(backend), problem.inputs, problem.options)
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    allocated = sum(max(0, e.nbytes()) for e in events if e.name() == "[memory]")
    wanted = sum(x.untyped_storage().nbytes() for x in outputs.values())
    weights = 2 * problem.inputs["temporal_weight"].numel() * 4  # type: ignore[union-attr]
    assert allocated >= wanted
    assert allocated <= wanted + 2 * weights + 2**16


@pytest.mark.parametrize("shape", [(2, 1, 4096), (2, 4096), (2, 1, 8, 16, 32)], ids=str)
def test_an_element_wise_neuron_keeps_its_potential_alone(shape: tuple[int, ...]) -> None:
    """4 bytes: no spikes, no current where nothing but it learns, no constant spread over the channels."""
    current = torch.randn(shape, requires_grad=True)
    assert saved_bytes(lambda: stc_cuda.lif(current)) <= 4 * current.numel() + 64


def test_counting_saved_bytes_keeps_nothing() -> None:
    """A node that saves its own output, exp here, must not be kept alive by the count."""
    kept: list[weakref.ref[Tensor]] = []

    def call() -> Tensor:
        y = torch.ones(1000, requires_grad=True).exp()
        kept.append(weakref.ref(y))
        return y * 2

    assert saved_bytes(call) == 4000
    assert kept[0]() is None
