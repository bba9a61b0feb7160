"""The operators of the element-wise neurons against their equations (csrc/cell.h) as a loop of float64 tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from oracle import EMULATED
from torch import Tensor

import stc_cuda
from stc_cuda.backends import Backend, select_backend

# neuron: states, potentials, coefficients
CELLS = {
    "integrate_fire": (1, 1, 0),
    "lif": (1, 1, 2),
    "plif": (1, 1, 2),
    "lmh": (2, 2, 4),
    "tclif": (3, 2, 3),
    "glif": (2, 1, 5),
}
SURROGATES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": lambda z, alpha: torch.sigmoid(alpha * z),
    "atan": lambda z, alpha: torch.atan(math.pi / 2 * alpha * z) / math.pi + 0.5,
    "softsign": lambda z, alpha: 0.5 * alpha * z / (1 + (alpha * z).abs()) + 0.5,
}


@dataclass(frozen=True)
class Case:
    neuron: str
    size: tuple[int, ...] = (3, 2, 3, 4)  # T, N, C, *
    spiking: bool = True
    v_reset: float | None = None
    detach_reset: bool = False
    surrogate: str = "sigmoid"
    layout: str = "contiguous"
    given_states: bool = True
    given_threshold: bool = True
    v_threshold: float = 0.6
    alpha: float = 2.5
    seed: int = field(default=1, compare=False)

    def __str__(self) -> str:
        parts = [self.neuron, "x".join(map(str, self.size)), "hard" if self.spiking else "soft", f"to {self.v_reset}"]
        parts += [self.surrogate, self.layout, *(["detached"] if self.detach_reset else [])]
        return " ".join(parts)

    @property
    def channels(self) -> int:
        return self.size[2] if len(self.size) > 2 else 1


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in other places."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":  # [T, N, *, C] in memory
        return x.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == "transposed":  # [T, C, N, *] in memory
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.full((*x.shape, 2), math.nan, dtype=x.dtype)
    if layout == "gaps":
        wide[..., 0] = x
        return wide[..., 0]
    if layout == "batch_first":  # [N, T, C, *] in memory: the samples of a step lie apart
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    assert layout == "sliced"  # every other of twice as many steps
    wide = wide.movedim(-1, 1).contiguous()
    wide[:, 0] = x
    return wide[:, 0]


@dataclass
class Problem:
    current: Tensor
    states: list[Tensor | None]
    threshold: Tensor | None
    coefficients: Tensor | None
    grad_spikes: Tensor
    grad_states: list[Tensor]
    grad_v_seq: Tensor


def make_problem(case: Case, dtype: torch.dtype) -> Problem:
    random = torch.Generator().manual_seed(case.seed)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*size: int) -> Tensor:
        # in float32 and short, so that every dtype gets the same values
        return (torch.randn(size, generator=random) * 64).round() / 64

    states, _, coefficients = CELLS[case.neuron]
    current = laid_out(draw(*case.size).to(dtype) + 0.25, case.layout)
    before = [draw(*case.size[1:]) for _ in range(states)]
    if case.spiking and case.neuron in ("tclif", "glif"):
        before[-1] = (before[-1] > 0).float()
    threshold = 0.5 + 0.25 * draw(case.channels).abs()
    numbers = 0.25 + 0.5 * torch.rand(coefficients, case.channels, generator=random)
    return Problem(
        current,
        [x.to(state_dtype) if case.given_states else None for x in before],
        threshold.to(state_dtype) if case.given_threshold else None,
        numbers.to(state_dtype) if coefficients else None,
        draw(*case.size).to(dtype),
        [draw(*case.size[1:]).to(state_dtype) for _ in range(states)],
        draw(*case.size).to(state_dtype),
    )


@dataclass
class Result:
    spikes: Tensor
    states: list[Tensor]
    v_seq: Tensor
    potentials: Tensor
    grad_current: Tensor
    grad_states: list[Tensor]
    grad_threshold: Tensor | None
    grad_coefficients: Tensor | None


def equations(case: Case, p: Problem) -> Result:
    """Potentials and states by csrc/cell.h, gradients by autograd."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(torch.float64, memory_format=torch.contiguous_format).requires_grad_()

    def of_channels(x: Tensor) -> Tensor:
        return x.reshape(-1, *(1,) * (len(case.size) - 3)) if len(case.size) > 2 else x

    current, kept = leaf(p.current), [leaf(torch.zeros(case.size[1:]) if x is None else x) for x in p.states]
    threshold = leaf(
        torch.full((case.channels,), case.v_threshold, dtype=torch.float64) if p.threshold is None else p.threshold
    )
    numbers = None if p.coefficients is None else leaf(p.coefficients)
    th, k = of_channels(threshold), [] if numbers is None else [of_channels(row) for row in numbers]

    def fire(u: Tensor) -> Tensor:
        soft = SURROGATES[case.surrogate](u - th, case.alpha)
        return (u >= th).double() + (soft - soft.detach()) if case.spiking else soft

    def detached(s: Tensor) -> Tensor:
        return s.detach() if case.detach_reset else s

    def reset(u: Tensor, s: Tensor) -> Tensor:
        s = detached(s)
        return u - th * s if case.v_reset is None else u * (1 - s) + case.v_reset * s

    states, spikes, v_seq, potentials = list(kept), [], [], []
    for x in current:
        if case.neuron == "integrate_fire":
            u = states[0] + x
            s = fire(u)
            states, us = [reset(u, s)], [u]
        elif case.neuron in ("lif", "plif"):
            rest = case.v_reset or 0.0
            u = rest + k[0] * (states[0] - rest) + k[1] * x
            s = fire(u)
            states, us = [reset(u, s)], [u]
        elif case.neuron == "lmh":
            d = k[0] * states[1] + k[1] * states[0] + x
            u = k[2] * d + k[3] * states[0]
            s = fire(u)
            states, us = [reset(u, s), d], [u, d]
        elif case.neuron == "tclif":
            h, d, g = states[0], states[1], detached(states[2])
            d = d - k[0] * h + x - k[2] * g
            u = h + k[1] * d - th * g
            s = fire(u)
            states, us = [u, d, s], [u, d]
        else:
            v, g = states[0], detached(states[1])
            u = k[0] * v * (1 - k[1] * g) - k[2] + k[3] * x - k[4] * g
            s = fire(u)
            states, us = [u, s], [u]
        spikes.append(s)
        v_seq.append(states[0])
        potentials.append(torch.stack(us))

    empty = torch.zeros(case.size, dtype=torch.float64)
    spike_seq, v = (torch.stack(x) if x else empty for x in (spikes, v_seq))
    outputs = [spike_seq, v, *states]
    upstream = [p.grad_spikes, p.grad_v_seq, *p.grad_states]
    loss = torch.stack([(x * g.double()).sum() for x, g in zip(outputs, upstream, strict=True)]).sum()
    inputs = [current, *kept, threshold, *([] if numbers is None else [numbers])]
    grads = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    stacked = torch.stack(potentials, 1) if potentials else empty.expand(CELLS[case.neuron][1], *case.size)
    n = len(kept)
    return Result(
        spike_seq.detach(),
        [x.detach() for x in states],
        v.detach(),
        stacked.detach(),
        grads[0],
        list(grads[1 : n + 1]),
        grads[n + 1] if p.threshold is not None else None,
        grads[n + 2] if numbers is not None else None,
    )


def chosen(name: str) -> Backend:
    return select_backend(name, torch.device("cuda" if name == "cuda" else "cpu"))


def on_device(x: Any, name: str) -> Any:
    if isinstance(x, list):
        return [on_device(y, name) for y in x]
    return x.cuda() if isinstance(x, Tensor) and name == "cuda" else x


def arguments(case: Case, p: Problem, name: str) -> tuple[tuple[Any, ...], Callable[[Tensor], tuple[Any, ...]]]:
    """Those of scan_forward, and of scan_backward given the potentials."""
    current, states, threshold, coefficients, grad_spikes, grad_states, grad_v_seq = (
        on_device(x, name)
        for x in (p.current, p.states, p.threshold, p.coefficients, p.grad_spikes, p.grad_states, p.grad_v_seq)
    )
    numbers = (case.v_threshold, case.v_reset, case.surrogate, case.alpha, case.spiking)
    inputs = (current, states, threshold, coefficients)

    def backward(potentials: Tensor) -> tuple[Any, ...]:
        upstream = (grad_spikes, grad_states, grad_v_seq)
        learns = (case.detach_reset, threshold is not None, coefficients is not None)
        return (case.neuron, *upstream, *inputs, potentials, current.dtype, *numbers, *learns)

    return (case.neuron, *inputs, *numbers, True, True), backward


def run(case: Case, p: Problem, name: str) -> Result:
    forward, backward = arguments(case, p, name)
    backend = chosen(name)
    assert backend.scan_forward is not None
    assert backend.scan_backward is not None
    spikes, states, v_seq, potentials = backend.scan_forward(*forward)
    grad_current, grad_states, grad_threshold, grad_coefficients = backend.scan_backward(*backward(potentials))
    return Result(
        spikes,
        states,
        v_seq,
        potentials,
        grad_current,
        grad_states,
        grad_threshold if p.threshold is not None else None,
        grad_coefficients if p.coefficients is not None else None,
    )


def check_close(found: Tensor, expected: Tensor, allowed: float, what: str) -> None:
    assert found.shape == expected.shape, what
    size = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    worst = (found.cpu().double() - expected).abs().max() if expected.numel() else 0.0
    assert worst <= allowed * size, f"{what}: {worst:.3g} off, allowed {allowed * size:.3g}"


def compare(case: Case, name: str, dtype: torch.dtype = torch.float64, allowed: float = 1e-10) -> Result:
    p = make_problem(case, dtype)
    found, expected = run(case, p, name), equations(case, p)
    assert found.spikes.dtype == found.grad_current.dtype == dtype
    if dtype == torch.float64 and case.spiking:
        assert torch.equal(found.spikes.cpu(), expected.spikes)
    short = torch.finfo(dtype).bits == 16
    for what in ("spikes", "v_seq", "potentials", "grad_current", "grad_threshold", "grad_coefficients"):
        x, y = getattr(found, what), getattr(expected, what)
        if y is None:
            assert x is None
            continue
        stored = short and what in ("spikes", "grad_current")
        check_close(x, y, max(allowed, torch.finfo(dtype).eps if stored else 0), what)
    for what in ("states", "grad_states"):
        for i, (x, y) in enumerate(zip(getattr(found, what), getattr(expected, what), strict=True)):
            check_close(x, y, allowed, f"{what} {i}")
    return found


EVERY = list(itertools.product(CELLS, (True, False), (None, -0.3)))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("neuron", "spiking", "v_reset"), EVERY)
def test_every_neuron(backend: str, neuron: str, spiking: bool, v_reset: float | None) -> None:
    case = Case(neuron, spiking=spiking, v_reset=v_reset)
    compare(case, backend)
    compare(replace(case, detach_reset=True, surrogate="atan", given_states=False, size=(4, 1, 5, 3)), backend)
    compare(replace(case, given_threshold=False, surrogate="softsign", size=(2, 3, 2, 2, 3)), backend)


def used_strides(x: Tensor) -> list[int]:
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "gaps", "batch_first", "sliced"])
@pytest.mark.parametrize("size", [(3, 2, 4, 3, 2), (2, 3, 8), (1, 2, 5, 3), (3, 1, 2, 4)], ids=str)
def test_layouts(backend: str, layout: str, size: tuple[int, ...]) -> None:
    for neuron, dtype in (("plif", torch.float64), ("tclif", torch.float64), ("lif", torch.bfloat16)):
        case = Case(neuron, size, layout=layout, spiking=False)
        found = compare(case, backend, dtype, 1e-10 if dtype == torch.float64 else 1e-5)
        step = make_problem(case, dtype).current[0]
        like = torch.empty(size[1:]) if layout == "gaps" else torch.empty_like(step)
        for x in (found.spikes[0], found.v_seq[0], found.states[0], found.potentials[0, 0], found.grad_current[0]):
            assert used_strides(x) == used_strides(like)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 17, 64, 1000, 1031])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_ragged_sizes(backend: str, count: int, dtype: torch.dtype) -> None:
    allowed = 1e-10 if dtype == torch.float64 else 2e-5
    compare(Case("lif", (2, count), spiking=False), backend, dtype, allowed)  # one channel
    if count > 64:
        compare(Case("glif", (2, 1, count), spiking=False), backend, dtype, allowed)
    else:
        compare(Case("glif", (2, 2, 3, count), spiking=False), backend, dtype, allowed)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    "size",
    [(2, 3, 5, 301), (2, 5, 700), (2, 1, 1531), (1, 1, 3, 100_003), (1, 35, 3, 1024), (1, 2, 70_000)],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_blocks(backend: str, size: tuple[int, ...], layout: str) -> None:
    """Of 512 neurons, and more of them than there are tasks, on the CPU."""
    if backend == EMULATED and math.prod(size) > 10_000:
        pytest.skip("slow under emulation")
    compare(Case("plif", size, layout=layout, spiking=False), backend)


@pytest.mark.usefixtures("poison")
def test_one_channel_of_many_neurons(backend: str) -> None:
    """More than one block sums on a GPU."""
    compare(Case("plif", (1, 9001), spiking=False), backend)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("neuron", CELLS)
@pytest.mark.parametrize("size", [(0, 2, 3, 4), (3, 0, 3, 4), (0, 0, 3), (0, 5), (2, 0)], ids=str)
def test_nothing_to_do(backend: str, neuron: str, size: tuple[int, ...]) -> None:
    case = Case(neuron, size)
    p = make_problem(case, torch.float64)
    found = compare(case, backend)
    for x in (found.spikes, found.v_seq, found.grad_current):
        assert x.shape == size
    for kept, given in zip(found.states, p.states, strict=True):
        assert given is not None
        assert given.numel() == 0 or kept.data_ptr() != given.data_ptr()


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("neuron", CELLS)
def test_single_precision(backend: str, neuron: str) -> None:
    compare(Case(neuron, (4, 2, 3, 5), spiking=False), backend, torch.float32, 1e-5)
    case = Case(neuron, (4, 2, 3, 50))
    p = make_problem(case, torch.float32)
    found, expected = run(case, p, backend), equations(case, p)
    assert p.threshold is not None
    distance = (expected.potentials[0] - p.threshold[:, None]).abs().amin(0)
    clear = distance > 1e-4  # at no step near the threshold, where rounding decides
    assert clear.double().mean() > 0.9
    assert torch.equal(found.spikes.cpu().double()[:, clear], expected.spikes[:, clear])
    check_close(found.grad_current[:, clear], expected.grad_current[:, clear], 1e-4, "grad_current")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neuron", CELLS)
def test_16_bit(backend: str, neuron: str, dtype: torch.dtype) -> None:
    compare(Case(neuron, (4, 2, 3, 5), spiking=False), backend, dtype, 1e-5)


def test_a_state_carried_over_is_one_sequence(backend: str) -> None:
    for neuron in CELLS:
        case = Case(neuron, (6, 2, 3, 7), spiking=False)
        forward, _ = arguments(case, make_problem(case, torch.float32), backend)
        op = chosen(backend).scan_forward
        assert op is not None
        spikes, states, v_seq, _ = op(*forward)
        first = op(neuron, forward[1][:2], *forward[2:])
        second = op(neuron, forward[1][2:], first[1], *forward[3:])
        assert torch.equal(torch.cat([first[0], second[0]]), spikes)
        assert torch.equal(torch.cat([first[2], second[2]]), v_seq)
        assert all(torch.equal(x, y) for x, y in zip(second[1], states, strict=True))


def test_a_repeated_current_is_read_in_place(backend: str) -> None:
    case = Case("lif", (4, 2, 3, 5), spiking=False)
    p = make_problem(case, torch.float64)
    repeated = replace(p, current=p.current[:1].expand(4, -1, -1, -1))
    whole = replace(p, current=repeated.current.contiguous())
    for x, y in zip(outputs(run(case, repeated, backend)), outputs(run(case, whole, backend)), strict=True):
        assert torch.equal(x, y)


def outputs(r: Result) -> list[Tensor]:
    some = [r.spikes, *r.states, r.v_seq, r.potentials, r.grad_current, *r.grad_states]
    return some + [x for x in (r.grad_threshold, r.grad_coefficients) if x is not None]


@pytest.mark.usefixtures("poison")
def test_only_what_is_asked_for(backend: str) -> None:
    case = Case("lif", (3, 2, 3, 4))
    p = make_problem(case, torch.float32)
    forward, backward = arguments(case, p, backend)
    full = run(case, p, backend)
    scan = chosen(backend)
    assert scan.scan_forward is not None
    assert scan.scan_backward is not None
    spikes, states, v_seq, potentials = scan.scan_forward(*forward[:-2], False, False)
    assert torch.equal(spikes, full.spikes)
    assert torch.equal(states[0], full.states[0])
    assert v_seq.numel() == potentials.numel() == 0

    def same(found: Tensor, expected: Tensor | None) -> None:
        # a GPU has kernels of their own for gradients of parameters, compiled with other fused multiply-adds
        tolerance = 1e-5 if backend == "cuda" else 0
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)

    for learns in itertools.product([False, True], repeat=2):
        given = list((*backward(full.potentials)[:-2], *learns))
        if not learns[1]:
            given[4] = None  # the current
        grads = scan.scan_backward(*given)
        same(grads[0], full.grad_current)
        learnable = (full.grad_threshold, full.grad_coefficients)
        for learnt, found, expected in zip(learns, grads[2:], learnable, strict=True):
            if learnt:
                same(found, expected)
            else:
                assert found.numel() == 0
    # absent gradients are those of zeros
    zeros = list(backward(full.potentials))
    absent = list(zeros)
    zeros[2], zeros[3] = [torch.zeros_like(full.states[0])], torch.zeros_like(full.v_seq)
    absent[2], absent[3] = [None], None
    for x, y in zip(scan.scan_backward(*zeros), scan.scan_backward(*absent), strict=True):
        assert torch.equal(x[0], y[0]) if isinstance(x, list) else torch.equal(x, y)
    zeros[1], absent[1] = torch.zeros_like(full.spikes), None
    assert torch.equal(scan.scan_backward(*zeros)[0], scan.scan_backward(*absent)[0])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("neuron", ["lif", "tclif"])
@pytest.mark.parametrize("size", [(4, 2, 3, 5, 7), (1, 2, 3, 4), (3, 2, 1030), (2, 2, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_in_other_places(backend: str, neuron: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of a sum (one number), of a mean over the steps (one step) and of a part of a longer sequence."""
    case = Case(neuron, size)
    p = make_problem(case, dtype)
    forward, backward = arguments(case, p, backend)
    scan: Any = chosen(backend)
    potentials = scan.scan_forward(*forward)[3]
    step = on_device(p.grad_spikes[:1].clone(), backend)
    longer = torch.full((2, *size), math.nan, dtype=dtype).movedim(0, 1).contiguous()
    longer[:, 0] = p.grad_spikes
    gradients = {
        "one number": step.flatten()[0].expand(size),
        "one step": step.expand(size),
        "every other step": on_device(longer, backend)[:, 0],
        "one number for each sample": step.flatten(2)[..., :1]
        .reshape(1, size[1], *(1,) * (len(size) - 2))
        .expand(size),
    }
    for what, gradient in gradients.items():
        given = list(backward(potentials))
        given[1] = gradient
        found = scan.scan_backward(*given)
        given[1] = gradient.contiguous()
        for x, y in zip(found, scan.scan_backward(*given), strict=True):
            assert torch.equal(x[0], y[0]) if isinstance(x, list) else torch.equal(x, y), what


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_threads_change_no_bit(layout: str) -> None:
    case = Case("glif", (3, 3, 7, 4001), layout=layout)
    p = make_problem(case, torch.float32)
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(outputs(run(case, p, "cpu")))
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


# --- as operators of PyTorch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gaps", "sliced"])
@pytest.mark.parametrize("neuron", ["integrate_fire", "lif", "tclif"])
def test_opcheck(backend: str, neuron: str, layout: str) -> None:
    case = Case(neuron, (2, 2, 3, 4), layout=layout, given_threshold=neuron != "lif")
    forward, backward = arguments(case, make_problem(case, torch.float32), backend)
    scan: Any = chosen(backend)
    torch.library.opcheck(scan.scan_forward.default, forward)
    torch.library.opcheck(scan.scan_backward.default, backward(scan.scan_forward(*forward)[3]))


def test_fake_outputs_are_like_the_real_ones() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    layouts = ("contiguous", "channels_last", "transposed", "gaps", "batch_first", "sliced")
    sizes = ((3, 2, 4, 3, 2), (2, 3), (1, 2, 1, 3), (0, 2, 3), (2, 0, 3, 4))
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    for layout, size, dtype, store in itertools.product(layouts, sizes, dtypes, (False, True)):
        if len(size) < 3 and layout in ("channels_last", "transposed"):
            continue
        case = Case("lmh", size, layout=layout)
        forward, backward = arguments(case, make_problem(case, dtype), "cpu")
        saved = torch.ops.stc_cuda.scan_forward(*forward)[3]
        calls = (
            (torch.ops.stc_cuda.scan_forward, (*forward[:-2], store, not store)),
            (torch.ops.stc_cuda.scan_backward, (*backward(saved)[:-2], store, not store)),
        )
        for op, given in calls:
            mode = FakeTensorMode()

            def faked(x: Any, mode: FakeTensorMode = mode) -> Any:
                if isinstance(x, list):
                    return [faked(y) for y in x]
                return mode.from_tensor(x) if isinstance(x, Tensor) else x

            with mode:
                fakes = op(*map(faked, given))
            real = torch.utils._pytree.tree_leaves(op(*given))
            for x, y in zip(real, torch.utils._pytree.tree_leaves(fakes), strict=True):
                assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride()), case


def test_the_operators_have_no_derivative_of_their_own() -> None:
    current = torch.randn(2, 3, requires_grad=True)
    spikes = torch.ops.stc_cuda.scan_forward(
        "integrate_fire", current, [None], None, None, 1.0, None, "sigmoid", 4.0, True, False, False
    )[0]
    with pytest.raises(RuntimeError, match="not implemented"):
        spikes.sum().backward()


WRONG: dict[str, tuple[int, Any, str]] = {
    "neuron": (0, "stclif", "neuron: got 'stclif'"),
    "rank": (1, torch.zeros(3), "current: expected a dense tensor"),
    "dtype": (1, torch.zeros(3, 2, 3, 4, dtype=torch.int32), "current: got dtype"),
    "too few states": (2, [], "states: got 0, expected 1"),
    "too many states": (2, [None, None], "states: got 2, expected 1"),
    "shape of a state": (2, [torch.zeros(2, 3, 5)], "states: got shape"),
    "dtype of a state": (2, [torch.zeros(2, 3, 4, dtype=torch.float64)], "states: got dtype"),
    "device of a state": (2, [torch.zeros(2, 3, 4, device="meta")], "expected"),
    "shape of the threshold": (3, torch.zeros(4), "threshold: got shape"),
    "no coefficients": (4, None, "coefficients: expected 2"),
    "shape of the coefficients": (4, torch.zeros(3, 3), "coefficients: got shape"),
    "surrogate": (7, "tanh", "surrogate: got 'tanh'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input(backend: str, what: str) -> None:
    if backend == "cuda":
        pytest.skip("the same checks, and tensors of the CPU")
    case = Case("lif", (3, 2, 3, 4))
    forward, _ = arguments(case, make_problem(case, torch.float32), backend)
    place, wrong, message = WRONG[what]
    given = [*forward[:place], wrong, *forward[place + 1 :]]
    op = chosen(backend).scan_forward
    assert op is not None
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        op(*given)


def test_cells_are_those_of_the_table() -> None:
    compiled = {name: info for name, info in stc_cuda._extension.extension.cells().items() if info["kind"] == "scan"}
    assert {
        name: (info["states"], info["potentials"], info["coefficients"]) for name, info in compiled.items()
    } == CELLS
