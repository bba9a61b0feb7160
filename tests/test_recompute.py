"""``recompute_every``: the same results from fewer kept bytes, and every step between two kept states run once more."""

from __future__ import annotations

import copy
import dataclasses

import oracle
import pytest
import torch
from oracle import Case, kernel, make_problem
from torch import Tensor

import stc_cuda
from stc_cuda.models import SpikingPredictor
from stc_cuda.profiling import saved_bytes

CIRCUITS = [name for name, neuron in oracle.NEURONS.items() if neuron.circuit]
STEPS = 7


def case_of(neuron: str, **changes: object) -> Case:
    """Two blocks and a ragged map for the persistent kernels, which take 8 channels a group of float32."""
    return dataclasses.replace(
        Case(seed=71, neuron=neuron, steps=STEPS, samples=2, groups=2, in_group=8, height=5, width=9, kernel=3),
        upstream=("spikes", "v", "v_seq", *(("dendrite",) if neuron == "stc_lmh" else ())),
        learnt_threshold=True,
        **changes,
    )


def run(backend: str, case: Case, dtype: torch.dtype, every: int | None) -> oracle.Outcome:
    problem = make_problem(case, dtype).to(device=oracle.device_of(backend))
    options = {**problem.options, "recompute_every": every}
    return oracle.run(kernel(backend, case.neuron), dataclasses.replace(problem, options=options))


def assert_same(found: oracle.Outcome, expected: oracle.Outcome, tolerance: float) -> None:
    for name, x in expected.outputs.items():
        assert torch.equal(found.outputs[name], x), name
    for name, x in expected.grads.items():
        assert found.grads[name].dtype == x.dtype
        assert oracle.size(x) > 0 or name == "spikes"
        assert oracle.error(found.grads[name], x) <= tolerance * oracle.size(x), name


@pytest.mark.parametrize("every", [1, 3, STEPS, 100])
@pytest.mark.parametrize("gradient_detach", [False, True])
@pytest.mark.parametrize("neuron", CIRCUITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_are_equal_and_gradients_differ_by_rounding(
    backend: str, neuron: str, gradient_detach: bool, every: int, dtype: torch.dtype, poison: None
) -> None:
    case = case_of(neuron, gradient_detach=gradient_detach)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5}[dtype]
    assert_same(run(backend, case, dtype, every), run(backend, case, dtype, None), tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        {"spiking": False},
        {"v_reset": 0.25, "detach_reset": True},
        {"initial_v": False, "initial_spikes": False},
        {"upstream": ("v",)},
        {"upstream": ("spikes",), "store_v_seq": False},
        {"layout": "sliced"},
        {"current_norm": False, "temporal_norm": False, "spatial_norm": False, "gate_gain": 0.1},
        {"in_group": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("gradient_detach", [False, True])
def test_with_options(backend: str, changes: dict[str, object], gradient_detach: bool, poison: None) -> None:
    case = dataclasses.replace(case_of("stc_lif", gradient_detach=gradient_detach), **changes)  # type: ignore[arg-type]
    assert_same(run(backend, case, torch.float64, 3), run(backend, case, torch.float64, None), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_currents(backend: str, dtype: torch.dtype) -> None:
    """Parameters of 16 bits as well: their gradients are added up in float32 and rounded once."""
    case = dataclasses.replace(case_of("stc_lif", spread=0.5, initial_v=False), upstream=("spikes",))
    whole, parts = (run(backend, case, dtype, every) for every in (None, 2))
    for name, x in whole.outputs.items():
        assert torch.equal(parts.outputs[name], x), name
    for name, x in whole.grads.items():
        assert parts.grads[name].dtype == x.dtype
        assert oracle.error(parts.grads[name], x) <= 4 * torch.finfo(dtype).eps * oracle.size(x), name
        assert oracle.size(x) > 0, name


def test_an_empty_sequence(backend: str) -> None:
    case = dataclasses.replace(case_of("stc_lif"), steps=0, upstream=("v",))
    plain, parts = (run(backend, case, torch.float32, every) for every in (None, 2))
    assert parts.outputs["spikes"].shape == plain.outputs["spikes"].shape
    for name, x in plain.grads.items():
        assert torch.equal(parts.grads[name], x), name


@pytest.mark.parametrize(("every", "limit"), [(8, 4.7), (4, 5.2), (1, 8.2)])
@pytest.mark.parametrize("gradient_detach", [False, True])
def test_bytes_kept(every: int, limit: float, gradient_detach: bool) -> None:
    """The current's 4 bytes, and each k-th step the state's 4 and a bit for the spike."""
    case = Case(seed=3, steps=16, samples=2, groups=4, in_group=16, height=16, width=16, kernel=5, store_v_seq=False)
    case = dataclasses.replace(case, gradient_detach=gradient_detach, initial_v=False, initial_spikes=False)
    problem = make_problem(case, torch.float32)
    leaves = {n: None if x is None else x.requires_grad_() for n, x in problem.inputs.items()}
    parameters = [x for n, x in leaves.items() if x is not None and n != "current"]
    options = {**problem.options, "recompute_every": every}
    kept = saved_bytes(lambda: oracle.call(kernel("cpu"), leaves, options), parameters) / case.neurons
    assert 4 + 4 * (16 // every - 1) / 16 <= kept <= limit


def test_the_peak_of_backward_shrinks() -> None:
    """Potentials of one part at a time: beside what is kept, backward needs its gradient and some steps' scratch."""
    peaks = {}
    for every in (None, 4):
        current = torch.randn(32, 1, 64, 32, 32, requires_grad=True)
        weights = [torch.randn(64, 16, 3, 3, requires_grad=True) for _ in range(2)]
        with torch.profiler.profile(profile_memory=True) as profile:
            spikes, _ = stc_cuda.stc_lif(current, *weights, groups=4, recompute_every=every)
            spikes.backward(spikes.detach())
        held = peak = 0
        events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        peaks[every] = peak / current.numel()
    assert peaks[4] < peaks[None] - 1.5


def test_backward_a_second_time_says_what_to_do(backend: str) -> None:
    problem = make_problem(case_of("stc_lif"), torch.float32).to(device=oracle.device_of(backend))
    problem.inputs["current"].requires_grad_()  # type: ignore[union-attr]
    outputs = oracle.call(kernel(backend), problem.inputs, {**problem.options, "recompute_every": 2})
    outputs["spikes"].sum().backward()
    with pytest.raises(RuntimeError, match=r"call detach\(\)"):
        outputs["spikes"].sum().backward()


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_wrong_values(every: object, error: type[Exception]) -> None:
    problem = make_problem(case_of("stc_lif"), torch.float32)
    with pytest.raises(error, match="recompute_every: got"):
        oracle.call(kernel("cpu"), problem.inputs, {**problem.options, "recompute_every": every})
    with pytest.raises(error, match="recompute_every: got"):
        stc_cuda.LIF(2, 4, groups=2, recompute_every=every)  # type: ignore[arg-type]


def test_packed_spikes_carry_no_gradient_here_either() -> None:
    problem = make_problem(case_of("stc_lif"), torch.float32)
    problem.inputs["current"].requires_grad_()  # type: ignore[union-attr]
    options = {**problem.options, "recompute_every": 2, "packed_spikes": True}
    with pytest.raises(ValueError, match="packed_spikes"):
        oracle.call(kernel("cpu"), problem.inputs, options)


def step(layer: torch.nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    spikes = layer(x)
    layer.reset()  # type: ignore[operator]
    weights = torch.linspace(-1, 1, spikes[0].numel()).reshape(spikes[0].shape)
    learnt = [p for p in layer.parameters() if p.requires_grad]
    return spikes, list(torch.autograd.grad((spikes * weights).sum(), learnt))


@pytest.mark.parametrize("name", ["STCLIF", "STCPLIF", "STCLMH"])
def test_a_layer_and_its_compiled_form(name: str) -> None:
    torch.manual_seed(0)
    plain = getattr(stc_cuda, name)(2, 16, 3, groups=2)
    layer = getattr(stc_cuda, name)(2, 16, 3, groups=2, recompute_every=2)
    layer.load_state_dict(plain.state_dict())
    x = torch.rand(5, 2, 2, 8, 8)
    torch._dynamo.reset()
    spikes, grads = step(plain, x)
    for other in (layer, torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")):
        found, found_grads = step(other, x)
        assert torch.equal(found, spikes)
        for a, b in zip(found_grads, grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_predictor_and_its_configuration() -> None:
    from stc_cuda.train import config

    made = config.load("digits", {"model.recompute_every": 4, "model.hidden": [8, 8]})
    model = config.build_model(made, (1, 16, 16))
    assert [cell.config.recompute_every for cell in model.cell_list] == [4, 4]  # type: ignore[union-attr]
    torch.manual_seed(0)
    plain = SpikingPredictor("stclmh", (5, 1, 16, 16), 4, (8, 8), 2, 3, 2)
    model = SpikingPredictor("stclmh", (5, 1, 16, 16), 4, (8, 8), 2, 3, 2, recompute_every=2)
    model.load_state_dict(plain.state_dict())
    frames = torch.rand(2, 9, 1, 16, 16)
    grads = []
    for each in (plain, model):
        prediction = each(frames)
        loss = (prediction - frames[:, 1:]).square().sum()
        parameters = [p for p in each.parameters() if p.requires_grad]
        grads.append((prediction, torch.autograd.grad(loss, parameters)))
    assert torch.equal(grads[0][0], grads[1][0])
    for a, b in zip(grads[0][1], grads[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-7)
