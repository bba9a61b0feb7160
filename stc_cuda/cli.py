"""The command ``stc-cuda``: train, eval, predict, compare, bench, info."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from ._build import build_info
from ._plan import kernel_plan
from .neurons import NEURONS

# Options of their own for what is changed most; everything else goes through --set.
_SHORTCUTS: dict[str, tuple[str, type, str]] = {
    "--data-root": ("data.root", str, "folder or file of the data set"),
    "--epochs": ("training.epochs", int, "passes over the training data"),
    "--batch-size": ("training.batch_size", int, "samples of a step, over all processes"),
    "--lr": ("optimizer.lr", float, "largest learning rate"),
    "--precision": ("training.precision", str, "fp32, fp64, bf16 or fp16"),
    "--seed": ("training.seed", int, "of weights, order and sampling"),
    "--workers": ("data.workers", int, "processes that load data"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (that of the process if ``None``); its exit status."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.run is _bench:
        arguments.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nStopped at once.", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if not _is_explained(error):
            raise
        # Of every process: only the one that lacks a file or a GPU knows it. What all found together is said once.
        if getattr(error, "found_by_all", False) and int(os.environ.get("RANK", "0")) != 0:
            return 1
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        who = f" (process {os.environ.get('RANK', '0')} of {processes})" if processes > 1 else ""
        print(f"stc-cuda: error{who}: {error}", file=sys.stderr)
        return 1


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """:func:`main` as a program: ends the process with its exit status."""
    status = main(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # DDP keeps gloo's threads alive after the process group is destroyed. Now and then the interpreter's end meets
        # them at work, which aborts the process and makes torchrun call a finished run a failure.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _is_explained(error: Exception) -> bool:
    """Whether the message is meant for the user; anything else is a defect and keeps its traceback."""
    if isinstance(error, (OSError, ImportError)):
        return True
    try:
        from .train import CheckpointError, ConfigError, NonFiniteError
    except ImportError:
        return False
    from .train.comparison import RepositoryError
    from .train.processes import DeviceError

    return isinstance(error, (CheckpointError, ConfigError, NonFiniteError, DeviceError, RepositoryError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stc-cuda",
        description="Spiking video predictors: training, evaluation, predictions. Under torchrun -m stc_cuda, train "
        "and eval use all its processes.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="train a predictor, or go on with a run")
    command.set_defaults(run=_train)
    add = command.add_argument
    add("source", nargs="?", metavar="PRESET", help="digits, moving_mnist, taxibj, kth, or a YAML file")
    add("--out", type=Path, metavar="FOLDER", help="of the run (default: runs/PRESET)")
    add("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder, or from this .resume.pt file")
    add(
        "--validate-on-test-set",
        action="store_true",
        help="as the STC authors do: the best checkpoint is then chosen on the data that it is judged on",
    )
    _add_options(command)

    command = commands.add_parser("eval", help="metrics of a checkpoint")
    command.set_defaults(run=_eval)
    _add_checkpoint(command)
    add = command.add_argument
    add("--split", choices=("test", "validation", "train"), default="test")
    add("--out", type=Path, metavar="FILE", help="JSON report (default: eval_SPLIT.json beside the checkpoint)")
    _add_options(command)

    command = commands.add_parser("predict", help="predict how a video goes on")
    command.set_defaults(run=_predict)
    _add_checkpoint(command)
    add = command.add_argument
    add("video", type=Path, metavar="VIDEO", help="a video file, or a .npy array [T, C, H, W] or [T, H, W]")
    add("--out", type=Path, default=Path("prediction.gif"), metavar="FILE", help=".gif, or .png for a strip of frames")
    add("--start", type=_at_least(0), default=0, metavar="FRAME", help="first frame given, from 0")
    add("--steps", type=_at_least(1), metavar="FRAMES", help="frames to predict (default: as in training)")
    add("--frame-step", type=_at_least(1), default=1, metavar="N", help="use every N-th frame")
    _add_options(command)

    command = commands.add_parser("compare", help="the authors' models beside ours, from their repository on disk")
    command.set_defaults(run=_compare)
    add = command.add_argument
    add("source", metavar="PRESET", help="whose sizes both get: moving_mnist, taxibj, kth, or a YAML file")
    add("--repository", type=Path, required=True, metavar="FOLDER", help="a clone of the authors' code")
    add("--neuron", nargs="+", choices=list(NEURONS), default=list(NEURONS), help="default: all eight, one by one")
    add("--samples", type=_at_least(1), default=1, metavar="N", help="sequences (default 1)")
    add("--checkpoint", type=Path, metavar="FILE", help="weights of an authors' .pth (default: random ones)")
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    _add_options(command, ("--precision", "--seed"))

    command = commands.add_parser("bench", help="time the kernels (needs the checkout)", add_help=False)
    command.set_defaults(run=_bench)

    command = commands.add_parser("info", help="what was built, what there is, which kernels run")
    command.set_defaults(run=_info)
    return parser


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run folder, its .safetensors file, or an authors' .pth"
    )
    command.add_argument("--preset", help="configuration of an authors' .pth file: a preset or a YAML file")


def _add_options(command: argparse.ArgumentParser, shortcuts: Iterable[str] = tuple(_SHORTCUTS)) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX (default: auto)")
    for option in shortcuts:
        name, kind, text = _SHORTCUTS[option]
        command.add_argument(option, type=kind, metavar=kind.__name__.upper(), help=f"{text} ({name})")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.OPTION=VALUE",
        dest="changes",
        help="change any option, such as optimizer.lr=1e-3; may be repeated",
    )


def _at_least(least: int) -> Any:
    def convert(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"got {value}, expected at least {least}")
        return value

    convert.__name__ = "int"  # argparse names the type in its error by this
    return convert


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    from .train.config import parse_change

    changes = dict(parse_change(text) for text in arguments.changes)
    for option, (name, _, _) in _SHORTCUTS.items():
        value = getattr(arguments, option.removeprefix("--").replace("-", "_"), None)
        if value is not None:
            changes[name] = value
    if getattr(arguments, "validate_on_test_set", False):
        changes["validation.on_test_set"] = True
    return changes


def _train(arguments: argparse.Namespace) -> int:
    from .train import ConfigError, commands

    if arguments.resume is not None and (arguments.source is not None or arguments.out is not None):
        raise ConfigError("--resume: goes on with a run in its own folder, expected neither PRESET nor --out beside it")
    return commands.train(arguments.source, arguments.out, _changes(arguments), arguments.resume, arguments.device)


def _eval(arguments: argparse.Namespace) -> int:
    from .train import commands

    a = arguments
    return commands.evaluate_checkpoint(a.checkpoint, a.split, _changes(a), a.preset, a.device, a.out)


def _predict(arguments: argparse.Namespace) -> int:
    from .train import commands

    a = arguments
    return commands.predict_video(
        a.checkpoint, a.video, a.out, _changes(a), a.start, a.steps, a.frame_step, a.preset, a.device
    )


def _compare(arguments: argparse.Namespace) -> int:
    from .train import commands

    a = arguments
    return commands.compare_models(
        a.source, a.repository, a.neuron, _changes(a), a.samples, a.checkpoint, a.device, a.json
    )


def _bench(arguments: argparse.Namespace) -> int:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "bench" / "__main__.py").is_file():
        print(
            "stc-cuda: error: the benchmarks are in the checkout and not in the installed package: clone the "
            "repository, type pip install --no-build-isolation -e . in it, and this command again",
            file=sys.stderr,
        )
        return 1
    return subprocess.run([sys.executable, "-m", "bench", *arguments.rest], cwd=checkout).returncode


def _info(arguments: argparse.Namespace) -> int:
    print("stc_cuda")
    for key, value in build_info().items():
        print(f"  {key:<20} {value}")
    print(f"torch\n  {'version':<20} {torch.__version__}\n  {'threads':<20} {torch.get_num_threads()}")
    print("devices\n  cpu")
    gpus = range(torch.cuda.device_count())
    for index in gpus:
        found = torch.cuda.get_device_properties(index)
        print(f"  cuda:{index:<15} {found.name}, sm_{found.major}{found.minor}, {found.total_memory / 2**30:.0f} GiB")
    print("kernels of the paper's layers (256 channels, 16 groups, K = 5, batch 16, 32 x 32)")
    for index in (None, *gpus):
        device = "cpu" if index is None else "cuda"
        capability = (9, 0) if index is None else torch.cuda.get_device_capability(index)
        for backward in (False, True):
            plan = kernel_plan((10, 16, 256, 32, 32), 5, 16, backward=backward, device=device, capability=capability)
            place = device if index is None else f"cuda:{index}"
            print(f"  {place:<8} {'backward' if backward else 'forward':<9} {plan.kernel}: {plan.reason}")
    return 0
