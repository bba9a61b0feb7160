"""What holds of the neuron whatever its numbers: special cases, state, empty inputs, layouts, threads, bits."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import oracle
import pytest
import torch
from oracle import INPUTS, OUTPUTS, Case, Outcome, Problem, error, kernel, make_problem, run, size, solve
from torch import Tensor

import stc_cuda

CASE = Case(seed=21, steps=4, samples=3, groups=2, in_group=5, height=6, width=5, kernel=3)


def problem_on(backend: str, case: Case, dtype: torch.dtype = torch.float64) -> Problem:
    return make_problem(case, dtype).to(device=oracle.device_of(backend))


def assert_equal(found: Outcome, expected: Outcome) -> None:
    """Bit for bit."""
    for name, x in expected.outputs.items():
        assert torch.equal(found.outputs[name], x), name
    assert found.grads.keys() == expected.grads.keys()
    for name, x in expected.grads.items():
        assert torch.equal(found.grads[name], x), f"gradient of {name}"


def assert_close(found: Outcome, expected: Outcome, tolerance: float = 1e-12) -> None:
    for name, x in expected.outputs.items():
        assert error(found.outputs[name], x) <= tolerance * size(x), name
    for name, x in expected.grads.items():
        assert error(found.grads[name], x) <= tolerance * size(x), f"gradient of {name}"


# --- special cases --------------------------------------------------------------------------------------------------


class Step(torch.autograd.Function):
    """A spike at z >= 0 whose derivative is that of sigmoid(4 z)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad / torch.cosh(2 * z) ** 2


def integrate_and_fire(current: Tensor, v: Tensor, v_threshold: float, v_reset: float | None) -> tuple[Tensor, ...]:
    spikes, potentials = [], []
    for i in current:
        u = v + i
        s = Step.apply(u - v_threshold)
        v = u - v_threshold * s if v_reset is None else (1 - s) * u + v_reset * s
        spikes.append(s)
        potentials.append(v)
    return torch.stack(spikes), v, torch.stack(potentials)


@pytest.mark.parametrize("v_reset", [None, -0.25])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_open_gates_give_integrate_and_fire(any_backend: str, dtype: torch.dtype, v_reset: float | None) -> None:
    case = dataclasses.replace(CASE, current_norm=False, v_reset=v_reset, v_threshold=0.8)
    problem = problem_on(any_backend, case, dtype)
    for name in ("temporal_norm_weight", "temporal_norm_bias", "spatial_norm_weight", "spatial_norm_bias"):
        problem.inputs[name] = torch.zeros_like(problem.inputs[name])  # type: ignore[arg-type]
    found = run(kernel(any_backend), problem)
    current, v = (problem.inputs[name].clone().requires_grad_() for name in ("current", "v"))  # type: ignore[union-attr]
    outputs = dict(zip(OUTPUTS, integrate_and_fire(current, v, 0.8, v_reset), strict=True))
    grads = torch.autograd.grad(
        [outputs[n] for n in problem.upstream], [current, v], [problem.upstream[n] for n in problem.upstream]
    )
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert torch.equal(found.outputs["spikes"], outputs["spikes"])
    assert 0.05 < outputs["spikes"].mean() < 0.95
    for name, expected in (("v", outputs["v"]), ("v_seq", outputs["v_seq"])):
        assert error(found.outputs[name], expected) <= tolerance * size(expected)
    for name, expected in zip(("current", "v"), grads, strict=True):
        assert error(found.grads[name], expected) <= tolerance * size(expected)
    for name in ("temporal_weight", "spatial_weight", "spikes"):
        assert size(found.grads[name]) == 0  # closed norms let nothing through
    assert size(found.grads["temporal_norm_bias"]) > 0


def test_a_neuron_at_the_threshold_spikes(any_backend: str) -> None:
    current = torch.tensor([1.0, 1.0 - 2.0**-23, 1.0 + 2.0**-23, 0.0]).reshape(1, 1, 1, 1, 4)
    weight = torch.zeros(1, 1, 3, 3)
    device = oracle.device_of(any_backend)
    spikes, v = kernel(any_backend)(current.to(device), weight.to(device), weight.to(device), groups=1)
    assert spikes.flatten().tolist() == [1, 0, 1, 0]
    assert v.flatten().tolist() == [0, 1.0 - 2.0**-23, 2.0**-23, 0]


def test_gates_read_the_spikes_of_the_step_before(any_backend: str) -> None:
    """One spike, weights of 1 at one tap: exactly one neuron's gate opens, on the side that correlation says."""
    device = oracle.device_of(any_backend)
    spikes = torch.zeros(1, 2, 5, 5)
    spikes[0, 1, 2, 2] = 1
    weight = torch.zeros(2, 2, 3, 3)
    weight[0, 1, 0, 1] = 2.0  # output 0 reads channel 1, one row above
    none = torch.zeros_like(weight)
    v = torch.ones(1, 2, 5, 5)
    _, u = kernel(any_backend)(
        torch.zeros(1, 1, 2, 5, 5, device=device),
        weight.to(device),
        none.to(device),
        groups=1,
        v=v.to(device),
        spikes=spikes.to(device),
        v_threshold=100.0,
    )
    expected = v.clone()
    expected[0, 0, 3, 2] = 1 + torch.tensor(2.0).tanh()
    torch.testing.assert_close(u.cpu(), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("case", [CASE, dataclasses.replace(CASE, v_reset=0.1, gradient_detach=True)], ids=str)
def test_two_calls_with_a_carried_state_equal_one(any_backend: str, case: Case) -> None:
    problem = problem_on(any_backend, case)
    whole = run(kernel(any_backend), problem)

    def in_two(current: Tensor, *weights: Tensor, v: Tensor, spikes: Tensor, **options: object) -> tuple[Tensor, ...]:
        first = kernel(any_backend)(current[:1], *weights, v=v, spikes=spikes, **options)
        second = kernel(any_backend)(current[1:], *weights, v=first[1], spikes=first[0][-1], **options)
        return torch.cat([first[0], second[0]]), second[1], torch.cat([first[2], second[2]])

    halves = run(in_two, problem)
    assert_close(halves, whole)
    if case.spiking:
        assert torch.equal(halves.outputs["spikes"], whole.outputs["spikes"])


def test_samples_do_not_touch_each_other(backend: str) -> None:
    problem = problem_on(backend, CASE)
    together = run(kernel(backend), problem)
    for n in range(CASE.samples):
        inputs = dict(problem.inputs)
        inputs["current"] = inputs["current"][:, n : n + 1]  # type: ignore[index]
        inputs["v"], inputs["spikes"] = inputs["v"][n : n + 1], inputs["spikes"][n : n + 1]  # type: ignore[index]
        upstream = {k: x[n : n + 1] if k == "v" else x[:, n : n + 1] for k, x in problem.upstream.items()}
        alone = run(kernel(backend), dataclasses.replace(problem, inputs=inputs, upstream=upstream))
        assert torch.equal(alone.outputs["spikes"], together.outputs["spikes"][:, n : n + 1])
        assert torch.equal(alone.grads["current"], together.grads["current"][:, n : n + 1])
        assert torch.equal(alone.grads["v"], together.grads["v"][n : n + 1])


# --- hard inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_group", [5, 16])
@pytest.mark.parametrize(
    ("scale", "first"),
    [(1.0, 130.0), (1.0, -1e3), (1e18, 1.0), (1e-6, 0.0)],
    ids=["outlier", "large outlier", "1e18", "1e-6"],
)
def test_norm_of_the_current(backend: str, in_group: int, scale: float, first: float) -> None:
    """An outlier where a kernel looks first, and values whose squares nearly leave float32."""
    case = dataclasses.replace(CASE, in_group=in_group, height=12, width=16, steps=1, initial_v=False, v_threshold=1e30)
    problem = make_problem(case, torch.float32)
    current = problem.inputs["current"]
    assert current is not None
    current.mul_(scale)
    current[..., 0, 0] = first * scale
    answer, found = solve(problem), run(kernel(backend), problem.to(device=oracle.device_of(backend)), backward=False)
    off = (found.outputs["v"].double().cpu() - answer.outputs["v"]).abs()
    assert bool((off <= oracle.BAND * (answer.outputs["v"].abs() + 1)).all())


def test_saved_tensors_may_come_back_anywhere(backend: str) -> None:
    """Hooks on saved tensors return what they like, as long as the values are the same."""

    def shift(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)

    problem = problem_on(backend, dataclasses.replace(CASE, in_group=16, width=8), torch.float32)
    expected = run(kernel(backend), problem)
    with torch.autograd.graph.saved_tensors_hooks(shift, lambda x: x):
        found = run(kernel(backend), problem)
    for name, grad in expected.grads.items():
        assert torch.equal(found.grads[name], grad), name


# --- empty inputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_group", [5, 16])
@pytest.mark.parametrize(("steps", "samples"), [(0, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("with_state", [True, False])
def test_empty_sequence_or_batch(
    any_backend: str, steps: int, samples: int, with_state: bool, in_group: int, poison: None
) -> None:
    case = dataclasses.replace(
        CASE, steps=steps, samples=samples, initial_v=with_state, initial_spikes=with_state, in_group=in_group
    )
    problem = problem_on(any_backend, case, torch.float32)
    leaves = {name: None if x is None else x.clone().requires_grad_() for name, x in problem.inputs.items()}
    spikes, v, v_seq = oracle.call(kernel(any_backend), leaves, problem.options).values()
    state = (samples, case.channels, case.height, case.width)
    assert spikes.shape == v_seq.shape == (steps, *state)
    assert v.shape == state
    assert spikes.dtype == v.dtype == v_seq.dtype == torch.float32
    if steps == 0:
        assert torch.equal(v, leaves["v"] if with_state else torch.zeros_like(v))
    upstream = torch.randn_like(v)
    if v.requires_grad:
        (spikes.sum() + v_seq.sum() + (v * upstream).sum()).backward()
    for name, leaf in leaves.items():
        if leaf is None or leaf.grad is None:
            continue
        if name == "v" and steps == 0:
            assert torch.equal(leaf.grad, upstream)
        else:
            assert torch.equal(leaf.grad, torch.zeros_like(leaf)), name
    if with_state and steps == 0:
        assert leaves["v"].grad is not None  # type: ignore[union-attr]
    with torch.no_grad():
        packed, v = kernel(any_backend)(*(leaves[name] for name in INPUTS[:3]), groups=case.groups, packed_spikes=True)
    assert packed.shape == (steps, samples, case.groups, case.height, case.width, (in_group + 7) // 8)
    assert torch.equal(v, torch.zeros_like(v))


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
@pytest.mark.parametrize("which", ["inputs", "upstream", "both"])
def test_strides_do_not_matter(backend: str, layout: str, which: str) -> None:
    problem = problem_on(backend, CASE, torch.float32)

    def place(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        return {
            name: None
            if x is None
            else oracle.lay_out(x, "sliced" if layout == "expanded" and "weight" in name else layout)
            for name, x in tensors.items()
        }

    strided = dataclasses.replace(
        problem,
        inputs=place(problem.inputs) if which != "upstream" else problem.inputs,
        upstream=place(problem.upstream) if which != "inputs" else problem.upstream,  # type: ignore[arg-type]
    )
    plain = dataclasses.replace(
        problem,
        inputs={n: None if x is None else x.contiguous() for n, x in strided.inputs.items()},
        upstream={n: x.contiguous() for n, x in strided.upstream.items()},
    )
    if which != "upstream":
        assert not strided.inputs["current"].is_contiguous()  # type: ignore[union-attr]
    if which != "inputs":
        assert not strided.upstream["spikes"].is_contiguous()
    assert_equal(run(kernel(backend), strided), run(kernel(backend), plain))


def test_gradient_expanded_from_a_scalar(backend: str) -> None:
    """``spikes.sum().backward()`` sends a gradient of strides 0."""
    problem = problem_on(backend, CASE)
    ones = {name: torch.ones_like(x) for name, x in problem.upstream.items()}
    broadcast = {name: x.new_ones(()).expand(x.shape) for name, x in problem.upstream.items()}
    assert_equal(
        run(kernel(backend), dataclasses.replace(problem, upstream=broadcast)),
        run(kernel(backend), dataclasses.replace(problem, upstream=ones)),
    )


def test_inputs_are_left_alone(any_backend: str) -> None:
    problem = problem_on(any_backend, CASE)
    tensors = {**problem.inputs, **{f"upstream {n}": x for n, x in problem.upstream.items()}}
    before = {name: None if x is None else x.clone() for name, x in tensors.items()}
    run(kernel(any_backend), problem)
    for name, x in tensors.items():
        assert x is None or torch.equal(x, before[name]), name  # type: ignore[arg-type]


def test_outputs_are_new_tensors(any_backend: str) -> None:
    """A state written to later must not change what was returned, nor the inputs."""
    problem = problem_on(any_backend, dataclasses.replace(CASE, steps=1, store_v_seq=False))
    with torch.no_grad():
        outputs = oracle.call(kernel(any_backend), problem.inputs, problem.options)
    pointers = {x.untyped_storage().data_ptr() for x in problem.inputs.values() if x is not None}
    assert not pointers & {x.untyped_storage().data_ptr() for x in outputs.values()}


# --- threads and instruction sets -----------------------------------------------------------------------------------

THREAD_CASES = [
    Case(seed=31, steps=3, samples=3, groups=4, in_group=16, height=9, width=8, kernel=5),
    Case(seed=32, steps=3, samples=1, groups=1, in_group=33, height=16, width=16, kernel=3, v_reset=0.0),
    Case(seed=33, steps=2, samples=5, groups=6, in_group=3, norm_groups=9, height=7, width=5, gradient_detach=True),
    Case(seed=34, steps=2, samples=2, groups=3, in_group=8, spiking=False, surrogate="atan"),
]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("case", THREAD_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_change_a_bit(backend: str, case: Case, dtype: torch.dtype) -> None:
    problem = problem_on(backend, case, dtype)
    torch.set_num_threads(1)
    expected = run(kernel(backend), problem)
    assert size(expected.grads["temporal_weight"]) > 0
    # An emulated kernel has its own threads.
    for count in (2,) if backend == oracle.EMULATED else (2, 3, 5, 5, 2):
        torch.set_num_threads(count)
        assert torch.get_num_threads() == count
        assert_equal(run(kernel(backend), problem), expected)


@pytest.mark.parametrize("case", THREAD_CASES[:2], ids=str)
def test_repeated_runs_are_equal(backend: str, case: Case) -> None:
    problem = problem_on(backend, case, torch.float32)
    expected = run(kernel(backend), problem)
    for _ in range(3 if backend == oracle.EMULATED else 20):
        assert_equal(run(kernel(backend), problem), expected)


SMALL_PARITY = """
import sys
from collections.abc import Callable
sys.path.insert(0, sys.argv[1])
import stc_cuda, torch
from oracle import make_problem, random_case
from parity import Float32Report, check_float32, check_float64

assert stc_cuda.build_info()["cpu_kernel"] == sys.argv[2], stc_cuda.build_info()
total = Float32Report()
for seed in range(3000, 3025):
    case = random_case(seed)
    complaints, _ = check_float64(make_problem(case, torch.float64), "cpu")
    assert not complaints, complaints
    total.add(check_float32(make_problem(case, torch.float32), "cpu"))
total.check()
print("compared", total.comparisons)
"""


def run_with_cpu_kernel(name: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), name],
        env={**os.environ, "STC_CUDA_CPU_KERNEL": name},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def processor_has(name: str) -> bool:
    """From the operating system's list of features, not from the code that is tested."""
    wanted = {"portable": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    if name not in wanted:
        return name == stc_cuda.build_info()["cpu_kernel"]
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return wanted[name] <= flags


@pytest.mark.parametrize("name", stc_cuda.build_info()["cpu_kernels"])
def test_every_instruction_set(name: str) -> None:
    done = run_with_cpu_kernel(name, SMALL_PARITY)
    if processor_has(name):
        assert done.returncode == 0, done.stderr[-4000:]
        assert "compared" in done.stdout
    else:
        # Chosen though the processor lacks it: refused, in place of an illegal instruction.
        assert done.returncode == 1, done.stderr[-4000:]
        assert "STC_CUDA_CPU_KERNEL" in done.stderr
        assert name in done.stderr


def test_unknown_instruction_set_is_an_error() -> None:
    done = run_with_cpu_kernel("sse9", SMALL_PARITY)
    assert done.returncode == 1
    assert "STC_CUDA_CPU_KERNEL" in done.stderr
    assert "sse9" in done.stderr
    assert "portable" in done.stderr  # what it could be


def test_the_portable_kernels_are_always_there() -> None:
    info = stc_cuda.build_info()
    assert "portable" in info["cpu_kernels"]
    assert info["cpu_kernel"] in info["cpu_kernels"]


# --- packed spikes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_group", [1, 3, 8, 16, 17])
@pytest.mark.parametrize("norm_groups", [None, 1])
def test_packed_spikes_hold_the_same_bits(any_backend: str, in_group: int, norm_groups: int | None) -> None:
    case = dataclasses.replace(CASE, in_group=in_group, norm_groups=norm_groups, store_v_seq=False)
    problem = problem_on(any_backend, case, torch.float32)
    with torch.no_grad():
        plain = oracle.call(kernel(any_backend), problem.inputs, problem.options)
        packed = oracle.call(kernel(any_backend), problem.inputs, {**problem.options, "packed_spikes": True})
    bits = packed["spikes"]
    assert bits.dtype == torch.uint8
    assert bits.shape == (case.steps, case.samples, case.groups, case.height, case.width, (in_group + 7) // 8)
    assert torch.equal(packed["v"], plain["v"])
    assert torch.equal(stc_cuda.unpack_spikes(bits, case.channels), plain["spikes"])
    assert 0 < plain["spikes"].mean() < 1
    # By hand: bit c % 8 of byte c // 8 is channel c of the group, and unused bits are 0.
    for group in range(case.groups):
        for c in range(8 * bits.shape[-1]):
            bit = bits[:, :, group, :, :, c // 8] // 2 ** (c % 8) % 2
            want = plain["spikes"][:, :, group * in_group + c] if c < in_group else torch.zeros_like(bit)
            assert torch.equal(bit.to(want.dtype), want)


def test_unpack_spikes_dtype() -> None:
    packed = torch.tensor([0b101], dtype=torch.uint8).reshape(1, 1, 1, 1)
    assert stc_cuda.unpack_spikes(packed, 3).flatten().tolist() == [1, 0, 1]
    assert stc_cuda.unpack_spikes(packed, 3, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("name", ["current", "temporal_weight", "v", "spatial_norm_bias"])
def test_packed_spikes_refuse_to_lose_a_gradient(backend: str, name: str) -> None:
    problem = problem_on(backend, CASE, torch.float32)
    problem.inputs[name].requires_grad_()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"packed_spikes: .*no_grad") as caught:
        oracle.call(kernel(backend), problem.inputs, {**problem.options, "packed_spikes": True})
    assert "True" in str(caught.value)
    with torch.no_grad():
        oracle.call(kernel(backend), problem.inputs, {**problem.options, "packed_spikes": True})


# --- autograd -------------------------------------------------------------------------------------------------------


def function_apply(backend: str) -> oracle.Function:
    """``STCFunction.apply`` with the signature of ``stc_lif``."""

    def call(
        current: Tensor, temporal: Tensor, spatial: Tensor, *, v: Tensor, spikes: Tensor, **options: object
    ) -> tuple[Tensor, ...]:
        norms = [options.pop(f"{name}_norm") or (None, None) for name in ("current", "temporal", "spatial")]
        config = stc_cuda.STCConfig(**options, backend=backend)  # type: ignore[arg-type]
        flat = [x for pair in norms for x in pair]  # type: ignore[attr-defined]
        return stc_cuda.STCFunction.apply(current, temporal, spatial, v, spikes, *flat, config)

    return call


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "initial_v": False,
            "initial_spikes": False,
            "temporal_norm": False,
            "store_v_seq": False,
            "upstream": ("spikes", "v"),
        },
    ],
    ids=str,
)
def test_function_apply_equals_stc_lif(any_backend: str, changes: dict[str, object]) -> None:
    problem = problem_on(any_backend, dataclasses.replace(CASE, **changes))
    found, expected = run(function_apply(any_backend), problem), run(kernel(any_backend), problem)
    if any_backend == "reference":
        assert_close(found, expected, 1e-12)  # one replays the sequence, the other is differentiated in place
    else:
        assert_equal(found, expected)
    assert len(found.outputs) == (3 if problem.case.store_v_seq else 2)


def test_auto_is_the_compiled_kernel(backend: str) -> None:
    problem = problem_on(backend, CASE)
    if oracle.device_of(backend).type == backend:
        assert_equal(run(kernel("auto"), problem), run(kernel(backend), problem))


@pytest.mark.parametrize("neuron", ["stc_lif", "lif", "plif"])
@pytest.mark.parametrize("learns", ["current", "v"])
@pytest.mark.parametrize("every", [None, 2])
def test_second_derivatives_are_refused(backend: str, neuron: str, learns: str, every: int | None) -> None:
    """Also where nothing that is kept leads back to what learns, so that they would be zeros."""
    problem = problem_on(backend, dataclasses.replace(CASE, neuron=neuron, spiking=False))
    learnt = problem.inputs[learns].requires_grad_()  # type: ignore[union-attr]
    options = {**problem.options, **({"recompute_every": every} if neuron == "stc_lif" else {})}
    outputs = oracle.call(kernel(backend, neuron), problem.inputs, options)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(outputs["v"].square().sum(), learnt, create_graph=True)


def test_second_backward_through_a_kept_state_says_what_to_do(backend: str) -> None:
    problem = problem_on(backend, CASE)
    weights = [problem.inputs[name].requires_grad_() for name in INPUTS[1:3]]  # type: ignore[union-attr]
    current = problem.inputs["current"]
    spikes, v = kernel(backend)(current, *weights, groups=2)
    (spikes.sum() + v.sum()).backward()
    spikes, v = kernel(backend)(current, *weights, groups=2, v=v, spikes=spikes[-1])
    with pytest.raises(RuntimeError, match=r"detach\(\).*reset\(\)"):
        (spikes.sum() + v.sum()).backward()


def test_retained_graph_gives_the_same_gradient_again(backend: str) -> None:
    problem = problem_on(backend, CASE)
    current = problem.inputs["current"].requires_grad_()  # type: ignore[union-attr]
    outputs = oracle.call(kernel(backend), problem.inputs, problem.options)
    (once,) = torch.autograd.grad(outputs["spikes"].sum(), current, retain_graph=True)
    (again,) = torch.autograd.grad(outputs["spikes"].sum(), current)
    assert torch.equal(once, again)


def test_changing_a_saved_input_is_noticed(backend: str) -> None:
    problem = problem_on(backend, CASE)
    weight = problem.inputs["temporal_weight"].requires_grad_()  # type: ignore[union-attr]
    outputs = oracle.call(kernel(backend), problem.inputs, problem.options)
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs["spikes"].sum().backward()


def test_no_graph_without_need(any_backend: str) -> None:
    problem = problem_on(any_backend, CASE)
    outputs = oracle.call(kernel(any_backend), problem.inputs, problem.options)
    assert not any(x.requires_grad for x in outputs.values())
    problem.inputs["current"].requires_grad_()  # type: ignore[union-attr]
    assert all(x.requires_grad for x in oracle.call(kernel(any_backend), problem.inputs, problem.options).values())
    with torch.no_grad():
        outputs = oracle.call(kernel(any_backend), problem.inputs, problem.options)
    assert not any(x.requires_grad for x in outputs.values())


# --- backends -------------------------------------------------------------------------------------------------------


def test_a_registered_backend_is_used(request: pytest.FixtureRequest) -> None:
    """The seam for other implementations: its functions are called with the operators' arguments."""
    calls: list[str] = []
    name = f"recording-{request.node.name}"

    def forward(*args: object) -> object:
        calls.append("forward")
        return torch.ops.stc_cuda.stc_forward(*args)

    def backward(*args: object) -> object:
        calls.append("backward")
        return torch.ops.stc_cuda.stc_backward(*args)

    stc_cuda.register_backend(stc_cuda.Backend(name, forward, backward, device_types=frozenset({"cpu"})))
    assert name in stc_cuda.backend_names()
    problem = make_problem(CASE, torch.float32)
    expected = run(kernel("cpu"), problem)
    assert calls == []
    assert_equal(run(kernel(name), problem), expected)
    assert calls == ["forward", "backward"]
    assert_equal(run(function_apply(name), problem), expected)
    assert calls == ["forward", "backward"] * 2
    layer = stc_cuda.STCLIF(2, 4, kernel_size=3, groups=2, backend=name)
    layer(torch.randn(2, 1, 2, 4, 4)).sum().backward()
    assert calls == ["forward", "backward"] * 3
    with pytest.raises(NotImplementedError, match=r"backend: .* has no kernels of element-wise neurons"):
        stc_cuda.lif(torch.zeros(2, 3), backend=name)
    with pytest.raises(ValueError, match="registered already"):
        stc_cuda.register_backend(stc_cuda.Backend(name, forward, backward, device_types=frozenset()))
    with pytest.raises(ValueError, match="registered already"):
        stc_cuda.register_backend(stc_cuda.Backend("auto", forward, backward, device_types=frozenset()))


def test_a_registered_backend_may_have_element_wise_neurons(request: pytest.FixtureRequest) -> None:
    calls: list[str] = []
    name = f"scanning-{request.node.name}"

    def recorded(operator: str) -> Callable[..., object]:
        def call(*args: object) -> object:
            calls.append(f"{operator} {args[0]}")
            return getattr(torch.ops.stc_cuda, operator)(*args)

        return call

    functions = {operator: recorded(operator) for operator in ("scan_forward", "scan_backward")}
    stc_cuda.register_backend(
        stc_cuda.Backend(
            name, recorded("stc_forward"), recorded("stc_backward"), device_types=frozenset({"cpu"}), **functions
        )
    )
    layer = stc_cuda.TCLIF(2, 4, kernel_size=3, groups=2, backend=name)
    layer(torch.randn(2, 1, 2, 4, 4)).sum().backward()
    assert calls == ["scan_forward tclif", "scan_backward tclif"]


def test_backend_names() -> None:
    names = stc_cuda.backend_names()
    assert names[0] == "auto"
    assert {"cpu", "reference"} <= set(names)
