"""Fixtures of the whole suite. Backends are listed once, in oracle.py."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads that wait must not spin: on a busy machine that makes everything crawl. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

sys.path.insert(0, str(Path(__file__).parent))

from cuda_emulation import build
from oracle import ALL_BACKENDS, EMULATED, KERNEL_BACKENDS

NO_EMULATION = build.why_not()


def pytest_configure(config: pytest.Config) -> None:
    # Workers of pytest-xdist share the cores.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    if torch.cuda.is_available():  # a crash names its C++ frames, too, under ``pytest -s``
        torch._C._set_print_stack_traces_on_fatal_signal(True)


def _params(names: list[str]) -> list[object]:
    marks = {
        "cuda": [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
        EMULATED: [pytest.mark.emulated],
    }
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not item.get_closest_marker("emulated"):
        return
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("device") == "gpu":  # the twins of test_emulation.py on the hardware
        return
    if NO_EMULATION:
        pytest.skip(NO_EMULATION)
    if item.path.name == "test_emulation.py":  # runs kernels of its own
        return
    from cuda_emulation import backend
    from cuda_emulation.control import Order

    # Warps as far apart as the barriers let them get, in an order that is the test's own.
    backend.load().set_order(Order.WARP_PRIORITIES, seed=zlib.crc32(item.nodeid.encode()))


@pytest.fixture(params=_params(KERNEL_BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend made of compiled kernels."""
    return request.param


@pytest.fixture(params=_params(ALL_BACKENDS))
def any_backend(request: pytest.FixtureRequest) -> str:
    """Every backend, the reference included."""
    return request.param


@pytest.fixture
def truncating(request: pytest.FixtureRequest) -> Iterator[None]:
    """Emulated tensor cores cut sums off, as real ones do, instead of rounding them."""
    if not request.node.get_closest_marker("emulated"):
        yield
        return
    from cuda_emulation import backend
    from cuda_emulation.control import Rounding

    backend.load().set_mma_rounding(Rounding.TRUNCATE)
    yield
    backend.load().set_mma_rounding(Rounding.NEAREST)


@pytest.fixture
def poison() -> Iterator[None]:
    """Memory from ``torch.empty`` is full of NaN, so that an element which no kernel writes shows."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the parity tests counted, whichever worker ran them."""
    totals: dict[str, dict[str, float]] = {}
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        counts = dict(report.user_properties).get("parity")
        for key, value in (counts or {}).items():
            total = totals.setdefault(counts["group"], {})
            if key.startswith("worst"):
                total[key] = max(total.get(key, 0.0), value)
            elif key != "group":
                total[key] = total.get(key, 0) + value
    if totals:
        terminalreporter.section("kernels against the float64 oracle")
    for group, total in sorted(totals.items()):
        figures = ", ".join(
            f"{k.replace('_', ' ')} {v:,}" if isinstance(v, int) else f"{k.replace('_', ' ')} {v:.2g}"
            for k, v in total.items()
        )
        terminalreporter.write_line(f"{group}: {figures}")
