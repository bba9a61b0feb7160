"""Which kernel runs: askable without a call, and logged by the calls themselves."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import stc_cuda
from stc_cuda import KernelPlan, kernel_plan

PAPER = (4, 3, 256, 32, 32)


def test_cpu() -> None:
    plan = kernel_plan(PAPER, 5, 16)
    assert (plan.kernel, plan.units, plan.unit_channels, plan.tasks) == ("event", 16, 16, 48)
    assert (plan.warps, plan.shared_memory, plan.resident_weights) == (0, 0, False)
    assert kernel_plan(PAPER, 5, 16, spiking=False).kernel == "dense"
    assert kernel_plan(PAPER, 5, 16, norm_groups=4).units == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.kernel = "dense"  # type: ignore[misc]


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("neuron", ["stclif", "stcplif", "stclmh"])
def test_the_papers_layer_is_persistent_on_every_gpu_with_the_tensor_cores(
    capability: tuple[int, int], backward: bool, neuron: str
) -> None:
    plan = kernel_plan(PAPER, 5, 16, neuron=neuron, device="cuda", capability=capability, backward=backward)
    assert plan.kernel == "persistent"
    assert plan.warps > 0
    assert plan.shared_memory > 0
    limit = {8: 163, 9: 227, 10: 227, 12: 99}[capability[0]] if capability[1] == 0 else 99
    assert plan.shared_memory <= limit * 1024


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": torch.float64}, "double precision"),
        ({"spiking": False}, "soft spikes"),
        ({"norm_groups": 8}, "norm_groups"),
        ({"groups": 8}, "channels per group"),
        ({"kernel_size": 7}, "kernel size"),
        ({"current_shape": (4, 3, 256, 64, 64)}, "larger than"),
        ({"capability": (7, 5)}, "compute capability"),
        ({"shared_memory": 32 * 1024}, "too little shared memory"),
    ],
)
def test_why_a_call_takes_the_general_kernels(options: dict[str, object], reason: str) -> None:
    usual = {"current_shape": PAPER, "kernel_size": 5, "groups": 16, "device": "cuda"}
    assert kernel_plan(**usual).kernel == "persistent"  # type: ignore[arg-type]
    plan = kernel_plan(**{**usual, **options})  # type: ignore[arg-type]
    assert plan.kernel == "general"
    assert reason in plan.reason


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"current_shape": (3, 256, 32, 32)}, ValueError, r"current_shape: got \[3, 256.*\[T, N, C, H, W\]"),
        ({"current_shape": (1, 1, 256, 0, 32)}, ValueError, "current_shape: .*at least one"),
        ({"kernel_size": 4}, ValueError, "kernel_size: got 4, expected an odd"),
        ({"groups": 0}, ValueError, "groups: got 0, expected a divisor of the 256"),
        ({"norm_groups": 3}, ValueError, "norm_groups: got 3"),
        ({"dtype": torch.int32}, TypeError, "dtype: got torch.int32"),
        ({"device": "tpu"}, ValueError, "device: got 'tpu', expected 'cpu' or 'cuda'"),
        ({"device": "cuda", "capability": (99, 0)}, ValueError, r"capability: got \(99, 0\).*shared_memory"),
    ],
)
def test_bad_input(options: dict[str, object], exception: type[Exception], message: str) -> None:
    given = {"current_shape": PAPER, "kernel_size": 5, "groups": 16, **options}
    with pytest.raises(exception, match=message):
        kernel_plan(**given)  # type: ignore[arg-type]


def test_a_gpu_that_is_not_in_the_table() -> None:
    plan = kernel_plan(PAPER, 5, 16, device="cuda", capability=(99, 0), shared_memory=227 * 1024)
    assert isinstance(plan, KernelPlan)
    assert plan.kernel == "persistent"


START = """
import logging, sys, torch, stc_cuda
logging.basicConfig(level=logging.INFO)
layer = stc_cuda.STCLIF(in_channels=4, channels=8, kernel_size=3, groups=2)
"""


@pytest.fixture
def run() -> Callable[..., list[str]]:
    """The lines that a new process logs: what was said is said once a process."""

    def run(code: str, before: str = "") -> list[str]:
        code = before + START + code
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()

    return run


FORWARD = "INFO:stc_cuda:stc_forward on cpu: the event kernels run (spikes are bits)"
BACKWARD = "INFO:stc_cuda:stc_backward on cpu: the event kernels run (spikes are bits)"


def test_a_choice_is_logged_once(run: Callable[..., list[str]]) -> None:
    lines = run("for _ in range(3):\n    layer(torch.rand(2, 1, 4, 6, 6)).sum().backward()\n    layer.reset()\n")
    assert lines == [FORWARD, BACKWARD]


def test_a_compiled_call_logs_and_is_one_graph(run: Callable[..., list[str]]) -> None:
    lines = run(
        "compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')\n"
        "compiled(torch.rand(2, 1, 4, 6, 6)).sum().backward()\n"
    )
    assert [line for line in lines if "stc_cuda:" in line] == [FORWARD, BACKWARD]


def test_threads(run: Callable[..., list[str]]) -> None:
    """The first calls of many threads at once, each with autograd's own thread behind it."""
    lines = run(
        "import threading\n"
        "def work():\n"
        "    own = stc_cuda.STCLIF(in_channels=4, channels=8, kernel_size=3, groups=2)\n"
        "    own(torch.rand(2, 1, 4, 6, 6)).sum().backward()\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
    )
    assert sorted(lines) == sorted([FORWARD, BACKWARD])


def test_calls_while_python_ends(run: Callable[..., list[str]]) -> None:
    """What was registered with atexit before stc_cuda runs after it has stopped listening."""
    lines = run(
        "",
        before="import atexit\n"
        "def late():\n"
        "    layer(torch.rand(2, 1, 4, 6, 6))\n"
        "    print('computed', file=sys.stderr)\n"
        "atexit.register(late)\n",
    )
    assert lines == ["computed"]


def test_a_handler_that_raises_does_not_break_the_call(run: Callable[..., list[str]]) -> None:
    lines = run(
        "def refuse(record): raise KeyError('refused')\n"
        "logging.getLogger('stc_cuda').addFilter(refuse)\n"
        "spikes = layer(torch.rand(2, 1, 4, 6, 6))\n"
        "print('went on', tuple(spikes.shape), file=sys.stderr)\n"
    )
    assert any("KeyError: 'refused'" in line for line in lines)
    assert lines[-1] == "went on (2, 1, 8, 6, 6)"


def test_an_unheard_call_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stc_cuda.STCLIF(in_channels=4, channels=8, kernel_size=3, groups=2)(torch.rand(2, 1, 4, 6, 6))
    assert not caplog.records
