"""Contestants in turn in one process, within a limit of time; bytes that a call holds."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import torch
from torch.profiler import ProfilerActivity, profile

from stc_cuda.profiling import Timing

from .environment import ROOT

# Prepares a run, untimed, and returns what is timed.
Prepare = Callable[[], Callable[[], object]]
FEWEST_ROUNDS = 3


class OverTimeError(Exception):
    """A part of the bench has had its time."""


@dataclass(frozen=True)
class Deadline:
    """A moment of ``time.monotonic``."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        return self.at - time.monotonic()

    def sooner(self, seconds: float) -> Deadline:
        return Deadline(min(self.at, time.monotonic() + seconds))


@contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """Raises OverTimeError in the main thread after so many seconds, also out of a wait for other processes."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OverTimeError(f"{what}: stopped after {seconds:.0f} s")

    if seconds <= 0:
        raise ValueError(f"seconds: got {seconds}, expected a number above 0")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def said(error: BaseException) -> str:
    """An error in a line."""
    text = " ".join(str(error).replace(f"{ROOT}/", "").split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


class _Clock:
    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        if self.gpu:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self.flush = torch.empty(4 * max(cache, 2**20), dtype=torch.uint8, device=device)

    def seconds(self, prepare: Prepare) -> float:
        run = prepare()
        if not self.gpu:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        self.flush.zero_()  # none of the inputs is left in the second-level cache
        torch.cuda.synchronize()  # every run starts on an idle device, whatever was prepared
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def race(
    contestants: Mapping[str, Prepare],
    rounds: int,
    device: torch.device,
    deadline: Deadline,
    *,
    budget: float,
    start_limits: Mapping[str, float] | None = None,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times the contestants in turn, so that a noisy machine disturbs all alike.

    Args:
        contestants: by name.
        rounds: at most; fewer, but three, where ``budget`` seconds do not suffice.
        device: on which they run.
        deadline: for all.
        budget: seconds for the timed rounds.
        start_limits: seconds for the first run of a contestant; 30 where it is not named.

    Returns:
        Timings of those that ran, and what the others said instead.
    """
    clock = _Clock(device)
    errors: dict[str, str] = {}
    running: dict[str, Prepare] = {}
    # a first run compiles and chooses algorithms, a second one fills caches: both are untimed
    for name, prepare in contestants.items():
        if deadline.left <= 0:
            errors[name] = "no time left"
            continue
        limit = min((start_limits or {}).get(name, 30.0), deadline.left)
        try:
            with at_most(limit, name):
                for _ in range(2):
                    clock.seconds(prepare)
        except Exception as error:
            errors[name] = said(error)
            recover(device)
        else:
            running[name] = prepare
    seconds: dict[str, list[float]] = {name: [] for name in running}
    end = deadline.sooner(budget)
    for turn in range(rounds):
        if turn >= FEWEST_ROUNDS and end.left < 0:
            break
        if deadline.left < 0:
            break
        for name, prepare in list(running.items()):
            try:
                with at_most(max(deadline.left, 1.0), name):
                    seconds[name].append(clock.seconds(prepare))
            except Exception as error:
                errors[name] = said(error)
                del running[name]
                recover(device)
    timings = {name: Timing(tuple(seconds[name])) for name in running if len(seconds[name]) >= FEWEST_ROUNDS}
    for name in running.keys() - timings.keys():
        errors[name] = "no time left"
    return timings, errors


def recover(device: torch.device) -> None:
    """Frees what a contestant left, cuDNN's trials of large workspaces above all."""
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # a device that is lost says so at every call
            torch.cuda.empty_cache()


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """The profiler writes there that it starts and stops, from C++."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def peak_bytes(prepare: Prepare, device: torch.device) -> int:
    """The most bytes of torch's allocators that a run holds beside what there is before it."""
    run = prepare()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
