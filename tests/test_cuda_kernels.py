"""The CUDA kernels under emulation: the same sources, run on the CPU and watched for races and bad accesses.

Any finding of the checker fails the launch, so every test here is one for memory errors as well.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import oracle
import pytest
import torch
from cuda_emulation import backend as emulated
from cuda_emulation import build
from cuda_emulation.control import Emulation, Order
from oracle import EMULATED as BACKEND
from oracle import Case, make_problem
from parity import check_float32, check_gate, listed
from test_low_precision import rounded
from test_operators import CASES, operator_arguments

from stc_cuda import kernel_plan

pytestmark = [pytest.mark.emulated, pytest.mark.usefixtures("poison")]

# The persistent kernels take 8 or 16 channels a group, K = 3 or 5, maps up to 32x32: every mixture of channels and
# kernel size, with maps of one, two and four runs of 16 pixels a warp and ragged ones.
PERSISTENT = [
    Case(seed=901, in_group=16, kernel=5, height=9, width=16, steps=3, samples=2, drive=0.3),
    Case(seed=902, in_group=16, kernel=3, height=7, width=17, steps=3, samples=2, gradient_detach=True),
    Case(seed=903, in_group=8, kernel=5, height=20, width=13, steps=2, samples=2, v_reset=-0.3, detach_reset=True),
    Case(seed=904, in_group=8, kernel=3, height=5, width=3, steps=4, samples=3, groups=3, v_reset=0.25),
    Case(seed=905, in_group=16, kernel=5, height=1, width=1, steps=3, current_norm=False, temporal_norm=False),
    Case(seed=906, in_group=16, kernel=5, height=11, width=31, steps=2, samples=1, layout="channels_last"),
    Case(seed=907, in_group=8, kernel=5, height=6, width=8, steps=3, layout="sliced", spatial_norm=False),
    Case(seed=908, in_group=16, kernel=3, height=8, width=8, initial_v=False, initial_spikes=False, surrogate="atan"),
    Case(seed=909, in_group=16, kernel=5, height=32, width=32, steps=2, samples=1, groups=1, drive=0.5),
    Case(seed=910, in_group=8, kernel=3, height=32, width=24, steps=2, samples=1, upstream=("v",), v_threshold=0.5),
]


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    loaded = emulated.load()
    yield loaded
    loaded.set_shared_limit(227 * 1024)


@pytest.mark.parametrize("case", PERSISTENT, ids=[f"seed{c.seed}" for c in PERSISTENT])
def test_persistent_kernels(case: Case, emulation: Emulation) -> None:
    report = check_float32(make_problem(case, torch.float32), BACKEND)
    assert not report.complaints, listed(report.complaints)
    assert report.outside_band == 0
    assert report.flips <= 1


@pytest.mark.parametrize("detach", [True, False])
def test_persistent_kernels_in_99_kilobytes(detach: bool, emulation: Emulation) -> None:
    """What a block may have on the smaller class of card: the paper's map still runs with its state on chip."""
    emulation.set_shared_limit(99 * 1024)
    case = Case(seed=911, in_group=16, kernel=5, height=32, width=32, steps=2, samples=1, gradient_detach=detach)
    emulation.reset_sync_counts()
    report = check_float32(make_problem(case, torch.float32), BACKEND)
    assert not report.complaints, listed(report.complaints)
    ran = {site["site"].split(":")[0] for site in emulation.sync_sites() if site["count"]}
    assert ran >= {"persistent_forward.cuh", "persistent_backward.cuh"}


@pytest.mark.usefixtures("truncating")
@pytest.mark.parametrize("pathway", ["temporal", "spatial"])
@pytest.mark.parametrize("in_group", [16, 8])
@pytest.mark.parametrize("rate", [0.02, 0.5, 0.9, "all"])
def test_gate_from_spike_bits(pathway: str, in_group: int, rate: float | str, emulation: Emulation) -> None:
    """As test_gate_at_every_firing_rate, where weights and spikes as fp16 numbers have no room on chip."""
    room = 40 * 1024 if in_group == 16 else 20 * 1024
    plan = kernel_plan((1, 2, 2 * in_group, 13, 13), 5, 2, device="cuda", shared_memory=room)
    assert plan.kernel == "persistent"
    assert not plan.resident_weights
    emulation.set_shared_limit(room)
    check_gate(BACKEND, pathway, in_group, rate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "layout"), [(32, "contiguous"), (31, "channels_last")])
def test_results_do_not_depend_on_the_room_on_chip(
    width: int, layout: str, dtype: torch.dtype, emulation: Emulation
) -> None:
    """With little of it nothing is kept there that can be read again; rows of whole fours, and ragged ones."""
    case = Case(seed=906, in_group=16, groups=1, kernel=5, height=28, width=width, steps=2, samples=1, layout=layout)
    shape, room = (case.steps, case.samples, case.channels, case.height, case.width), 99 * 1024
    for backward in (False, True):
        plan = kernel_plan(shape, 5, case.groups, dtype=dtype, backward=backward, device="cuda", shared_memory=room)
        assert plan.kernel == "persistent"
        assert not any((plan.resident_weights, plan.cached_current, plan.cached_u))
    problem = rounded(make_problem(case, torch.float32), dtype, dtype)
    expected = oracle.run(oracle.kernel(BACKEND), problem)
    emulation.set_shared_limit(room)
    assert _same(oracle.run(oracle.kernel(BACKEND), problem), expected)


SMALL = Case(seed=912, in_group=16, kernel=3, height=6, width=18, steps=3, samples=1)
GENERAL = Case(seed=914, in_group=3, norm_groups=1, kernel=3, height=6, width=18, steps=2, samples=2)
# Together they need every barrier: some guard only what another barrier guards, too, while a norm is there or while
# gradients flow through the spikes.
VARIANTS = [
    SMALL,
    dataclasses.replace(SMALL, gradient_detach=True, height=7),  # an odd number of batches in the weight gradient
    dataclasses.replace(SMALL, current_norm=False),
    GENERAL,
]


def _solve(case: Case) -> oracle.Outcome:
    return oracle.run(oracle.kernel(BACKEND), make_problem(case, torch.float32))


def _same(found: oracle.Outcome, expected: oracle.Outcome) -> bool:
    return all(torch.equal(found.grads[name], x) for name, x in expected.grads.items()) and all(
        torch.equal(found.outputs[name], x) for name, x in expected.outputs.items()
    )


@pytest.mark.parametrize("case", VARIANTS, ids=["attached", "detached", "no norm of the current", "general"])
@pytest.mark.parametrize("order", list(Order), ids=lambda order: order.name.lower())
def test_result_does_not_depend_on_the_order_of_warps(order: Order, case: Case, emulation: Emulation) -> None:
    emulation.set_order(Order.ROUND_ROBIN)
    expected = _solve(case)
    for seed in range(4):
        emulation.set_order(order, seed)
        assert _same(_solve(case), expected), f"seed {seed}"


def test_every_synchronisation_is_needed(emulation: Emulation) -> None:
    """Each barrier, __syncwarp and cp.async wait deleted in turn: the checker reports it, or a result changes."""
    emulation.reset_sync_counts()
    expected = [_solve(case) for case in VARIANTS]
    deletable = ("__syncthreads", "named barrier", "__syncwarp", "cp.async wait")
    sites = [site for site in emulation.sync_sites() if site["count"] and site["operation"] in deletable]
    files = {Path(site["file"]).name.split(".")[0] for site in sites}
    assert files >= {"general", "persistent", "persistent_forward", "persistent_backward", "weight_gradient"}

    def survives(case: Case, outcome: oracle.Outcome) -> bool:
        try:
            return _same(_solve(case), outcome)
        except RuntimeError:
            return False

    survivors = []
    for site in sites:
        with emulation.without(site["site"]):
            if all(survives(case, outcome) for case, outcome in zip(VARIANTS, expected, strict=True)):
                survivors.append((site["site"], site["operation"]))
    assert not survivors


def test_slice_under_address_sanitizer() -> None:
    """In a process of its own: heap and shared memory with red zones, undefined behaviour as in the other modes."""
    library = emulated.compile_kernels("asan")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {**build.environment("asan"), "STC_EMULATION_LIBRARY": str(library)}
    here = Path(__file__).parent
    chosen = [
        *(f"{here / 'test_cuda_kernels.py'}::test_persistent_kernels[seed{seed}]" for seed in (901, 904, 906, 907)),
        f"{here / 'test_cuda_kernels.py'}::test_mode_is[asan]",
        f"{here / 'test_stc_parity.py'}::test_float32[{BACKEND}-0]",
        f"{here / 'test_stc_parity.py'}::test_float64[{BACKEND}-0]",
        *(
            f"{here / 'test_neuron_parity.py'}::test_float32[{BACKEND}-{name}-0]"
            for name in ("glif", "tclif", "stc_lmh")
        ),
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{len(chosen)} passed" in done.stdout


@pytest.mark.parametrize("mode", build.MODES)
def test_mode_is(mode: str, emulation: Emulation) -> None:
    """For the processes that ask for a mode by name."""
    if emulation.mode != mode:
        pytest.skip(f"the mode is {emulation.mode}")
    _solve(SMALL)
    assert (mode == "check") == bool(emulation.traffic())


@pytest.mark.parametrize(
    "imports",
    [
        "import cuda_emulation.build; assert 'torch' not in sys.modules; import stc_cuda",
        "import stc_cuda; import cuda_emulation",
        "import cuda_emulation.backend; import stc_cuda",
    ],
)
def test_importing_the_emulation_registers_the_backend(imports: str) -> None:
    script = f"""
import sys
{imports}
assert "{BACKEND}" in stc_cuda.backend_names()
from cuda_emulation import backend
assert backend.load.cache_info().currsize == 0
"""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_operators_are_those_of_the_extension() -> None:
    forward, backward = operator_arguments(CASES[1], torch.float32, True, False, True)
    for name, arguments in (("stc_forward", forward), ("stc_backward", backward)):
        ours, theirs = (getattr(space, name).default for space in (torch.ops.stc_cuda_emulated, torch.ops.stc_cuda))
        assert str(ours._schema) == str(theirs._schema).replace("stc_cuda::", "stc_cuda_emulated::")
        torch.library.opcheck(ours, arguments)


def test_paper_layer_in_both_detach_modes(emulation: Emulation) -> None:
    for detach in (True, False):
        case = Case(seed=913, groups=16, in_group=16, kernel=5, height=32, width=32, steps=3, samples=1, drive=0.2)
        case = dataclasses.replace(case, gradient_detach=detach, store_v_seq=False, upstream=("spikes",))
        report = check_float32(make_problem(case, torch.float32), BACKEND)
        assert not report.complaints, listed(report.complaints)
        assert report.outside_band == 0
        assert report.flips <= max(1, report.spikes * 1e-5)
