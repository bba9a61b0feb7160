"""Latency and memory of the compiled kernels beside their rivals and the machine's limits.

``python -m bench`` measures; ``python -m bench report FILE...`` writes tables and plots from files of ``--json``;
``python -m bench memory`` counts bytes by mode; ``python -m bench predictor`` times a whole model; ``python -m bench
roofline --gpu NAME`` predicts without a GPU.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import stc_cuda

from . import memory, predictor, report, roofline
from .cases import (
    LAYER_NAMES,
    RATES,
    SWEEP_NAMES,
    USUAL_RATE,
    Case,
    compiled_cases,
    layer_cases,
    neuron_cases,
    sweep_cases,
)
from .contestants import AUTOTUNED, COMPILED, OURS, RIVAL_KEYS, SPIKINGJELLY, has_spikingjelly
from .environment import environment
from .files import write_whole
from .latency import Effort, check_parity, measure
from .limits import measure_ceilings
from .timing import Deadline

NONE = "none"
SECONDS = {"cpu": 540.0, "cuda": 130.0}
GRACE = 8.0  # seconds after the deadline until the process is ended
FOR_COMPILING = 0.4, 60.0  # the part of them, and the most of it, that nothing else gets
# Of one pass, by device and section.
EFFORT = {
    "cpu": {"layers": 8.0, "sweep": 2.0, "compiled": 8.0, "neurons": 2.0},
    "cuda": {"layers": 1.2, "sweep": 0.5, "compiled": 1.0, "neurons": 0.5},
}


def header(device: str) -> dict[str, Any]:
    """The machine, versions and commit that every table carries."""
    build = stc_cuda.build_info()
    kernels = {"cpu_kernel": build["cpu_kernel"]} if device == "cpu" else {"built_for": build["cuda_architectures"]}
    return {"device": device, **environment(), "stc_cuda": stc_cuda.__version__, **kernels}


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 on")
    return int(text)


def writable(text: str) -> Path:
    """A file that can be made, checked before anything is timed."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a file in a folder that exists")
    return path


def _outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=writable, metavar="FILE", help="write header, ceilings and rows here")
    parser.add_argument("--csv", type=writable, metavar="FILE", help="write the rows here")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw cost against T, N, C and map; matplotlib")
    parser.add_argument("--readme", action="store_true", help="rewrite the tables of README.md and docs/performance.md")


def bench_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=raw)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to time (default cpu)")
    parser.add_argument(
        "--layers", nargs="+", choices=(*LAYER_NAMES, NONE), default=list(LAYER_NAMES), help="of the paper's data sets"
    )
    parser.add_argument("--rates", nargs="+", choices=RATES, default=[USUAL_RATE], help="firing rates of the layers")
    parser.add_argument(
        "--sweeps", nargs="+", choices=(*SWEEP_NAMES, NONE), default=list(SWEEP_NAMES), help="sizes to vary"
    )
    parser.add_argument(
        "--rivals", nargs="+", choices=(*RIVAL_KEYS, NONE), default=list(RIVAL_KEYS), help="beside this library"
    )
    parser.add_argument("--rounds", type=positive, default=15, help="timed rounds of each, at most (default 15)")
    parser.add_argument(
        "--seconds",
        type=positive,
        help="limit of the whole run (default 540 on a CPU, 130 on a GPU); rows that it leaves no time for say so",
    )
    _outputs(parser)
    return parser


def report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench report", description="Writes from files of --json.")
    parser.add_argument("files", nargs="+", type=Path, help="slices of one run")
    _outputs(parser)
    return parser


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """In the order of their worth: what comes last goes first when time is short."""
    device, wanted = options.device, {RIVAL_KEYS[key] for key in options.rivals if key != NONE}
    layers = [name for name in options.layers if name != NONE]
    yield from layer_cases(device, layers, options.rates)
    if SPIKINGJELLY in wanted and has_spikingjelly():
        yield from neuron_cases(device)
    yield from sweep_cases(device, [name for name in options.sweeps if name != NONE])
    if layers and wanted & {COMPILED, AUTOTUNED}:
        yield from compiled_cases(device)


def write(results: report.Results, options: argparse.Namespace) -> None:
    if options.json:
        write_whole(options.json, results.to_json())
    if options.csv:
        write_whole(options.csv, results.to_csv())
    if options.plots:
        for path in report.draw(results, options.plots):
            print(f"drew {path}")
    if options.readme:
        for path in report.rewrite_documents(results):
            print(f"rewrote the tables of {path}")


def _check_outputs(parser: argparse.ArgumentParser, options: argparse.Namespace, device: str) -> None:
    """Before any work."""
    if options.readme:
        try:
            report.check_markers(device)
        except ValueError as error:
            parser.error(f"--readme: {error}")
    if options.plots and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plots: needs matplotlib; pip install matplotlib, or leave it out")


def run_bench(arguments: list[str]) -> None:
    parser = bench_parser()
    options = parser.parse_args(arguments)
    _check_outputs(parser, options, options.device)
    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error(f"--device cuda: torch {torch.__version__} sees no GPU; expected a machine that has one")
        # The rivals round as our kernels do; PyTorch's default of TF32 flips spikes. They may choose their algorithms.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    seconds = float(options.seconds or SECONDS[options.device])
    with hard_stop(seconds + GRACE):
        results = run_cases(options, seconds)
    broken = [row for row in results.rows if row.contestant == OURS and row.error and "no time left" not in row.error]
    if broken:
        sys.exit(f"python -m bench: {len(broken)} passes of this library failed; the first said {broken[0].error}")


@contextmanager
def hard_stop(seconds: float) -> Iterator[None]:
    """Ends the process after so many seconds, also in a call that hangs; the rows so far are written by then."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:  # however it ends: a timer that is left would end whatever the process does later
        faulthandler.cancel_dump_traceback_later()


def run_cases(options: argparse.Namespace, seconds: float) -> report.Results:
    """Measures and writes what was asked for."""
    deadline = Deadline.after(seconds)
    device = torch.device(options.device)
    try:
        check_parity(device)
    except RuntimeError as error:
        sys.exit(f"python -m bench: {error}")
    about = header(options.device)
    results = report.Results(about, measure_ceilings(device), [])
    print(report.headline(about))
    print(f"\n{report.about_in_words(results)}.")
    print("Medians of interleaved rounds; bytes per neuron and step.")
    wanted = {RIVAL_KEYS[key] for key in options.rivals if key != NONE}
    planned = list(cases(options))
    part, most = FOR_COMPILING
    reserve = min(part * seconds, most) if any(case.section == "compiled" for case in planned) else 0.0
    before_compiling = deadline.sooner(deadline.left - reserve)
    for case in planned:
        effort = Effort(options.rounds, EFFORT[options.device][case.section])
        until = deadline if case.section == "compiled" else before_compiling
        print(f"\n{case}\n\n{report.HEAD}", flush=True)
        for row in measure(case, wanted, device, effort, results.ceilings, until):
            results.rows.append(row)
            print(report.line(row), flush=True)
        if options.json:
            write_whole(options.json, results.to_json())
    if SPIKINGJELLY in wanted and not has_spikingjelly():
        print("\nSpikingJelly is not installed; not compared")
    print()
    write(results, options)
    return results


def run_report(arguments: list[str]) -> None:
    parser = report_parser()
    options = parser.parse_args(arguments)
    try:
        results = report.merged([report.Results.from_json(path) for path in options.files])
    except ValueError as error:
        parser.error(str(error))
    _check_outputs(parser, options, results.about["device"])
    print(f"{report.about_in_words(results)}.\n\n{report.short_table(results)}\n{report.memory_line(results)}")
    write(results, options)


def main() -> None:
    commands = {"report": run_report, "roofline": roofline.main, "memory": memory.main, "predictor": predictor.main}
    if len(sys.argv) > 1 and sys.argv[1] in commands:
        commands[sys.argv[1]](sys.argv[2:])
    else:
        run_bench(sys.argv[1:])


if __name__ == "__main__":
    main()
