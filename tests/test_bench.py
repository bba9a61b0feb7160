"""What the bench computes, writes and refuses. Nothing here asserts a time."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stc_cuda
from bench import __main__ as command
from bench import contestants, latency, report, timing
from bench.cases import (
    BACKWARD,
    DETACHED,
    FORWARD,
    LAYER_NAMES,
    PAPER_NAMES,
    PASSES,
    ROLLOUT,
    TRAINING,
    Case,
    Layer,
    layer_cases,
    make_inputs,
    sweep_cases,
)
from bench.contestants import AUTHORS, AUTOTUNED, COMPILED, EAGER, OURS, SPIKINGJELLY, Contestant
from bench.latency import Effort, Row, check_parity, figures, measure
from bench.limits import Ceilings, Work, circuit_work, gate_macs, neuron_work
from bench.timing import Deadline, OverTimeError, at_most, peak_bytes, race
from stc_cuda.models import SpikingPredictor
from stc_cuda.profiling import Timing

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
CEILINGS = Ceilings(copy=1e9, matmul=1e10, matmul_dtype="float32")
SMALL = Layer(3, 1, 32, 8, groups=2)
ABOUT = {
    "device": "cpu",
    "processor": "a processor",
    "threads": 2,
    "python": "3.12",
    "torch": "2.99",
    "commit": "abc",
    "cpu_kernel": "avx2",
}


def row(contestant: str = OURS, **changes: Any) -> Row:
    usual: dict[str, Any] = {
        "section": "layers",
        "case": "taxibj",
        "value": None,
        "layer": "[T=7]",
        "steps": 7,
        "samples": 1,
        "channels": 256,
        "size": 32,
        "firing_rate": 0.18,
        "what": FORWARD,
        "contestant": contestant,
        "ratio": 1.0,
        "ms": 14.0,
        "ms_per_step": 2.0,
        "spread": 0.01,
        "rounds": 9,
        "bytes_per_s": 1e9,
        "flop_per_s": 2e9,
        "limit": 0.5,
        "limited_by": "memory",
    }
    return Row(**{**usual, **changes})


def results(*rows: Row, **about: Any) -> report.Results:
    return report.Results({**ABOUT, **about}, CEILINGS, list(rows))


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_work_of_the_papers_layer() -> None:
    layer = Layer(4, 2)
    numbers, weights = 4 * 2 * 256 * 32 * 32, 2 * 256 * 16 * 25
    macs = 2 * 16 * 25 * numbers  # two convolutions of 16 channels a group and 5x5
    assert gate_macs(layer) == macs
    assert circuit_work(layer, FORWARD) == Work(4 * (2 * numbers + weights), macs)
    assert circuit_work(layer, BACKWARD) == Work(4 * (4 * numbers + 2 * weights), 3 * macs)
    assert circuit_work(layer, BACKWARD + DETACHED).macs == 2 * macs
    assert circuit_work(layer, TRAINING) == Work(4 * (7 * numbers + 3 * weights), 4 * macs)
    assert circuit_work(layer, TRAINING + DETACHED).macs == 3 * macs
    step = Layer(1, 2, carried=True)
    assert circuit_work(step, ROLLOUT).bytes == 4 * (6 * 2 * 256 * 32 * 32 + weights)  # v and s, in and out
    with pytest.raises(ValueError, match="what: got 'sideways'"):
        circuit_work(layer, "sideways")
    assert neuron_work(layer, FORWARD) == Work(8 * numbers, 0)


def test_figures_of_a_row() -> None:
    theirs, ours = Timing((0.4, 0.2, 0.2, 0.2)), Timing((0.1, 0.1, 0.1, 0.05))
    found = figures(Work(10**8, 5 * 10**7), Layer(2, 5), theirs, ours, CEILINGS)
    assert found["ratio"] == pytest.approx(3.0)  # of 4, 2, 2, 4
    assert found["ms"] == pytest.approx(200)
    assert found["ms_per_step"] == pytest.approx(20)
    assert found["bytes_per_s"] == pytest.approx(5e8)
    assert found["flop_per_s"] == pytest.approx(5e8)
    assert (found["limit"], found["limited_by"]) == (pytest.approx(0.5), "memory")  # 0.1 s by the copy
    busy = figures(Work(10**7, 10**9), Layer(2, 5), theirs, None, CEILINGS)
    assert (busy["limit"], busy["limited_by"], busy["ratio"]) == (pytest.approx(1.0), "arithmetic", None)


def test_sequences_are_cut_on_a_cpu_and_the_same_ones_timed_once() -> None:
    cpu = [(case.name, case.layer.steps) for case in layer_cases("cpu", list(LAYER_NAMES), ["18%"])]
    assert cpu == [("moving-mnist, kth", 10), ("taxibj", 7), ("rollout", 1), ("rollout", 1), ("small", 10)]
    gpu = list(layer_cases("cuda", list(PAPER_NAMES), ["18%"]))
    assert [case.layer.steps for case in gpu] == [19, 7, 29, 1, 1]
    assert [case.layer.samples for case in gpu] == [16, 16, 16, 1, 16]
    assert {case.layer.channels for case in gpu} == {256}
    for name, field in {"T": "steps", "N": "samples", "C": "channels", "map": "size"}.items():
        for device in ("cpu", "cuda"):
            for case in sweep_cases(device, [name]):
                assert getattr(case.layer, field) == case.value


# --- contestants ----------------------------------------------------------------------------------------------------


def compare(case: Case, rivals: set[str]) -> None:
    problem = contestants.make_problem(case, CPU, rivals)
    assert problem.contestants.keys() == {OURS, *rivals}
    for detach in (False, True):
        found = {}
        for name, contestant in problem.contestants.items():
            spikes = contestant.call(detach)
            upstream = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1))
            found[name] = spikes, torch.autograd.grad(spikes, problem.leaves, upstream, allow_unused=True)
        spikes, grads = found[OURS]
        assert 0.02 < spikes.mean() < 0.98
        for name in rivals:
            assert torch.equal(found[name][0], spikes), name
            for mine, other in zip(grads, found[name][1], strict=True):
                assert (mine is None) == (other is None), name
                if mine is not None:
                    assert float((mine - other).norm()) <= 1e-4 * float(other.norm()), name


@pytest.mark.parametrize("carried", [False, True])
def test_rivals_compute_the_same(carried: bool) -> None:
    compare(Case("layers", "small", dataclasses.replace(SMALL, carried=carried)), {EAGER, AUTHORS})


@pytest.mark.slow
def test_compiled_rivals_compute_the_same() -> None:
    compare(Case("compiled", "small", dataclasses.replace(SMALL, steps=2)), {EAGER, COMPILED, AUTOTUNED})


@pytest.mark.parametrize("name", ["lif", "plif", "integrate_fire"])
def test_spikingjelly_computes_the_same(name: str) -> None:
    """All but the gradient of the decay, which is a parameter of its own for each."""
    if not contestants.has_spikingjelly():
        pytest.skip("needs SpikingJelly")
    problem = contestants.make_problem(Case("neurons", name, SMALL), CPU, {SPIKINGJELLY})
    found = {n: c.call(False) for n, c in problem.contestants.items()}
    assert found.keys() == {OURS, SPIKINGJELLY}
    assert torch.equal(found[OURS], found[SPIKINGJELLY])
    grads = [torch.autograd.grad(spikes.sum(), problem.leaves[0])[0] for spikes in found.values()]
    torch.testing.assert_close(*grads)


def test_the_authors_cell_keeps_what_it_is_said_to_keep() -> None:
    problem = contestants.make_problem(Case("layers", "paper", Layer(4, 1)), CPU, {AUTHORS, EAGER})
    kept = {}
    for name, contestant in problem.contestants.items():
        found = latency._memory(contestant, TRAINING, problem, Layer(4, 1), CPU)
        kept[name] = found["saved_bytes"]
        assert found["peak_bytes"] is not None
        assert found["peak_bytes"] > found["saved_bytes"]  # type: ignore[operator]
    assert kept[OURS] == pytest.approx(8.0, abs=0.1)
    assert kept[AUTHORS] == pytest.approx(43.0, abs=1)
    assert kept[EAGER] == pytest.approx(43.0, abs=1)


def test_peak_is_what_lives_at_once() -> None:
    def run() -> None:
        a = torch.ones(1000) + 1
        b = a * 2
        del a
        b.exp_()

    assert peak_bytes(lambda: run, CPU) == pytest.approx(3 * 4000, abs=4200)


# --- refusal --------------------------------------------------------------------------------------------------------


def off_by_a_spike(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    spikes, v = stc_cuda.stc_lif(*arguments, **options)
    wrong = torch.zeros_like(spikes)
    wrong.view(-1)[0] = 1.0
    return (spikes - wrong).abs(), v


def wrong_gradient(current: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    scaled = current + 0.001 * (current - current.detach())
    return stc_cuda.stc_lif(scaled, *arguments, **options)


def test_right_kernels_are_timed() -> None:
    check_parity(CPU)


@pytest.mark.parametrize(("broken", "said"), [(off_by_a_spike, "1 spikes"), (wrong_gradient, "0 spikes")])
def test_wrong_kernels_are_not_timed(broken: Any, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(contestants.CIRCUITS, OURS, broken)
    with pytest.raises(RuntimeError, match=f"differ from the reference in torch.float64 .{said}.*not timing them"):
        check_parity(CPU)
    with pytest.raises(SystemExit, match="not timing them"):
        command.run_bench(["--json", str(tmp_path / "rows.json")])
    assert not list(tmp_path.iterdir())


# --- races ----------------------------------------------------------------------------------------------------------


def test_a_contestant_that_fails_is_named_and_the_others_run() -> None:
    ran: list[str] = []

    def fails() -> Any:
        raise RuntimeError("no kernel\nfor this")

    def late() -> Any:
        ran.append("late")
        if len(ran) > 3:
            raise MemoryError
        return lambda: None

    prepared = {"good": lambda: lambda: ran, "bad": fails, "late": late}
    timings, errors = race(prepared, 5, CPU, Deadline.after(60), budget=10)
    assert timings.keys() == {"good"}
    assert len(timings["good"].seconds) == 5
    assert errors == {"bad": "RuntimeError: no kernel for this", "late": "MemoryError"}


def test_rounds_are_cut_to_the_budget_and_to_the_deadline() -> None:
    prepared = {"slow": lambda: lambda: time.sleep(0.01)}
    timings, _ = race(prepared, 1000, CPU, Deadline.after(60), budget=0.001)
    assert len(timings["slow"].seconds) == timing.FEWEST_ROUNDS
    timings, errors = race(prepared, 5, CPU, Deadline.after(-1), budget=10)
    assert not timings
    assert errors["slow"] == "no time left"


def test_a_start_that_takes_too_long_is_interrupted() -> None:
    prepared = {"compiler": lambda: lambda: time.sleep(60), "good": lambda: lambda: None}
    begin = time.monotonic()
    timings, errors = race(prepared, 3, CPU, Deadline.after(60), budget=1, start_limits={"compiler": 0.2})
    assert time.monotonic() - begin < 30
    assert timings.keys() == {"good"}
    assert errors["compiler"].startswith("OverTimeError: compiler: stopped after")
    with pytest.raises(OverTimeError, match="x: stopped after 0 s"), at_most(0.05, "x"):
        time.sleep(60)


def test_no_case_is_begun_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "make_problem", lambda *arguments: pytest.fail("began"))
    rows = list(measure(Case("layers", "small", SMALL), set(), CPU, Effort(3, 1.0), CEILINGS, Deadline.after(-1)))
    assert [(r.what, r.error) for r in rows] == [(what, "OverTimeError: no time left") for what in (FORWARD, TRAINING)]


@pytest.mark.parametrize("wanted", [{EAGER, AUTHORS}, set()])
def test_rows_of_a_case(wanted: set[str]) -> None:
    case = Case("layers", "small", SMALL, passes=PASSES)
    rows = list(measure(case, wanted, CPU, Effort(3, 1.0), CEILINGS, Deadline.after(60)))
    assert [(r.what, r.contestant) for r in rows] == [
        (what, name) for what in PASSES for name in (OURS, EAGER, AUTHORS) if name == OURS or name in wanted
    ]
    for r in rows:
        assert r.error is None
        assert r.rounds == 3
        assert r.ms is not None
        assert r.ms_per_step == pytest.approx(r.ms / 3)
        assert (r.saved_bytes is not None) == r.what.startswith(TRAINING)
        assert (r.peak_bytes is not None) == (r.what in (FORWARD, TRAINING))
        assert r.contestant != OURS or r.ratio == 1.0


def test_an_error_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise NotImplementedError("not for this shape")

    case = Case("layers", "small", SMALL)
    effort, deadline = Effort(3, 1.0), Deadline.after(60)
    monkeypatch.setitem(contestants.CIRCUITS, AUTHORS, broken)
    rows = {(r.what, r.contestant): r for r in measure(case, {AUTHORS}, CPU, effort, CEILINGS, deadline)}
    assert rows[FORWARD, OURS].ms is not None
    assert rows[FORWARD, AUTHORS].error == "NotImplementedError: not for this shape"
    assert rows[FORWARD, AUTHORS].ms is None
    assert "not for this shape" in report.line(rows[TRAINING, AUTHORS])
    monkeypatch.setitem(contestants.CIRCUITS, OURS, broken)
    found = list(measure(case, {AUTHORS}, CPU, effort, CEILINGS, deadline))
    assert [(r.what, r.contestant, r.ms) for r in found] == [(FORWARD, OURS, None), (TRAINING, OURS, None)]


def test_a_captured_pass_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for torch.cuda's: warm up beside, capture once, replay each time."""
    done: list[str] = []

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    class Stream:
        def wait_stream(self, other: object) -> None:
            done.append("wait")

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    for name, value in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda s: s,
        "graph": lambda g: Stream(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    contestant = Contestant(lambda detach: done.append("call") or torch.zeros(1), graph=True)  # type: ignore[func-returns-value]
    prepare = contestants.preparation(contestant, FORWARD, [])
    prepare()()
    prepare()()
    assert done == ["wait", "call", "call", "wait", "call", "replay", "replay"]
    assert not contestants.takes_part(contestant, BACKWARD + DETACHED)
    assert contestants.takes_part(contestant, TRAINING)


# --- what is written ------------------------------------------------------------------------------------------------


def test_json_and_csv_hold_every_row(tmp_path: Path) -> None:
    written = results(row(), row(EAGER, ratio=3.0), row(AUTHORS, ms=None, error="out of memory, again"))
    path = tmp_path / "rows.json"
    path.write_text(written.to_json())
    assert report.Results.from_json(path) == written
    found = list(csv.DictReader(io.StringIO(written.to_csv())))
    assert [r["contestant"] for r in found] == [OURS, EAGER, AUTHORS]
    assert found[1]["ratio"] == "3.0"
    assert found[2]["error"] == "out of memory, again"
    assert {(r["device"], r["commit"]) for r in found} == {("a processor", "abc")}
    path.write_text(json.dumps({"steps": [], "latency": json.loads(written.to_json())}))  # as bench/gpu_check.sh does
    assert report.Results.from_json(path) == written


@pytest.mark.parametrize("text", ["[]", "{}", "not JSON", '{"latency": null}', '{"about": {}, "rows": [{"x": 1}]}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"rows\.json: expected a file that `python -m bench --json` wrote"):
        report.Results.from_json(path)


def test_slices_of_one_run_are_put_together() -> None:
    whole = report.merged([results(row()), results(row(EAGER))])
    assert [r.contestant for r in whole.rows] == [OURS, EAGER]
    with pytest.raises(ValueError, match="commit: got 'abc' and 'def', expected slices of one run"):
        report.merged([results(row()), results(row(), commit="def")])
    with pytest.raises(ValueError, match="processor: got"):
        report.merged([results(row()), results(row(), processor="another")])


def test_tables() -> None:
    rows = [
        row(ms_per_step=0.5),
        row(EAGER, ratio=4.0, ms_per_step=2.0),
        row(AUTHORS, ms=None, ratio=None, error="no"),
        row(what=TRAINING, saved_bytes=8.0, peak_bytes=20.0),
        row(EAGER, what=TRAINING, saved_bytes=43.0, ratio=2.0),
    ]
    table = report.short_table(results(*rows)).splitlines()
    assert table[0].endswith("| stc_cuda | eager reference | authors' cell |")
    assert len({line.count("|") for line in table}) == 1
    assert "| 0.5 | 2 (4x) | failed |" in table[2]
    assert table[3].endswith("| 2 | 2 (2x) |  |")
    memory = report.memory_line(results(*rows))
    assert "stc_cuda 8 (20 at the peak), eager reference 43." in memory
    full = report.full_tables(results(*rows, row(section="sweep", case="T", value=8)))
    assert "**sweep, T = 8**" in full
    assert {line.count("|") for line in full.splitlines() if line.startswith("|")} == {12}


def test_numbers() -> None:
    found = [report.number(x) for x in (None, 1234567.0, 123.4, 12.345, 0.5, 0.01234, 0.00001)]
    assert found == ["", "1234567", "123", "12.3", "0.5", "0.0123", "0.000010"]


def test_only_what_lies_between_the_markers_changes(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    text = "before\n<!-- bench:cpu:begin -->\nold\n<!-- bench:cpu:end -->\nafter\n<!-- bench:cuda:begin -->\n"
    path.write_text(text)
    report.rewrite(path, "cpu", "new\n")
    assert path.read_text() == text.replace("old", "new")
    with pytest.raises(ValueError, match=r"README.md: expected one line <!-- bench:cuda:begin --> and after it one"):
        report.rewrite(path, "cuda", "new\n")
    assert path.read_text() == text.replace("old", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_documents_have_a_place_for_the_tables(device: str) -> None:
    report.check_markers(device)


def test_report_rewrites_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = "# A\n<!-- bench:cpu:begin -->\n<!-- bench:cpu:end -->\n"
    documents = {"readme": tmp_path / "README.md", "docs": tmp_path / "performance.md"}
    for path in documents.values():
        path.write_text(marked)
    monkeypatch.setattr(report, "DOCUMENTS", documents)
    for name, each in {"a": row(), "b": row(EAGER)}.items():
        (tmp_path / f"{name}.json").write_text(results(each).to_json())
    command.run_report([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--readme"])
    assert "| taxibj: 256 channels, 32x32, T=7, N=1, forward | 18% | 2 | 2 (1x) |" in documents["readme"].read_text()
    assert "commit abc" in documents["docs"].read_text()


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        row(name, section="sweep", case=case, value=value, ms=value)
        for name in (OURS, EAGER)
        for case in report.PLOTTED
        for value in (1.0, 2.0, 4.0)
    ]
    drawn = report.draw(results(*rows, row(EAGER, section="sweep", case="T", value=8.0, ms=None)), tmp_path / "plots")
    assert [path.name for path in drawn] == ["cost-forward-cpu.png"]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")
    assert report.draw(results(row()), tmp_path / "none") == []


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--layers", "resnet"], "argument --layers: invalid choice: 'resnet'"),
        (["--rates", "7%"], "argument --rates: invalid choice: '7%'"),
        (["--rounds", "0"], "argument --rounds: got '0', expected a whole number from 1 on"),
        (["--json", "/nowhere/rows.json"], "argument --json: got '/nowhere/rows.json', expected a file in a folder"),
        (["report"], "the following arguments are required: files"),
        (["report", "/nowhere.json"], "/nowhere.json: expected a file that"),
        (["roofline"], "the following arguments are required: --gpu"),
        (["roofline", "--gpu", "voodoo"], "argument --gpu: invalid choice: 'voodoo'"),
    ],
)
def test_bad_arguments(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    monkeypatch.setattr(command, "check_parity", lambda device: pytest.fail("started"))
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would start")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.run_bench(["--device", "cuda"])
    assert f"torch {torch.__version__} sees no GPU" in capsys.readouterr().err


def test_a_slice_of_the_bench(tmp_path: Path) -> None:
    arguments = "--layers rollout --sweeps none --rivals reference --rounds 3 --seconds 60"
    files = ["--json", str(tmp_path / "rows.json"), "--csv", str(tmp_path / "rows.csv")]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments.split(), *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = report.Results.from_json(tmp_path / "rows.json")
    assert [(r.samples, r.what, r.contestant) for r in found.rows] == [
        (n, ROLLOUT, name) for n in (1, 2) for name in (OURS, EAGER)
    ]
    assert all(r.ms for r in found.rows)
    assert found.about["commit"]
    assert found.ceilings.copy > 0
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 5
    assert "measured ceilings: copy" in done.stdout


def test_regression_cases_run() -> None:
    pytest.importorskip("pytest_benchmark")
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "bench/test_speed.py", "--benchmark-disable"]
    done = subprocess.run(
        [sys.executable, *arguments, "-k", "cpu and (lif or rollout)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


def test_memory_by_mode(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import memory

    memory.main(["--steps", "16", "--channels", "64", "--size", "16", "--rounds", "1"])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    figures = {name: [float(x) for x in numbers] for name, *numbers in lines[1:]}
    assert all(abs(conv + rest - kept) <= 0.011 for conv, rest, kept, *_ in figures.values())
    conv, rest, _, _, _ = figures["stc_cuda"]
    assert 0.12 <= conv <= 0.2
    assert 8 <= rest <= 8.2
    assert 4 + 4 / 16 <= figures["stc_cuda, recompute_every=8"][1] <= 4.7
    assert figures["authors' layer"][2] >= 43
    assert figures["stc_cuda, bfloat16 autocast"][1] <= 6.2
    assert figures["stc_cuda, inference"][:3] == [0, 0, 0]
    assert all(peak >= kept for _, _, kept, peak, _ in figures.values())


def test_a_whole_predictor(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import predictor

    torch.manual_seed(0)
    model = SpikingPredictor("stclif", (3, 1, 16, 16), 2, (16, 16), groups=2)
    eager = predictor.eager_of(model)
    assert not any(isinstance(module, stc_cuda.SpikeConv2d) for module in eager.modules())
    frames = torch.rand(1, 5, 1, 16, 16)
    torch.testing.assert_close(eager(frames), model(frames))
    predictor.main(["--hidden", "16", "--size", "16", "--rounds", "1"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["training step", "inference"]
    for _, eager_ms, ours_ms, ratio, share in rows[1:]:
        assert float(eager_ms) > 0
        assert float(ours_ms) > 0
        assert float(ratio.removesuffix("x")) > 0
        assert 0 < float(share.removesuffix("%")) < 100


def test_inputs_fire_as_asked() -> None:
    for bias, rate in ((-0.65, 0.05), (0.75, 0.5)):
        inputs = make_inputs(Layer(4, 1, 64, 16), bias, rate, CPU)
        with torch.no_grad():
            spikes = stc_cuda.stc_lif(*inputs.args, groups=16, **inputs.norms)[0]
        assert float(spikes.mean()) == pytest.approx(rate, abs=0.1)


def test_a_hard_stop_ends_with_its_block() -> None:
    script = (
        "import sys, time\nfrom bench.__main__ import hard_stop\n"
        "try:\n    with hard_stop(0.2):\n        sys.exit(3)\nexcept SystemExit:\n    time.sleep(0.6)\n"
        "print('alive')\n"
        "with hard_stop(0.2):\n    time.sleep(5)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "alive\n"
    assert done.returncode == 1
    assert "Timeout" in done.stderr
