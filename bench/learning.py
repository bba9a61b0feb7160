"""``python -m bench.learning``: trains every neuron with several seeds, and writes what docs/results.md shows of it.

All neurons of a seed see the same sequences in the same order, are shown the same true frames and make the same number
of steps, by the trainer of ``stc-cuda train``. They are judged on the test set with the weights after the last step;
nothing is chosen on the way. A run that the results' file holds is not trained again, one that was cut short goes on.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import stc_cuda
from stc_cuda._files import write_atomically
from stc_cuda.neurons import NEURONS
from stc_cuda.train import (
    CheckpointError,
    Config,
    ConfigError,
    NonFiniteError,
    Trainer,
    evaluate,
    load,
    load_state,
    open_split,
    start,
)
from stc_cuda.train.config import parse_change
from stc_cuda.train.processes import DeviceError, Processes

from . import report
from .environment import environment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
COMMAND = "python -m bench.learning"
METRICS = ("mse", "mae", "psnr", "ssim_openstl", "ssim")
BASELINES = ("copy last", "all zeros")
PAIRS = {"stclif": "lif", "stcplif": "plif", "stclmh": "lmh"}  # a circuit and the neuron that it extends
NAMES = {
    "lif": "LIF", "plif": "PLIF", "glif": "GLIF", "tclif": "TC-LIF", "lmh": "LM-H",
    "stclif": "STC-LIF", "stcplif": "STC-PLIF", "stclmh": "STC-LM-H",
}  # fmt: skip
#: The 1,600 steps of the preset in sixteen epochs and not four, so that a curve has sixteen points.
OWN_CHANGES: dict[str, dict[str, Any]] = {
    "digits": {"data.train_length": 400, "training.epochs": 16, "optimizer.warm_up_epochs": 0.48}
}
ALWAYS = {"training.tensorboard": False, "validation.pictures": 0}
#: Options that differ between the runs, or that say where and how and not what is trained.
_NOT_COMPARED = {
    "model": ("neuron", "backend"),
    "training": ("seed", "checkpoint_every", "tensorboard"),
    "data": ("root", "workers", "cache"),
    "validation": ("pictures",),
}


@dataclass(frozen=True)
class Run:
    """What one training run came to.

    Attributes:
        neuron, seed: which.
        about: machine, versions and commit.
        parameters: of the predictor.
        milliseconds_per_step: of the fastest epoch; whatever else the machine did meanwhile only adds to it.
        curve: per epoch ``step``, ``training_loss`` and the ``mse`` of the validation sequences.
        test: metric -> mean over the test sequences.
        mse_per_frame: of the test sequences.
    """

    neuron: str
    seed: int
    about: dict[str, Any]
    parameters: int
    milliseconds_per_step: float
    curve: list[dict[str, float]]
    test: dict[str, float]
    mse_per_frame: list[float]


@dataclass
class Results:
    """All runs of a configuration; ``baselines`` are ``{split: {baseline: mse}}``."""

    name: str
    config: dict[str, Any]
    baselines: dict[str, dict[str, float]]
    runs: list[Run]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Results:
        """Reads what :meth:`to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            found = json.loads(path.read_text())
            return cls(found["name"], found["config"], found["baselines"], [Run(**run) for run in found["runs"]])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a file that `{COMMAND}` wrote, got {error!r}") from error

    def of(self, neuron: str) -> dict[int, Run]:
        """The runs of a neuron by their seeds."""
        return {run.seed: run for run in sorted(self.runs, key=lambda run: run.seed) if run.neuron == neuron}


# --- training -------------------------------------------------------------------------------------------------------


def compared(config: Config) -> dict[str, Any]:
    """What all runs of a file have in common."""
    sections = config.model_dump(mode="json")
    return {
        section: {name: value for name, value in options.items() if name not in _NOT_COMPARED.get(section, ())}
        for section, options in sections.items()
    }


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    names = [(section, name) for section in expected for name in expected[section]]
    return ", ".join(
        f"{section}.{name} {found.get(section, {}).get(name)!r}, now {expected[section][name]!r}"
        for section, name in names
        if found.get(section, {}).get(name) != expected[section][name]
    )


def opened(path: Path, name: str, config: Config) -> Results:
    """The results so far, or none.

    Raises:
        ConfigError: the file holds runs of another configuration, or is something else.
    """
    wanted = compared(config)
    if not path.exists():
        return Results(name, wanted, {}, [])
    try:
        results = Results.from_json(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found = compared(Config.model_validate(results.config))  # with the defaults of options that came later
    if found != wanted:
        raise ConfigError(
            f"{path} holds runs of another configuration ({_differences(found, wanted)}); "
            "choose another file: --json FILE"
        )
    return results


def make_trainer(config: Config, folder: Path, processes: Processes) -> Trainer:
    """A new run, or the one that was cut short in ``folder``.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    file = folder / "last.resume.pt"
    state = load_state(file) if file.exists() else None
    if state is not None and compared(Config.model_validate(state["config"])) != compared(config):
        raise ConfigError(f"{folder} holds a run of another configuration; choose another folder: --runs FOLDER")
    data = (open_split(config, split) for split in ("train", "validation"))
    return Trainer(config, folder, processes, *data, state)


def milliseconds_per_step(history: Iterable[Mapping[str, Any]]) -> float:
    points = [(0, 0.0), *((entry["step"], entry["training_seconds"]) for entry in history)]
    return 1e3 * min((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points))


def judged(trainer: Trainer, about: Mapping[str, Any]) -> Run:
    """A trained predictor on the test set."""
    config = trainer.config
    scores = evaluate(trainer.model, open_split(config, "test"), config, trainer.processes, METRICS)["prediction"]
    curve = [
        {"step": entry["step"], "training_loss": entry["training_loss"], "mse": entry["validation"]["mse"]}
        for entry in trainer.history
    ]
    return Run(
        config.model.neuron,
        config.training.seed,
        dict(about),
        sum(parameter.numel() for parameter in trainer.model.parameters()),
        milliseconds_per_step(trainer.history),
        curve,
        {name: values["mean"] for name, values in scores.items()},
        scores["mse"]["per_frame"],
    )


def baselines_of(trainer: Trainer) -> dict[str, dict[str, float]]:
    """MSE of what knows nothing, on the sequences that the curves and the table are about."""
    found = {}
    for split in ("validation", "test"):
        scores = evaluate(
            trainer.model,
            open_split(trainer.config, split),
            trainer.config,
            trainer.processes,
            ("mse",),
            baselines=True,
        )
        found[split] = {name: scores[name]["mse"]["mean"] for name in BASELINES}
    return found


def train_all(
    results: Results, config_of: Callable[[str, int], Config], options: argparse.Namespace, processes: Processes
) -> bool:
    """Trains what the file lacks, all neurons of a seed before the next seed; whether it came to the end."""
    about = {**environment(), "stc_cuda": stc_cuda.__version__, "device": processes.device.type}
    done = {(run.neuron, run.seed) for run in results.runs}
    wanted = [(neuron, seed) for seed in options.seeds for neuron in options.neurons if (neuron, seed) not in done]
    for number, (neuron, seed) in enumerate(wanted, 1):
        if processes.is_first:
            print(f"\n{NAMES[neuron]}, seed {seed} ({number} of {len(wanted)})", flush=True)
        trainer = make_trainer(config_of(neuron, seed), options.runs / f"{neuron}_{seed}", processes)
        if not trainer.fit():
            return False
        results.baselines = results.baselines or baselines_of(trainer)
        results.runs.append(judged(trainer, about))
        if processes.is_first:
            write_atomically(options.json, results.to_json().encode())
            print(f"test MSE {results.runs[-1].test['mse']:.2f}", flush=True)
    return True


# --- what is written ------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and sample standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def paired(results: Results, neuron: str, other: str) -> dict[int, float]:
    """Test MSE of ``neuron`` less that of ``other``, for each seed that both have."""
    mine, theirs = results.of(neuron), results.of(other)
    return {seed: mine[seed].test["mse"] - theirs[seed].test["mse"] for seed in mine if seed in theirs}


def gap_in_words(results: Results, neuron: str, other: str) -> str:
    """One line of a list, or nothing where no seed has both."""
    gaps = paired(results, neuron, other)
    if not gaps:
        return ""
    smaller = sum(gap < 0 for gap in gaps.values())
    relative = statistics.fmean(gaps.values()) / statistics.fmean(
        [run.test["mse"] for seed, run in results.of(other).items() if seed in gaps]
    )
    each = ", ".join(f"{gap:+.1f}" for gap in gaps.values())
    return (
        f"- {NAMES[neuron]} less {NAMES[other]}: {spread(list(gaps.values()))} ({relative:+.1%}); by seed {each}; "
        f"smaller in {smaller} of {len(gaps)}\n"
    )


def machine_in_words(results: Results) -> str:
    """What trained, and at which commit."""
    machines = {
        f"{about.get('gpu') or about['processor']}, {about['threads']} thread{'s'[: about['threads'] != 1]}, "
        f"Python {about['python']}, torch {about['torch']}, commit {about['commit']}"
        for about in (run.about for run in results.runs)
    }
    return "; ".join(sorted(machines))


def table(results: Results) -> str:
    """The best first; the baselines last."""
    zeros = results.baselines["test"]["all zeros"]
    lines = [
        "| neuron | parameters | ms a step | MSE | of all zeros | SSIM | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for neuron in ranked(results):
        runs = list(results.of(neuron).values())
        milliseconds = min(run.milliseconds_per_step for run in runs)
        lines.append(
            f"| {NAMES[neuron]} | {runs[0].parameters:,} | {milliseconds:.0f} | {spread(mse_of(results, neuron))} | "
            f"{statistics.fmean(mse_of(results, neuron)) / zeros:.2f} | {spread([r.test['ssim'] for r in runs], 3)} | "
            f"{', '.join(str(run.seed) for run in runs)} |"
        )
    for name in reversed(BASELINES):
        mse = results.baselines["test"][name]
        lines.append(f"| *{name}* | | | {mse:.1f} | {mse / zeros:.2f} | | |")
    return "\n".join(lines) + "\n"


def ranked(results: Results) -> list[str]:
    """The neurons that have runs, the smallest mean first."""
    present = [neuron for neuron in NEURONS if results.of(neuron)]
    return sorted(present, key=lambda neuron: statistics.fmean(mse_of(results, neuron)))


def mse_of(results: Results, neuron: str) -> list[float]:
    return [run.test["mse"] for run in results.of(neuron).values()]


def frames_table(results: Results) -> str:
    """MSE frame by frame, the mean of the seeds, in the order of :func:`table`."""
    count = len(results.runs[0].mse_per_frame)
    lines = [f"| predicted frame | {' | '.join(map(str, range(1, count + 1)))} |", f"|---|{'---|' * count}"]
    for neuron in ranked(results):
        frames = zip(*(run.mse_per_frame for run in results.of(neuron).values()), strict=True)
        lines.append(f"| {NAMES[neuron]} | {' | '.join(f'{statistics.fmean(values):.0f}' for values in frames)} |")
    return "\n".join(lines) + "\n"


def page_block(results: Results) -> str:
    """What stands between the markers of the page."""
    config = results.config
    steps = {int(run.curve[-1]["step"]) for run in results.runs}
    gaps = "".join(gap_in_words(results, neuron, other) for neuron, other in PAIRS.items())
    data, training = config["data"], config["training"]
    return (
        f"{machine_in_words(results)}.\n"
        f"{data['name']}: {data['in_frames']} frames given, {data['out_frames']} predicted; "
        f"{', '.join(f'{count:,}' for count in sorted(steps))} steps of {training['batch_size']} sequences; "
        f"hidden {config['model']['hidden']}.\n"
        f"Mean ± sample standard deviation over the seeds.\n\n"
        f"{table(results)}\n"
        f"MSE, paired by seed:\n\n{gaps}\n"
        f"MSE by frame, mean of the seeds:\n\n{frames_table(results)}\n"
        f"![Validation MSE of the eight neurons while they learn](images/{image_name(results)})\n"
    )


def marker(name: str) -> str:
    """Of the page's part on a configuration."""
    return f"learning-{name}"


def image_name(results: Results) -> str:
    return f"learning_{results.name}.png"


def curves(results: Results) -> bytes:
    """A PNG of the validation MSE against the steps: the mean of the seeds, and from the smallest to the largest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=80, layout="constrained")
    axes = figure.subplots()
    plain = [neuron for neuron in NEURONS if neuron not in PAIRS]
    for neuron in NEURONS:
        runs = list(results.of(neuron).values())
        if not runs:
            continue
        colour = f"C{plain.index(PAIRS.get(neuron, neuron))}"
        steps = [point["step"] for point in runs[0].curve]
        by_step = list(zip(*([point["mse"] for point in run.curve] for run in runs), strict=True))
        axes.plot(
            steps,
            [statistics.fmean(values) for values in by_step],
            color=colour,
            linestyle="-" if neuron in PAIRS else "--",
            linewidth=1.8 if neuron in PAIRS else 1.2,
            label=NAMES[neuron],
        )
        axes.fill_between(steps, *([f(values) for values in by_step] for f in (min, max)), color=colour, alpha=0.12)
    zeros = results.baselines["validation"]["all zeros"]
    axes.axhline(zeros, color="0.5", linestyle=":", label="all zeros")
    last = [run.curve[-1]["mse"] for run in results.runs]
    axes.set(xlabel="step", ylabel="MSE on validation sequences", ylim=(0.9 * min(last), 1.15 * max(zeros, *last)))
    axes.legend(fontsize=8, ncols=3)
    axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


# --- the command ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = made.add_argument
    add("source", nargs="?", default="digits", help="a preset or a YAML file, as of stc-cuda train (default digits)")
    add("--neurons", nargs="+", choices=list(NEURONS), default=list(NEURONS), help="default: all eight")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    add("--json", type=Path, metavar="FILE", help="of the results (default bench/results/learning_PRESET.json)")
    add("--runs", type=Path, metavar="FOLDER", help="of the runs' folders (default runs/learning_PRESET)")
    add("--page", action="store_true", help="rewrite the table and the picture of docs/results.md")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX")
    add("--data-root", help="folder or file of the data set")
    add("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", dest="changes", help="as stc-cuda train")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; its exit status: 0 at the end, 130 after Ctrl-C, 1 after an error."""
    made = parser()
    options = made.parse_args(arguments)
    name = Path(options.source).stem
    options.json = options.json or ROOT / "bench" / "results" / f"learning_{name}.json"
    options.runs = options.runs or ROOT / "runs" / f"learning_{name}"
    if options.page:  # before hours of training
        try:
            report.check_markers(marker(name), [PAGE])
        except ValueError as error:
            made.error(f"--page: {error}")
    try:
        changes = {**OWN_CHANGES.get(options.source, {}), **ALWAYS, **dict(map(parse_change, options.changes))}
        if options.data_root is not None:
            changes["data.root"] = options.data_root

        def config_of(neuron: str, seed: int) -> Config:
            return load(options.source, {**changes, "model.neuron": neuron, "training.seed": seed})

        results = opened(options.json, name, config_of(options.neurons[0], options.seeds[0]))
        with start(options.device) as processes:
            if not train_all(results, config_of, options, processes):
                return 130
            if processes.is_first:
                write(results, options.page)
    except (CheckpointError, ConfigError, DeviceError, NonFiniteError) as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return 1
    return 0


def write(results: Results, page: bool) -> None:
    text = page_block(results)
    print(f"\n{text}")
    if page:
        picture = PAGE.parent / "images" / image_name(results)
        write_atomically(picture, curves(results))
        report.rewrite(PAGE, marker(results.name), text)
        print(f"rewrote {PAGE} and {picture}")


if __name__ == "__main__":
    raise SystemExit(main())
