"""What the commands ``train``, ``eval``, ``predict`` and ``compare`` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._files import to_json, write_atomically
from ..metrics import METRICS
from ..models import SpikingPredictor
from . import checkpoints, comparison
from . import config as configuration
from .checkpoints import CheckpointError
from .config import Config, ConfigError, build_model, open_split
from .evaluation import evaluate, parameter_dtype, pictures, predict
from .processes import choose_device, start
from .trainer import Trainer

_DIGITS = {"mse": 2, "mae": 2, "rmse": 2, "psnr": 2, "ssim_openstl": 4, "ssim": 4}


def train(
    source: str | None,
    out: Path | None,
    changes: Mapping[str, Any],
    resume: Path | None = None,
    device: str = "auto",
) -> int:
    """Trains a preset or a YAML file into the folder ``out``, or goes on with the run in the folder ``resume``.

    Returns:
        The exit status: 0 at the end, 130 after Ctrl-C.

    Raises:
        ConfigError, CheckpointError, NonFiniteError: the message says what to do.
    """
    state: dict[str, Any] | None = None
    if resume is not None:
        path = resume / checkpoints.STATE.format("last") if resume.is_dir() else resume
        if not path.is_file():
            raise CheckpointError(f"--resume {resume}: there is no {path}; expected the folder of a run")
        state = checkpoints.load_state(path)
        folder = path.parent
        config = configuration.change(configuration.parse(state["config"]), changes)
    else:
        if source is None:
            raise ConfigError(f"train: expected a preset ({', '.join(configuration.preset_names())}) or a YAML file")
        config = configuration.load(source, changes)
        folder = Path("runs") / Path(source).stem if out is None else out
    with start(device) as processes:
        configuration.check_backend(config, processes.device)
        held = state is None and (folder / checkpoints.STATE.format("last")).exists()
        if processes.broadcast(held):
            raise ConfigError(
                f"{folder} holds a run already; go on with stc-cuda train --resume {folder}, or choose another --out"
            )
        trainer = Trainer(
            config, folder, processes, open_split(config, "train"), open_split(config, "validation"), state
        )
        if processes.is_first:
            _introduce(trainer)
        finished = trainer.fit()
        if processes.is_first:
            _say_goodbye(trainer, finished)
    return 0 if finished else 130


def _introduce(trainer: Trainer) -> None:
    config, p = trainer.config, trainer.processes
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(config.to_yaml())
    if config.validation.on_test_set:
        print("Validation on the test set: the best checkpoint is chosen on the data that it is judged on.")
    else:
        print(f"Validation on {len(trainer.validation_data)} sequences held out of the training data.")
    print(
        f"{parameters:,} parameters, {config.training.precision}, on {p.world_size} x {p.device.type}; "
        f"{len(trainer.train_data)} training sequences, {trainer.steps_per_epoch} steps of "
        f"{config.training.batch_size} an epoch; run folder {trainer.folder}"
    )
    if trainer.step:
        print(f"Going on from step {trainer.step} of {trainer.total_steps}.")


def _say_goodbye(trainer: Trainer, finished: bool) -> None:
    if not finished:
        print(
            f"\nStopped after step {trainer.step} of {trainer.total_steps}; everything is saved. To go on:\n"
            f"  stc-cuda train --resume {trainer.folder}"
        )
        return
    if not trainer.history:
        print(f"\nDone, at step {trainer.step}, without a validation.")
        return
    best = min(trainer.history, key=lambda entry: entry["validation"]["mse"])
    print(
        f"\nDone. Best epoch {best['epoch']}: MSE {best['validation']['mse']:.4g} on the {best['validated_on']}.\n"
        f"  stc-cuda eval {trainer.folder}\n"
        f"  stc-cuda predict {trainer.folder} VIDEO --out prediction.gif"
    )


def load_predictor(
    path: Path, device: torch.device, preset: str | None = None, changes: Mapping[str, Any] | None = None
) -> tuple[SpikingPredictor, Config]:
    """A trained model with its configuration.

    Args:
        path: a run folder (its best checkpoint, or else its last), a ``.safetensors`` file of a run, or, with
            ``preset``, a ``.pth`` file of the STC authors' training.
        device: where it will compute.
        preset: name or YAML file of the configuration of the authors' model.
        changes: dotted names of options -> new values.

    Raises:
        FileNotFoundError, CheckpointError, ConfigError: the message says what was expected.
    """
    changes = changes or {}
    if path.is_dir():
        found = [path / checkpoints.WEIGHTS.format(name) for name in ("best", "last")]
        path = next((file for file in found if file.is_file()), found[-1])
    if preset is not None:
        config = configuration.load(preset, changes)
        model = build_model(config, configuration.frame_shape(config))
        try:
            model.load_official_checkpoint(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    elif path.suffix == ".safetensors":
        weights, config, shape = checkpoints.load_weights(path)
        config = configuration.change(config, changes)
        model = build_model(config, shape)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: its weights do not fit its configuration: {error}") from error
    elif not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder; expected that of a run")
    else:
        raise CheckpointError(
            f"{path}: expected a run folder or a .safetensors file of one; for a .pth file of the STC authors' "
            "training, give its configuration as well, such as --preset moving_mnist"
        )
    configuration.check_backend(config, device)
    return model.to(device, parameter_dtype(config.training.precision)).eval(), config


def evaluate_checkpoint(
    path: Path,
    split: str,
    changes: Mapping[str, Any],
    preset: str | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> int:
    """Prints the metrics of a checkpoint, averaged and per frame, beside two baselines, and writes them as JSON."""
    from tqdm import tqdm

    with start(device) as processes:
        model, config = load_predictor(path, processes.device, preset, changes)
        dataset = open_split(config, split)
        if dataset.frame_shape != model.in_shape[1:]:
            raise ConfigError(
                f"data: got frames of shape {list(dataset.frame_shape)}, expected {list(model.in_shape[1:])}, those of "
                "the model; set data.frame_size"
            )
        with tqdm(total=len(dataset), unit="sequence", disable=not processes.is_first) as bar:

            def progress(samples: int) -> None:
                bar.update(min(samples * processes.world_size, len(dataset) - bar.n))

            scores = evaluate(model, dataset, config, processes, METRICS, baselines=True, progress=progress)
        if not processes.is_first:
            return 0
        print(f"\n{len(dataset)} sequences, split {split!r} of {config.data.name}:\n{metrics_table(scores)}")
        if out is None:
            out = (path if path.is_dir() else path.parent) / f"eval_{split}.json"
        report = {
            "checkpoint": str(path),
            "split": split,
            "sequences": len(dataset),
            "config": config.model_dump(mode="json"),
            "metrics": scores,
        }
        write_atomically(out, to_json(report))
        print(f"\nWritten to {out}")
    return 0


def metrics_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Means of all contestants, then the prediction frame by frame, as text."""
    names = list(scores["prediction"])

    def line(head: str, values: Sequence[float]) -> str:
        return f"{head:<12}" + "".join(
            f"{value:>14.{_DIGITS.get(name, 4)}f}" for name, value in zip(names, values, strict=True)
        )

    lines = [" " * 12 + "".join(f"{name:>14}" for name in names)]
    lines += [line(who, [own[name]["mean"] for name in names]) for who, own in scores.items()]
    lines.append("prediction, frame by frame:")
    frames = scores["prediction"]
    for t in range(len(frames[names[0]]["per_frame"])):
        lines.append(line(f"  t + {t + 1}", [frames[name]["per_frame"][t] for name in names]))
    return "\n".join(lines)


def predict_video(
    path: Path,
    video: Path,
    out: Path,
    changes: Mapping[str, Any],
    first: int = 0,
    steps: int | None = None,
    frame_step: int = 1,
    preset: str | None = None,
    device: str = "auto",
) -> int:
    """Predicts how a video goes on, and writes a ``.gif`` or a ``.png`` strip.

    The frames are resized to the model's. Where the video has the frames to predict, too, they and the error are shown
    beside the prediction.
    """
    if out.suffix.lower() not in (".gif", ".png"):
        raise ConfigError(f"--out: got {out}, expected a name that ends in .gif or .png")
    model, config = load_predictor(path, choose_device(device), preset, changes)
    given_frames, channels, height, width = model.in_shape
    steps = config.data.out_frames if steps is None else steps
    frames = read_frames(video, (channels, height, width))[first::frame_step]
    if len(frames) < given_frames:
        raise ConfigError(
            f"{video}: got {len(frames)} frames from frame {first} on, every {frame_step}, expected at least "
            f"{given_frames}, the model's given frames"
        )
    given = frames[None, :given_frames]
    future = frames[None, given_frames : given_frames + steps]
    true = future if future.shape[1] == steps else None
    strip, gif = pictures(given, true, predict(model, given, steps, config))
    write_atomically(out, gif if out.suffix.lower() == ".gif" else strip)
    seen = "beside what the video shows" if true is not None else "which is more than the video shows"
    print(f"{video}: {given_frames} frames given from frame {first} on, {steps} predicted, {seen}\nWritten to {out}")
    return 0


def compare_models(
    source: str,
    repository: Path,
    neurons: Sequence[str],
    changes: Mapping[str, Any],
    samples: int = 1,
    checkpoint: Path | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> int:
    """Prints the authors' models beside ours, neuron by neuron; arguments as :func:`comparison.compare`.

    The precision is fp64 where ``changes`` do not say another.

    Returns:
        The exit status: 0 if all agree, 3 if one does not.
    """
    place = choose_device(device)
    results = []
    for neuron in neurons:
        config = configuration.load(source, {"training.precision": "fp64", **changes, "model.neuron": neuron})
        try:
            result = comparison.compare(config, repository, place, samples, checkpoint)
        except ValueError as error:
            if checkpoint is None or isinstance(error, (ConfigError, comparison.RepositoryError)):
                raise
            raise CheckpointError(str(error)) from error
        results.append(result)
        print(comparison.in_words(result) + "\n", flush=True)
        if out is not None:
            write_atomically(out, to_json([done.as_dict() for done in results]))
    differing = [result.neuron for result in results if result.complaints]
    print(
        f"{len(results) - len(differing)} of {len(results)} agree"
        + (f"; not {', '.join(differing)}" if differing else "")
    )
    return 3 if differing else 0


def read_frames(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A video file or a ``.npy`` array as frames float32 ``[T, C, H, W]`` in [0, 1] of this ``(C, H, W)``.

    An array is ``[T, H, W]`` for one channel or ``[T, C, H, W]``, uint8 (0 to 255) or floating (0 to 1).

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it cannot be read, or its channels do not fit.
    """
    from ..data._base import UNREADABLE, as_float, resize
    from ..data.videos import decode

    channels, height, width = shape
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected a video or a .npy array")
    try:
        if path.suffix.lower() != ".npy":
            if channels not in (1, 3):
                raise ConfigError(f"{path}: videos have 1 or 3 channels, the model {channels}; give a .npy array")
            return as_float(decode(path, (height, width), 1, grayscale=channels == 1))
        array = np.load(path, allow_pickle=False)
    except ConfigError:
        raise
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    got = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 3:
        array = array[:, None]
    floating = np.issubdtype(array.dtype, np.floating)
    if array.ndim != 4 or array.shape[1] != channels or not (floating or array.dtype == np.uint8) or 0 in array.shape:
        raise ConfigError(
            f"{path}: got {got}, expected uint8 or floating frames [T, {channels}, H, W]"
            + (" or [T, H, W]" if channels == 1 else "")
        )
    if floating and not (array.min() >= 0 and array.max() <= 1):
        raise ConfigError(
            f"{path}: got values from {array.min():.4g} to {array.max():.4g}, expected 0 to 1, all finite"
        )
    return resize(as_float(array), (height, width))
