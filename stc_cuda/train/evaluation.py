"""Metrics and pictures of what a predictor predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..data import VideoDataset, make_loader
from ..models import SpikingPredictor
from .config import Config, ConfigError
from .processes import Processes

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}

_SSIM_PIXELS = 7  # the side of its window


def parameter_dtype(precision: str) -> torch.dtype:
    """Of parameters and frames: autocast, not the model, is what is 16-bit."""
    return torch.float64 if precision == "fp64" else torch.float32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a model of this precision runs."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision in ("bf16", "fp16"))


def predict(model: SpikingPredictor, given: Tensor, steps: int, config: Config) -> Tensor:
    """The frames after ``given`` ``[N, T_in, C, H, W]``, in the model's precision, as float32 on the CPU."""
    weight = model.conv_last.weight
    with autocast(config.training.precision, weight.device):
        return model.predict(given.to(weight.device, weight.dtype), steps).float().cpu()


def next_batch(batches: Iterator[Tensor], *default: Any) -> Any:
    """``next(batches, *default)``.

    Raises:
        ConfigError: a file of the data set cannot be read or holds wrong values.
    """
    try:
        return next(batches, *default)
    except (ValueError, TypeError, OSError) as error:
        # A worker process hands on its traceback as text, with the message in the last line.
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = lines[-1] if lines and lines[0].startswith("Caught ") else str(error)
        raise ConfigError(f"data: {said.removeprefix(f'{type(error).__name__}: ')}") from error


def evaluate(
    model: SpikingPredictor,
    dataset: VideoDataset,
    config: Config,
    processes: Processes,
    names: Sequence[str],
    baselines: bool = False,
    progress: Callable[[int], None] = lambda samples: None,
) -> dict[str, dict[str, Any]]:
    """Metrics of the predicted frames, over the sequences of all processes, each of them once.

    Args:
        model: the predictor.
        dataset: the sequences.
        config: of the run.
        processes: this process among all.
        names: metrics; those of frames too small for them are left out.
        baselines: also of the last given frame repeated, and of all zeros.
        progress: is told how many sequences were done since the last time.

    Returns:
        ``{"prediction": {metric: {"mean": float, "per_frame": [float, ...]}}}``, with ``"copy last"`` and
        ``"all zeros"`` if there are baselines.
    """
    contestants = ["prediction", *(["copy last", "all zeros"] if baselines else [])]
    if min(dataset.frame_shape[1:]) < _SSIM_PIXELS:
        names = [name for name in names if not name.startswith("ssim")]
    scores = {contestant: metrics.VideoMetrics(config.data.out_frames, names) for contestant in contestants}
    loader = make_loader(
        dataset,
        config.validation.batch_size,
        seed=0,
        workers=config.data.workers,
        shuffle=False,
        rank=processes.rank,
        world_size=processes.world_size,
        drop_last=False,
    )
    model.eval()
    batches = iter(loader)
    while (frames := next_batch(batches, None)) is not None:
        given, true = frames.split((config.data.in_frames, config.data.out_frames), dim=1)
        scores["prediction"].update(predict(model, given, config.data.out_frames, config), true)
        if baselines:
            scores["copy last"].update(given[:, -1:].expand_as(true), true)
            scores["all zeros"].update(torch.zeros_like(true), true)
        progress(len(frames))
    result = {}
    for contestant, own in scores.items():
        own.state = sum(processes.gather(own.state), torch.zeros_like(own.state))
        frames = own.compute(per_frame=True)
        result[contestant] = {
            name: {"mean": mean, "per_frame": frames[name].tolist()} for name, mean in own.compute().items()
        }
    return result


def draw(
    model: SpikingPredictor, dataset: VideoDataset, config: Config, count: int | None = None
) -> tuple[bytes, bytes]:
    """A PNG strip of the first sequence and a GIF of the first few, as encoded bytes."""
    count = min(len(dataset), config.validation.pictures if count is None else count)
    frames = torch.stack([dataset[index] for index in range(count)])
    given, true = frames.split((config.data.in_frames, config.data.out_frames), dim=1)
    model.eval()
    return pictures(given, true, predict(model, given, true.shape[1], config))


def pictures(given: Tensor, true: Tensor | None, predicted: Tensor, seconds: float = 0.2) -> tuple[bytes, bytes]:
    """A PNG strip of the first sequence and a GIF of all ``[N, T, C, H, W]``, as encoded bytes."""
    from .. import plotting

    shown = [plotting.as_pictures(video) for video in (given, predicted)]
    truth = None if true is None else plotting.as_pictures(true)
    scale = max(1, min(8, round(192 / given.shape[-2])))
    strip = plotting.prediction_strip(shown[0][0], None if truth is None else truth[0], shown[1][0])
    return strip, plotting.prediction_gif(shown[0], truth, shown[1], scale, seconds)
