"""What one call makes and the next ones use again: options, and tensors of plain numbers."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch import Tensor

import stc_cuda
from stc_cuda import _call
from stc_cuda.functional import elementwise


@pytest.fixture(autouse=True)
def forget() -> None:
    elementwise._config.keep.cache_clear()
    _call._kept_scan.cache_clear()
    _call._kept_rows.cache_clear()


def current(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_calls_share_what_does_not_change() -> None:
    for _ in range(3):
        stc_cuda.lif(current(), tau=3.0)
    assert elementwise._config.keep.cache_info().hits == 2
    assert _call._kept_scan.cache_info().hits == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_other_numbers_are_other_results(dtype: torch.dtype) -> None:
    x = current(dtype)
    for tau in (2.0, 5.0, 2.0):
        for threshold in (1.0, 0.5):
            found = stc_cuda.lif(x, tau=tau, v_threshold=threshold)
            expected = stc_cuda.lif(x, tau=tau, v_threshold=threshold, backend="reference")
            assert torch.equal(found[0], expected[0])
            torch.testing.assert_close(found[1], expected[1])


def test_first_in_inference_mode_then_with_gradients() -> None:
    with torch.inference_mode():
        stc_cuda.lif(current())
    x = current().requires_grad_()
    stc_cuda.lif(x)[0].sum().backward()
    assert x.grad is not None


def test_fake_tensors_are_not_kept() -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    for _ in range(2):
        with FakeTensorMode() as mode:
            assert isinstance(stc_cuda.lif(mode.from_tensor(current()))[0], FakeTensor)
        assert type(stc_cuda.lif(current())[0]) is Tensor


def test_under_another_default_device() -> None:
    with torch.device("meta"):
        stc_cuda.lif(torch.empty(5, 2, 3, device="cpu").zero_(), tau=4.0)
    stc_cuda.lif(current(), tau=4.0)


def test_wrong_options_are_refused_after_right_ones() -> None:
    stc_cuda.lif(current(), v_threshold=1, v_reset=0.0)
    for wrong in (True, [1.0], "1"):
        with pytest.raises(TypeError, match=r"v_threshold: got .*, expected a number"):
            stc_cuda.lif(current(), v_threshold=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"detach_reset: got int, expected True or False"):
        stc_cuda.lif(current(), detach_reset=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"v_reset: got nan"):
        stc_cuda.lif(current(), v_reset=float("nan"))


def test_a_surrogate_object_may_change() -> None:
    class Sigmoid:
        __module__ = "spikingjelly.activation_based.surrogate"
        alpha, spiking = 4.0, True

        def __call__(self, z: Tensor) -> Tensor:
            raise AssertionError("kernels know it")

    surrogate, x = Sigmoid(), current(torch.float64).requires_grad_()
    grads = []
    for alpha in (4.0, 1.0):
        surrogate.alpha = alpha
        grads.append(torch.autograd.grad(stc_cuda.lif(x, surrogate=surrogate)[0].sum(), x)[0])
        expected = stc_cuda.lif(x, surrogate="sigmoid", alpha=alpha, backend="reference")[0].sum()
        torch.testing.assert_close(grads[-1], torch.autograd.grad(expected, x)[0])
    assert not torch.equal(*grads)


def test_from_several_threads() -> None:
    x = current(torch.float64)
    expected = {tau: stc_cuda.lif(x, tau=tau, backend="reference")[0] for tau in (1.5, 2.0, 3.0)}
    wrong: list[float] = []

    def work(tau: float) -> None:
        wrong.extend(tau for _ in range(50) if not torch.equal(stc_cuda.lif(x, tau=tau)[0], expected[tau]))

    threads = [threading.Thread(target=work, args=(tau,)) for tau in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_transforms_leave_nothing_of_theirs_behind() -> None:
    x = current()
    torch.func.functionalize(lambda a: stc_cuda.lif(a, tau=7.75)[1])(x)
    with contextlib.suppress(RuntimeError, NotImplementedError):
        torch.func.grad(lambda a: stc_cuda.lif(a, tau=7.5)[1].sum())(x)
    for tau in (7.75, 7.5):
        found, expected = (stc_cuda.lif(x, tau=tau, backend=name)[1] for name in ("auto", "reference"))
        assert type(found) is Tensor
        assert not torch._is_functional_tensor(found)
        torch.testing.assert_close(found, expected)
