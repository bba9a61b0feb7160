"""Pictures of predicted videos and of a training run, as encoded bytes. Needs matplotlib and imageio."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import imageio.v3 as imageio
import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

_DPI = 110


def as_pictures(video: Tensor) -> Tensor:
    """Frames ``[..., C, H, W]`` as something to look at: one channel ``[..., H, W]``, three ``[..., 3, H, W]`` as red,
    green and blue, any other number side by side ``[..., H, C * W]``."""
    channels = video.shape[-3]
    return video if channels == 3 else video.movedim(-3, -2).flatten(-2)


def prediction_strip(given: Tensor, true: Tensor | None, predicted: Tensor) -> bytes:
    """A PNG with the rows input, truth, prediction and absolute error of one sequence.

    Args:
        given: input frames ``[T_in, H, W]``, or ``[T_in, 3, H, W]`` in colour, pixels in [0, 1].
        true: the frames to predict ``[T_out, ...]``, or ``None`` where nobody knows them: no truth and no error then.
        predicted: the prediction ``[T_out, ...]``; shown clipped to [0, 1].
    """
    shown = predicted.clamp(0, 1)
    rows = [("input", given, "gray")]
    if true is not None:
        rows.append(("truth", true, "gray"))
    rows.append(("prediction", shown, "gray"))
    if true is not None:
        rows.append(("|error|", _grey_error(shown, true), "inferno"))
    columns = max(len(given), len(predicted))
    figure = Figure(figsize=(columns, 0.5 + len(rows)), dpi=_DPI, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    first_predicted = len(given) + 1
    for row, (name, frames, colours) in enumerate(rows):
        for column, frame in enumerate(_to_numpy(frames)):
            ax = axes[row, column]
            ax.set_axis_on()
            ax.set(xticks=[], yticks=[])
            ax.imshow(frame, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            if row < 2:
                ax.set_title(f"t = {column + (1 if row == 0 else first_predicted)}", fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=10)
    return _png(figure)


def prediction_gif(
    given: Tensor, true: Tensor | None, predicted: Tensor, scale: int = 3, seconds: float = 0.2
) -> bytes:
    """An endless GIF with a row per sequence: truth, what the network has or predicts, absolute error.

    A bar at the top of a frame is grey while the frames are given and orange while they are predicted.

    Args:
        given: input frames ``[N, T_in, H, W]``, or ``[N, T_in, 3, H, W]`` in colour, pixels in [0, 1].
        true: the frames to predict ``[N, T_out, ...]``, or ``None`` where nobody knows them: only what the network has
            or predicts is shown then.
        predicted: the prediction ``[N, T_out, ...]``; shown clipped to [0, 1].
        scale: side of a pixel on the screen.
        seconds: per frame.
    """
    shown = predicted.clamp(0, 1)
    inferno = matplotlib.colormaps["inferno"]
    frames: list[npt.NDArray[np.uint8]] = []
    for t in range(given.shape[1] + predicted.shape[1]):
        ahead = t - given.shape[1]
        middle = given[:, t] if ahead < 0 else shown[:, ahead]
        panels = [_to_rgb(middle)]
        if true is not None:
            left = given[:, t] if ahead < 0 else true[:, ahead]
            panels = [_to_rgb(left), *panels, inferno(_to_numpy(_grey_error(left, middle)))[..., :3]]
        picture = np.concatenate(list(np.concatenate([_enlarge(panel, scale) for panel in panels], axis=2)), axis=0)
        bar = np.empty((2 * scale, picture.shape[1], 3))
        bar[:] = (0.6, 0.6, 0.6) if ahead < 0 else (1.0, 0.55, 0.0)
        frames.append((np.concatenate((bar, picture)) * 255).round().astype(np.uint8))
    return imageio.imwrite("<bytes>", np.stack(frames), extension=".gif", duration=1000 * seconds, loop=0)


def loss_curve(losses: Sequence[float], levels: Mapping[str, float], smooth: int = 25) -> bytes:
    """A PNG of the training loss per iteration, its running mean, and named levels to compare with.

    Args:
        losses: of each iteration.
        levels: name -> loss of what is drawn as a horizontal line.
        smooth: iterations in the running mean.
    """
    figure = Figure(figsize=(7, 4), dpi=_DPI, layout="constrained")
    ax = figure.subplots()
    iterations = np.arange(1, len(losses) + 1)
    ax.plot(iterations, losses, color="tab:blue", alpha=0.25, linewidth=0.7)
    width = max(1, min(smooth, len(losses)))
    mean = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    ax.plot(iterations[width - 1 :], mean, color="tab:blue", label=f"training loss (mean of {width})")
    for index, (name, level) in enumerate(levels.items()):
        ax.axhline(level, color=f"C{index + 1}", linestyle="--", linewidth=1, label=f"{name}: {level:.0f}")
    ax.set(xlabel="iteration", ylabel="squared error per predicted frame", xlim=(1, max(2, len(losses))))
    ax.set_ylim(0, 1.5 * max(levels.values(), default=max(losses)))
    ax.legend(fontsize=8)
    return _png(figure)


def _is_colour(frames: Tensor) -> bool:
    return frames.dim() == 4


def _to_numpy(frames: Tensor) -> npt.NDArray[np.float64]:
    """``[n, H, W]``, or ``[n, H, W, 3]`` in colour."""
    return (frames.movedim(1, -1) if _is_colour(frames) else frames).double().cpu().numpy()


def _to_rgb(frames: Tensor) -> npt.NDArray[np.float64]:
    picture = _to_numpy(frames)
    return picture if _is_colour(frames) else np.repeat(picture[..., None], 3, axis=-1)


def _grey_error(a: Tensor, b: Tensor) -> Tensor:
    error = (a - b).abs()
    return error.mean(1) if _is_colour(error) else error


def _enlarge(frames: npt.NDArray[np.float64], scale: int) -> npt.NDArray[np.float64]:
    """Frames ``[N, H, W, 3]`` with square pixels of ``scale`` and a thin frame around each."""
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.pad(large, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=0.35)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
