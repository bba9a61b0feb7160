"""The backward pass of element-wise neurons that puts the current's gradient in the place of the saved potentials."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from test_scan_operators import CELLS, Case, arguments, chosen, make_problem
from torch import Tensor

import stc_cuda

WITH_ONE_POTENTIAL = [neuron for neuron, (_, potentials, _) in CELLS.items() if potentials == 1]
SIZE = (5, 2, 3, 7, 9)


def without_dtype(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of scan_backward as scan_backward_in_place takes them."""
    at = next(i for i, x in enumerate(given) if isinstance(x, torch.dtype))
    return (*given[:at], *given[at + 1 :])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("neuron", WITH_ONE_POTENTIAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_functional_operator(backend: str, neuron: str, dtype: torch.dtype) -> None:
    for spiking, detach_reset, size in itertools.product((True, False), (True, False), (SIZE, (1, 3, 2), (2, 1, 700))):
        case = Case(neuron, size, spiking=spiking, detach_reset=detach_reset)
        forward, backward = arguments(case, make_problem(case, dtype), backend)
        scan: Any = chosen(backend)
        potentials = scan.scan_forward(*forward)[3]
        expected = scan.scan_backward(*backward(potentials))
        kept = potentials.clone()
        others = scan.scan_backward_in_place(*without_dtype(backward(kept)))
        assert torch.equal(kept[0], expected[0])
        for found, wanted in zip(others, expected[1:], strict=True):
            pairs = zip(found, wanted, strict=True) if isinstance(found, list) else [(found, wanted)]
            assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend: str, layout: str) -> None:
    case = Case("lif", (2, 2, 3, 4), layout=layout)
    forward, backward = arguments(case, make_problem(case, torch.float32), backend)
    scan: Any = chosen(backend)
    given = without_dtype(backward(scan.scan_forward(*forward)[3]))
    # No graph of a compiler has it: those are made of scan_backward.
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(scan.scan_backward_in_place.default, given, test_utils=utilities)


def test_refuses_what_it_cannot_overwrite(backend: str) -> None:
    scan: Any = chosen(backend)
    for case in (Case("lmh", (2, 2, 3, 4)), Case("lif", (2, 2, 3, 4))):
        forward, backward = arguments(case, make_problem(case, torch.float32), backend)
        potentials = scan.scan_forward(*forward)[3]
        if case.neuron == "lif":  # with gaps
            potentials = torch.stack([potentials, potentials], -1)[..., 0]
        before = potentials.clone()
        with pytest.raises(ValueError, match="expected a neuron with one, as scan_forward saved it"):
            scan.scan_backward_in_place(*without_dtype(backward(potentials)))
        assert torch.equal(potentials, before)


def lif(backend: str, **options: Any) -> tuple[Tensor, Callable[[], Tensor]]:
    x = torch.randn(6, 2, 3, 5, 7, generator=torch.Generator().manual_seed(3)).to(oracle.device_of(backend))
    x.requires_grad_()
    return x, lambda: stc_cuda.lif(x, backend=backend, **options)[0]


def allocated(call: Callable[[], object]) -> int:
    """Bytes that the CPU's allocator was asked for."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)


def test_backward_allocates_no_sequence(backend: str) -> None:
    if backend == "cuda":
        pytest.skip("needs a GPU's own counters")
    x, run = lif(backend)

    def bytes_of_backward(retain_graph: bool, hooks: bool) -> int:
        pack = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
        with pack if hooks else contextlib.nullcontext():
            spikes = run()
        upstream = torch.ones_like(spikes)
        return allocated(lambda: torch.autograd.grad(spikes, x, upstream, retain_graph=retain_graph))

    assert bytes_of_backward(retain_graph=False, hooks=False) < x.nbytes
    assert bytes_of_backward(retain_graph=True, hooks=False) >= x.nbytes
    assert bytes_of_backward(retain_graph=False, hooks=True) >= x.nbytes  # hooks may hold what they were given


def test_the_gradient_keeps_nothing_else_alive(backend: str) -> None:
    x, run = lif(backend)
    (expected,) = torch.autograd.grad(run().sum(), x, retain_graph=True)
    (found,) = torch.autograd.grad(run().sum(), x)
    assert torch.equal(found, expected)
    assert found.untyped_storage().nbytes() == found.nbytes
    assert found.stride() == expected.stride()


def test_a_graph_that_stays_keeps_what_it_saved(backend: str) -> None:
    x, run = lif(backend)
    spikes = run()
    weights = torch.linspace(-1, 1, spikes.numel(), device=x.device).view_as(spikes)
    results = [torch.autograd.grad((spikes * weights).sum(), x, retain_graph=True)[0] for _ in range(3)]
    results += [torch.autograd.grad((spikes * weights).sum(), x)[0]]
    assert all(torch.equal(result, results[0]) for result in results)
    with pytest.raises(RuntimeError, match=r"second time|backward pass has run already"):
        torch.autograd.grad((spikes * weights).sum(), x)


def test_hooks_that_move_what_is_saved(backend: str) -> None:
    x, run = lif(backend)
    (expected,) = torch.autograd.grad(run().sum(), x)
    with torch.autograd.graph.save_on_cpu():
        spikes = run()
    (found,) = torch.autograd.grad(spikes.sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(backend: str, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    x, _ = lif(backend)

    def twice(current: Tensor) -> Tensor:
        return stc_cuda.lif(stc_cuda.lif(current, backend=backend)[0] + current, backend=backend)[0]

    (expected,) = torch.autograd.grad(twice(x).sum(), x)
    checkpoint(twice, x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(x.grad, expected)  # type: ignore[arg-type]


def test_gradients_accumulate(backend: str) -> None:
    """A gradient that is kept does not change when the same memory serves another pass."""
    x, run = lif(backend)
    (once,) = torch.autograd.grad(run().sum(), x)
    once = once.clone()
    for _ in range(3):
        run().sum().backward()
    torch.testing.assert_close(x.grad, 3 * once)
    a, b = run(), run()
    (a.sum() + b.sum()).backward()
    torch.testing.assert_close(x.grad, 5 * once)


def test_other_dtypes_and_neurons_take_the_functional_operator(backend: str) -> None:
    x, _ = lif(backend)
    half = x.detach().bfloat16().requires_grad_()
    stc_cuda.lif(half, backend=backend)[0].sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    numbers = {
        name: torch.zeros(1, device=x.device)
        for name in ("dendrite_decay", "soma_to_dendrite", "dendrite_to_soma", "soma_decay")
    }
    results = []
    for retain in (True, False):
        spikes = stc_cuda.lmh(x, **numbers, backend=backend)[0]
        results.append(torch.autograd.grad(spikes.sum(), x, retain_graph=retain)[0])
    assert torch.equal(*results)


def test_learnt_coefficients(backend: str) -> None:
    """The gradient of a decay needs the potentials of the step before, which must not be overwritten yet."""
    x, _ = lif(backend)
    w = torch.zeros(3, device=x.device, requires_grad=True)
    results = []
    for retain in (True, False):
        spikes = stc_cuda.plif(x, w, backend=backend)[0]
        results.append(torch.autograd.grad(spikes.square().sum(), (x, w), retain_graph=retain))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_two_threads_on_one_graph_never_get_a_wrong_gradient() -> None:
    """One of them may get an error, as of any graph that is gone."""
    x = torch.randn(8, 4, 20000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (expected,) = torch.autograd.grad(stc_cuda.lif(x)[0].sum(), x)
    wrong: list[int] = []

    def work(spikes: Tensor, barrier: threading.Barrier, trial: int) -> None:
        barrier.wait()
        with contextlib.suppress(RuntimeError):
            (found,) = torch.autograd.grad(spikes, x, torch.ones_like(spikes))
            if not torch.equal(found, expected):
                wrong.append(trial)

    for trial in range(60):
        barrier = threading.Barrier(2)
        spikes = stc_cuda.lif(x)[0]
        threads = [threading.Thread(target=work, args=(spikes, barrier, trial)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_forward_mode_is_refused() -> None:
    x = torch.randn(4, 3, 5)
    with pytest.raises(NotImplementedError, match=r"forward-mode derivatives; pass backend='reference'"):
        torch.func.jvp(lambda a: stc_cuda.integrate_fire(a)[1], (x,), (torch.ones_like(x),))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda w: stc_cuda.plif(x, w)[1], (torch.zeros(1),), (torch.ones(1),))
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            stc_cuda.lif(dual)


def test_a_mode_that_sees_the_forward_pass_may_hold_what_is_saved() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        seen: list[Tensor] = []  # noqa: RUF012

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            self.seen.extend(t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, Tensor))
            return found

    x, run = lif("cpu")
    with Recorder() as recorder:
        spikes = run()
    before = [t.clone() for t in recorder.seen]
    assert any(t.dim() == x.dim() + 1 for t in before)
    spikes.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, recorder.seen, strict=True))
