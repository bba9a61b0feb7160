"""The operators as citizens of PyTorch: schemas, fake kernels, torch.compile, torch.export of their shapes."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import oracle
import pytest
import torch
from oracle import INPUTS, Case, error, kernel, make_problem, size
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import stc_cuda

CASES = [
    Case(seed=51, steps=3, samples=2, groups=2, in_group=3, height=5, width=4, kernel=3),
    Case(seed=52, steps=2, samples=3, groups=2, in_group=9, norm_groups=3, height=4, width=4, kernel=5, v_reset=0.0),
    Case(seed=53, steps=2, groups=1, in_group=4, current_norm=False, temporal_norm=False, spatial_norm=False),
    Case(seed=54, steps=3, samples=1, initial_v=False, initial_spikes=False, gradient_detach=True, detach_reset=True),
    Case(seed=55, steps=2, samples=2, spiking=False, surrogate="atan", layout="channels_last"),
    Case(seed=56, steps=2, samples=2, layout="sliced"),
    Case(seed=57, steps=0, samples=2, norm_groups=None),
]


def operator_arguments(
    case: Case, dtype: torch.dtype, store_v_seq: bool, packed_spikes: bool, save: bool
) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Arguments of stc_forward, and of stc_backward after it."""
    problem = make_problem(case, dtype)
    alpha = {"sigmoid": 4.0, "atan": 2.0}[case.surrogate]
    current, temporal_weight, spatial_weight, v, *others = (problem.inputs[name] for name in INPUTS)
    tensors = (current, temporal_weight, spatial_weight, [v], *others, None, None)
    options = (case.groups, case.norm_groups or case.groups, case.eps, case.v_threshold, case.v_reset)
    options += (case.surrogate, alpha, case.spiking)
    forward = ("stclif", *tensors, *options, store_v_seq, packed_spikes, save)
    potentials, norm_stats = torch.ops.stc_cuda.stc_forward("stclif", *tensors, *options, False, False, True)[3:]
    upstream = ("stclif", problem.upstream["spikes"], [None], problem.upstream["v_seq"])
    flags = (case.detach_reset, case.gradient_detach, store_v_seq, packed_spikes)
    backward = (*upstream, *tensors, potentials, norm_stats, *options, *flags)
    return forward, backward


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case: Case) -> None:
    dtype = torch.float64 if case.seed % 2 else torch.float32
    store_v_seq, packed_spikes, save = case.seed % 2 == 0, case.seed % 3 == 0 and case.spiking, case.seed % 4 < 2
    forward, backward = operator_arguments(case, dtype, store_v_seq, packed_spikes, save)
    torch.library.opcheck(torch.ops.stc_cuda.stc_forward.default, forward)
    torch.library.opcheck(torch.ops.stc_cuda.stc_backward.default, backward)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)), ids=str)
def test_fake_outputs_are_like_the_real_ones(case: Case, flags: tuple[bool, bool, bool]) -> None:
    """Shapes, dtypes and strides for every combination of what can be asked for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    if flags[1] and not case.spiking:
        flags = (flags[0], False, flags[2])
    for dtype in (torch.float32, torch.float64):
        both = operator_arguments(case, dtype, *flags)
        for op, arguments in zip((torch.ops.stc_cuda.stc_forward, torch.ops.stc_cuda.stc_backward), both, strict=True):
            mode = FakeTensorMode()
            fakes = tree_map_only(Tensor, mode.from_tensor, arguments)
            with mode:
                faked = op(*fakes)
            for real, fake in zip(tree_leaves(op(*arguments)), tree_leaves(faked), strict=True):
                assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


def test_schemas_name_what_they_take() -> None:
    """Positions that backends rely on; no argument is written to, no output aliases an input."""
    forward = torch.ops.stc_cuda.stc_forward.default._schema
    backward = torch.ops.stc_cuda.stc_backward.default._schema
    tensors = ["states" if name == "v" else name for name in INPUTS] + ["threshold", "coefficients"]
    assert [a.name for a in forward.arguments[:14]] == ["neuron", *tensors]
    assert [a.name for a in backward.arguments[:4]] == ["neuron", "grad_spikes", "grad_states", "grad_v_seq"]
    assert [a.name for a in backward.arguments[4:17]] == tensors
    for schema in (forward, backward):
        assert not schema.is_mutable
        assert not any(value.alias_info for value in (*schema.arguments, *schema.returns))


def test_fake_kernels_need_no_memory() -> None:
    """A shape that no machine could hold."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        current = torch.empty(1000, 1000, 256, 512, 512)
        weight = torch.empty(256, 16, 5, 5)
        spikes, v = stc_cuda.stc_lif(current, weight, weight, groups=16)
        assert spikes.shape == (1000, 1000, 256, 512, 512)
        assert v.shape == (1000, 256, 512, 512)


# --- torch.compile --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def layer(**options: object) -> stc_cuda.STCLIF:
    torch.manual_seed(3)
    made = stc_cuda.STCLIF(3, 8, kernel_size=3, groups=2, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def train_twice(module: torch.nn.Module, state: stc_cuda.STCLIF, xs: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients of two sequences, the second one from the state that the first one left."""
    results = []
    state.reset()
    for x in xs:
        x = x.clone().requires_grad_()
        spikes = module(x)
        weight = torch.linspace(-1, 1, spikes.numel()).reshape(spikes.shape)
        grads = torch.autograd.grad((spikes * weight).sum() + state.v.square().sum(), [x, *state.parameters()])
        results += [spikes.detach(), state.v.detach().clone(), *grads]
        state.detach()
    return results


@pytest.mark.parametrize(
    ("compiler", "options"),
    [
        ("aot_eager", {}),
        ("aot_eager", {"gradient_detach": True, "detach_reset": True, "v_reset": 0.0}),
        ("aot_eager", {"surrogate_function": "atan", "store_v_seq": True}),
        ("inductor", {}),
    ],
    ids=str,
)
def test_compiled_layer(compiler: str, options: dict[str, object]) -> None:
    plain = layer(**options)
    xs = [torch.randn(3, 2, 3, 6, 5, generator=torch.Generator().manual_seed(i)) * 2 for i in range(2)]
    expected = train_twice(plain, plain, xs)
    assert 0.02 < expected[0].mean() < 0.98
    fresh = layer(**options)
    found = train_twice(torch.compile(fresh, backend=compiler, fullgraph=True), fresh, xs)
    for x, y in zip(found, expected, strict=True):
        assert error(x, y) <= 1e-5 * size(y)
    assert torch.equal(found[0], expected[0])
    if options.get("store_v_seq"):
        assert torch.equal(fresh.v_seq[-1], fresh.v)  # type: ignore[index]


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_compiled_function(backend: str, case: Case) -> None:
    problem = make_problem(case, torch.float32).to(device=oracle.device_of(backend))
    compiled = torch.compile(kernel(backend), backend="aot_eager", fullgraph=True)
    expected, found = oracle.run(kernel(backend), problem), oracle.run(compiled, problem)
    for name, x in expected.outputs.items():
        assert torch.equal(found.outputs[name], x), name
    for name, x in expected.grads.items():
        assert torch.equal(found.grads[name], x), name


def test_compiled_with_a_dynamic_batch(backend: str) -> None:
    """One graph serves every batch size and sequence length."""
    graphs = itertools.count()
    compiled_graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compiled_graphs.append(next(graphs))
        return graph.forward

    compiled = torch.compile(kernel(backend), backend=counting, fullgraph=True, dynamic=True)
    for steps, samples in ((8, 7), (9, 11), (10, 13)):
        case = dataclasses.replace(CASES[0], steps=steps, samples=samples, initial_v=False, initial_spikes=False)
        problem = make_problem(case, torch.float32).to(device=oracle.device_of(backend))
        expected, found = oracle.run(kernel(backend), problem), oracle.run(compiled, problem)
        assert torch.equal(found.outputs["spikes"], expected.outputs["spikes"])
        assert torch.equal(found.grads["temporal_weight"], expected.grads["temporal_weight"])
    assert len(compiled_graphs) == 1


def test_compiled_layer_with_a_dynamic_batch() -> None:
    plain = layer()
    compiled = torch.compile(copy.deepcopy(plain), backend="aot_eager", fullgraph=True, dynamic=True)
    for steps, samples in ((8, 7), (9, 11)):
        x = torch.randn(steps, samples, 3, 6, 5, generator=torch.Generator().manual_seed(steps)) * 2
        for module in (plain, compiled):
            module.reset()
        assert torch.equal(compiled(x), plain(x))


def test_compiled_without_gradients(backend: str) -> None:
    problem = make_problem(CASES[0], torch.float32).to(device=oracle.device_of(backend))
    compiled = torch.compile(kernel(backend), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = oracle.call(kernel(backend), problem.inputs, problem.options)
        found = oracle.call(compiled, problem.inputs, problem.options)
        options = {**problem.options, "packed_spikes": True}
        packed = oracle.call(compiled, problem.inputs, options)
    for name, x in expected.items():
        assert torch.equal(found[name], x)
        assert not found[name].requires_grad
    assert torch.equal(stc_cuda.unpack_spikes(packed["spikes"], CASES[0].channels), expected["spikes"])


def test_compiled_call_still_refuses_bad_input() -> None:
    problem = make_problem(CASES[0], torch.float32)
    compiled = torch.compile(kernel("cpu"), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="divisor"):
        oracle.call(compiled, problem.inputs, {**problem.options, "groups": 4})


def test_exported_layer() -> None:
    """torch.export keeps the operator in the graph."""
    plain = layer().eval()
    x = torch.randn(3, 2, 3, 6, 5) * 2

    class FromZero(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = plain

        def forward(self, x: Tensor) -> Tensor:
            self.layer.reset()
            spikes = self.layer(x)
            self.layer.reset()
            return spikes

    with torch.no_grad():
        program = torch.export.export(FromZero(), (x,))
        targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert any("stc_cuda.stc_forward" in target for target in targets)
        plain.reset()
        assert torch.equal(program.module()(x), plain(x))
