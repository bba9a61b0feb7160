"""Memory of large CPU results that is kept from one call to the next."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import stc_cuda
from stc_cuda import memory

MIB = 1 << 20
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="nothing is kept on other systems"),
    pytest.mark.usefixtures("empty"),
]


@pytest.fixture
def empty() -> Iterator[None]:
    memory.empty_cache()
    yield
    memory.empty_cache()


def current(mebibytes: float = 4.0, steps: int = 64, seed: int = 0) -> Tensor:
    neurons = int(mebibytes * MIB) // 4 // steps
    return torch.randn(steps, 1, neurons, generator=torch.Generator().manual_seed(seed))


def spikes(x: Tensor) -> Tensor:
    with torch.no_grad():
        return stc_cuda.lif(x)[0]


def test_the_next_result_takes_the_memory_of_the_last() -> None:
    x = current()
    first = spikes(x)
    address, expected = first.data_ptr(), first.clone()
    del first
    assert memory.cached_bytes() == 4 * MIB
    second = spikes(x)
    assert second.data_ptr() == address
    assert memory.cached_bytes() == 0
    assert torch.equal(second, expected)
    assert address % (2 * MIB) == 0


def test_a_result_that_lives_keeps_its_memory() -> None:
    x, y = current(), current(seed=1)
    first = spikes(x)
    kept = first.clone()
    view = first[1:, :, ::7]
    del first
    for _ in range(3):
        spikes(y)
    assert torch.equal(view, kept[1:, :, ::7])


def test_only_like_sizes_are_taken() -> None:
    del_me = spikes(current(16))
    address = del_me.data_ptr()
    del del_me
    smaller = spikes(current(8))
    assert smaller.data_ptr() != address
    assert memory.cached_bytes() == 16 * MIB
    nearly = spikes(current(14))
    assert nearly.data_ptr() == address


def test_small_results_are_not_kept() -> None:
    spikes(current(1.5))
    assert memory.cached_bytes() == 0


def test_emptying_it() -> None:
    a, b = spikes(current(4)), spikes(current(6))
    del a, b
    assert memory.cached_bytes() == 10 * MIB
    assert memory.empty_cache() == 10 * MIB
    assert memory.cached_bytes() == memory.empty_cache() == 0


@pytest.mark.usefixtures("poison")
def test_every_element_of_a_large_result_is_written() -> None:
    x = current(5).view(64, 1, 4, -1).requires_grad_()
    for _ in range(2):  # new memory, and kept
        results = stc_cuda.lif(x, store_v_seq=True)
        (grad,) = torch.autograd.grad(results[0].sum() + results[2].sum(), x)
        assert all(not y.isnan().any() for y in (*results, grad))
        del results, grad
    assert memory.cached_bytes() > 0


def test_what_pytorch_does_with_storages() -> None:
    result = spikes(current())
    expected = result.clone()
    assert torch.equal(copy.deepcopy(result), expected)
    buffer = io.BytesIO()
    torch.save(result, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True), expected)
    array = result.numpy()
    shared = result.clone().share_memory_()
    assert torch.equal(shared, expected)
    larger = spikes(current())
    larger.resize_(96, 1, larger.shape[2])
    assert torch.equal(larger[:64], expected)
    result.share_memory_()
    assert torch.equal(result, expected)
    del result
    assert (torch.from_numpy(array) == expected).all()


def test_is_reported_to_the_profiler() -> None:
    x = current(8)
    with torch.profiler.profile(profile_memory=True) as profile:
        spikes(x)
    events = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    assert 8 * MIB in events
    assert -8 * MIB in events


def test_threads() -> None:
    expected = {seed: spikes(current(2 + seed, seed=seed)).clone() for seed in range(3)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = current(2 + seed, seed=seed)
        for _ in range(15):
            alive = [spikes(x), spikes(x)]
            wrong.extend(seed for y in alive if not torch.equal(y, expected[seed]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


CALLS = """
import torch, stc_cuda
from stc_cuda import memory
for mebibytes in (4, 6, 8, 6):
    with torch.no_grad():
        stc_cuda.lif(torch.zeros(64, 1, mebibytes * 4096))
print(memory.cached_bytes() >> 20, memory.cache_limit() >> 20)
"""


@pytest.mark.parametrize(("limit", "kept"), [("0", 0), ("5", 4), ("15", 14), ("100", 18)])
def test_the_limit(limit: str, kept: int) -> None:
    """4, 6, 8 and 6 MiB are freed: what is larger than the limit is not kept, and of others the oldest go first."""
    done = run(CALLS, STC_CUDA_CPU_CACHE_MB=limit)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(kept), limit]


@pytest.mark.parametrize("wrong", ["many", "-1", "1.5"])
def test_a_limit_that_is_no_number(wrong: str) -> None:
    done = run("import stc_cuda", STC_CUDA_CPU_CACHE_MB=wrong)
    assert done.returncode != 0
    assert f"STC_CUDA_CPU_CACHE_MB: got '{wrong}', expected a whole number of MiB" in done.stderr


def test_by_default_a_sixteenth_of_the_memory() -> None:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if "STC_CUDA_CPU_CACHE_MB" not in os.environ:
        assert abs(memory.cache_limit() - pages // 16) < MIB


def test_after_a_fork() -> None:
    code = CALLS + (
        "import os\n"
        "pid = os.fork()\n"
        "x = torch.ones(64, 1, 6 * 4096)\n"
        "torch.set_num_threads(1)\n"
        "with torch.no_grad(): ok = bool(stc_cuda.lif(x, v_threshold=0.1)[0].all())\n"
        "if pid == 0: os._exit(0 if ok else 1)\n"
        "assert ok and os.waitpid(pid, 0)[1] == 0\n"
    )
    done = run(code, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
