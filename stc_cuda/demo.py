"""Trains a small STC-LIF video predictor on Moving MNIST and shows what it predicts: ``python -m stc_cuda.demo``.

Ten frames in, ten out, on the CPU, in minutes. Writes pictures, weights and figures, and prints what the compiled
kernels cost beside plain PyTorch.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from . import metrics, reference
from ._build import build_info
from ._files import to_json, write_atomically
from .data import MovingMNIST
from .functional import stc_lif
from .models import SpikingPredictor, frames_to_patches
from .neurons import STCLIF
from .profiling import interleave, median_ratio, saved_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

GIVEN, AHEAD = 10, 10
_TEST_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How the demo's predictor is made and trained."""

    iterations: int = 1600
    batch: int = 4
    hidden: tuple[int, ...] = (64, 64)
    patch_size: int = 4
    kernel_size: int = 3
    groups: int = 4
    gradient_detach: bool = False
    learning_rate: float = 5e-3
    warm_up: float = 0.03
    teacher_until: float = 0.5

    def learning_rate_at(self, progress: float) -> float:
        """Linear warm-up, then a cosine to a hundredth; ``progress`` runs from 0 to 1."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * min(1.0, progress / self.warm_up + 0.02) * (0.01 + 0.99 * cosine)

    def teacher_probability_at(self, progress: float) -> float:
        """Scheduled sampling: the probability that a true frame is shown, falling linearly to 0."""
        return max(0.0, 1 - progress / self.teacher_until)


@dataclass(frozen=True)
class Training:
    """What a training run did."""

    losses: list[float]
    seconds: float
    cut_short: bool


def build_predictor(recipe: Recipe, backend: str = "auto") -> SpikingPredictor:
    """The recipe's untrained predictor of 64 x 64 frames."""
    return SpikingPredictor(
        in_shape=(GIVEN, 1, 64, 64),
        out_frames=AHEAD,
        hidden=recipe.hidden,
        patch_size=recipe.patch_size,
        kernel_size=recipe.kernel_size,
        groups=recipe.groups,
        gradient_detach=recipe.gradient_detach,
        backend=backend,
    )


def train(model: SpikingPredictor, recipe: Recipe, seed: int, limit: float, bar: tqdm[Any]) -> Training:
    """Trains for ``recipe.iterations``, or for ``limit`` seconds if that is less.

    The schedules follow the larger of the two fractions used up, so that a run cut short by a slow machine still ends
    with a small learning rate and without true frames.
    """
    data = MovingMNIST(recipe.iterations * recipe.batch, GIVEN + AHEAD, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    losses: list[float] = []
    start = time.perf_counter()
    for iteration in range(recipe.iterations):
        used = (time.perf_counter() - start) / limit
        if used >= 1:
            break
        progress = max(iteration / recipe.iterations, used)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate_at(progress)
        frames = torch.stack([data[iteration * recipe.batch + sample] for sample in range(recipe.batch)])
        mask = torch.rand(recipe.batch, AHEAD - 1, generator=generator) < recipe.teacher_probability_at(progress)
        errors = (model(frames, mask) - frames[:, 1:]).square().sum((2, 3, 4))
        optimizer.zero_grad()
        errors.mean().backward()
        optimizer.step()
        losses.append(float(errors.detach()[:, GIVEN - 1 :].mean()))
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.1f}", refresh=False)
        bar.update()
    return Training(losses, time.perf_counter() - start, cut_short=len(losses) < recipe.iterations)


def predict(model: SpikingPredictor, given: Tensor, batch: int = 32) -> Tensor:
    """The frames after ``given``, a batch at a time."""
    return torch.cat([model.predict(part, AHEAD) for part in given.split(batch)])


def evaluate(predicted: Tensor, given: Tensor, true: Tensor) -> dict[str, dict[str, Any]]:
    """Metrics of the prediction and of two predictors that know nothing: all zeros, and the last frame again."""
    contestants = {
        "prediction": predicted,
        "all zeros": torch.zeros_like(true),
        "copy last": given[:, -1:].expand_as(true),
    }
    names = ("mse", "mae", "psnr", "ssim_openstl", "ssim")
    table: dict[str, dict[str, Any]] = {}
    for contestant, frames in contestants.items():
        table[contestant] = {**metrics.evaluate(frames, true, names)}
        table[contestant]["mse_per_frame"] = metrics.mse(frames, true, per_frame=True).tolist()
    return table


@dataclass(frozen=True)
class Layer:
    """A layer's inputs, to time the recurrence on."""

    name: str
    current: Tensor
    weights: tuple[Tensor, Tensor]
    norms: tuple[tuple[Tensor, Tensor], ...]
    groups: int
    gradient_detach: bool

    def run(self, function: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        """Spikes of ``function`` (:func:`stc_cuda.stc_lif` or the reference's)."""
        names = ("current_norm", "temporal_norm", "spatial_norm")
        return function(
            self.current,
            *self.weights,
            groups=self.groups,
            gradient_detach=self.gradient_detach,
            **dict(zip(names, self.norms, strict=True)),
        )[0]


def demo_layer(model: SpikingPredictor, given: Tensor) -> Layer:
    """The last layer of ``model`` with the current that it gets while it sees ``given``."""
    x = frames_to_patches(given, model.patch_size).transpose(0, 1)
    *below, cell = cast(list[STCLIF], list(model.cell_list))
    with torch.no_grad():
        for other in below:
            x = other(x)
        current = cell.conv_x[0](x.flatten(0, 1)).unflatten(0, x.shape[:2])
    model.reset()
    find = cell.get_parameter
    norms = tuple((find(f"{part}.1.weight"), find(f"{part}.1.bias")) for part in ("conv_x", "conv_h", "conv_v"))
    weights = (find("conv_h.0.weight"), find("conv_v.0.weight"))
    config = cell.config
    return Layer("demo layer", current.requires_grad_(), weights, norms, config.groups, config.gradient_detach)


def paper_layer() -> Layer:
    """A layer of the paper's size, untrained, with random current: four steps of two samples."""
    generator = torch.Generator().manual_seed(0)
    channels, groups, kernel = 256, 16, 5
    current = torch.randn(4, 2, channels, 32, 32, generator=generator).requires_grad_()
    shape = (channels, channels // groups, kernel, kernel)
    bound = math.prod(shape[1:]) ** -0.5
    weights = [((torch.rand(shape, generator=generator) * 2 - 1) * bound).requires_grad_() for _ in range(2)]
    norms = tuple(
        (torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)) for _ in range(3)
    )
    return Layer("paper layer", current, (weights[0], weights[1]), norms, groups, gradient_detach=False)


def compare(layer: Layer, rounds: int = 9) -> dict[str, Any]:
    """Milliseconds per sample and step, and bytes saved per neuron and step, of the kernels and of the reference."""
    parameters = [*layer.weights, *(tensor for norm in layer.norms for tensor in norm)]
    with torch.no_grad():
        firing_rate = float(layer.run(stc_lif).mean())

    def forward(function: Callable[..., tuple[Tensor, ...]]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                layer.run(function)

        return run

    def training(function: Callable[..., tuple[Tensor, ...]]) -> Callable[[], None]:
        upstream = torch.ones_like(layer.current)

        def run() -> None:
            torch.autograd.grad(layer.run(function), [layer.current, *parameters], upstream)

        return run

    steps, samples, channels, height, width = layer.current.shape
    result: dict[str, Any] = {
        "shape": list(layer.current.shape),
        "kernel_size": layer.weights[0].shape[-1],
        "groups": layer.groups,
        "gradient_detach": layer.gradient_detach,
        "firing_rate": firing_rate,
        "milliseconds_per_sample_and_step": {},
    }
    functions = {"compiled": stc_lif, "reference": reference.stc_lif}
    for phase, contestant in (("forward", forward), ("forward + backward", training)):
        timings = interleave({name: contestant(function) for name, function in functions.items()}, rounds)
        result["milliseconds_per_sample_and_step"][phase] = {
            **{name: 1e3 * timing.median / (steps * samples) for name, timing in timings.items()},
            "ratio": median_ratio(timings["reference"], timings["compiled"]),
        }
    neurons = steps * samples * channels * height * width
    result["bytes_saved_per_neuron_and_step"] = {
        name: saved_bytes(lambda function=function: layer.run(function), parameters) / neurons  # type: ignore[misc]
        for name, function in functions.items()
    }
    return result


def metrics_table(table: dict[str, dict[str, Any]]) -> str:
    """The held-out metrics as text."""
    heads = {"mse": "MSE", "mae": "MAE", "psnr": "PSNR", "ssim_openstl": "SSIM (OpenSTL)", "ssim": "SSIM (range 1)"}
    digits = {"mse": 1, "mae": 1, "psnr": 2, "ssim_openstl": 4, "ssim": 4}
    lines = [" " * 12 + "".join(f"{head:>16}" for head in heads.values())]
    for name, row in table.items():
        lines.append(f"{name:<12}" + "".join(f"{row[key]:>16.{digits[key]}f}" for key in heads))
    return "\n".join(lines)


def cost_table(costs: dict[str, dict[str, Any]]) -> str:
    """Time and memory of the kernels beside the reference as text."""
    lines = [f"{'':<58}{'compiled':>10}{'reference':>11}{'ratio':>8}"]
    for name, cost in costs.items():
        steps, samples, channels, height, width = cost["shape"]
        lines.append(
            f"{name}: T = {steps}, N = {samples}, {channels} x {height} x {width}, K = {cost['kernel_size']}, "
            f"{cost['groups']} groups, {cost['firing_rate']:.0%} firing"
        )
        for phase, row in cost["milliseconds_per_sample_and_step"].items():
            label = f"  {phase}, ms per sample and step"
            lines.append(f"{label:<58}{row['compiled']:>10.3f}{row['reference']:>11.3f}{row['ratio']:>7.1f}x")
        saved = cost["bytes_saved_per_neuron_and_step"]
        label = "  bytes saved for backward per neuron and step"
        ratio = saved["reference"] / saved["compiled"]
        lines.append(f"{label:<58}{saved['compiled']:>10.1f}{saved['reference']:>11.1f}{ratio:>7.1f}x")
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; see ``--help``."""

    def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
        def convert(text: str) -> float:
            value = kind(text)
            if not (0 < value < math.inf):
                raise ValueError(text)
            return value

        convert.__name__ = f"positive {kind.__name__}"  # argparse names the type in its error by this
        return convert

    parser = argparse.ArgumentParser(
        prog="python -m stc_cuda.demo",
        description="Trains a small STC-LIF video predictor on Moving MNIST (10 frames in, 10 out), evaluates it on "
        "digits it never saw, draws what it predicts and times the kernels beside plain PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo_out"), help="folder for pictures, weights and results.json")
    add("--iterations", type=positive(int), default=Recipe.iterations, help="training iterations")
    add(
        "--seconds",
        type=positive(float),
        default=270.0,
        help="limit of the training time; it ends with fewer iterations",
    )
    add("--seed", type=int, default=0, help="of weights and training data, 0 or more")
    add("--samples", type=positive(int), default=256, help="held-out sequences to evaluate on")
    add("--backend", default="auto", help="what trains and predicts: auto, cpu or reference")
    add(
        "--readme",
        type=Path,
        nargs="?",
        const=Path("docs/images"),
        metavar="FOLDER",
        help="also write the pictures of the README there (docs/images if no folder is given)",
    )
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        parser.error(f"argument --seed: got {arguments.seed}, expected 0 or more")
    return arguments


def main(argv: Sequence[str] | None = None, recipe: Recipe | None = None) -> int:
    """Runs the demo with these command-line arguments (those of the process if ``None``); its exit status."""
    arguments = parse_arguments(argv)
    recipe = replace(recipe or Recipe(), iterations=arguments.iterations)
    try:
        from tqdm import tqdm

        from . import plotting
    except ImportError as error:
        raise SystemExit(
            f"The demo needs the package {error.name}, which is not installed: type pip install 'stc-cuda[demo]'"
        ) from error

    torch.manual_seed(arguments.seed)
    model = build_predictor(recipe, arguments.backend)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"Predictor: {len(recipe.hidden)} STC-LIF layers of {recipe.hidden[-1]} channels, {parameters:,} parameters; "
        f"{torch.get_num_threads()} threads, {build_info()['cpu_kernel']} kernels"
    )
    with tqdm(total=recipe.iterations, desc="training", unit="it", mininterval=0.5) as bar:
        training = train(model, recipe, arguments.seed, arguments.seconds, bar)
    if training.cut_short:
        print(
            f"Training ended at --seconds {arguments.seconds:g} after {len(training.losses)} of {recipe.iterations} "
            "iterations; expect a somewhat worse prediction"
        )

    held_out = MovingMNIST(arguments.samples, GIVEN + AHEAD, split="test", seed=_TEST_SEED)
    frames = torch.stack([held_out[index] for index in range(len(held_out))])
    given, true = frames[:, :GIVEN], frames[:, GIVEN:]
    predicted = predict(model, given)
    table = evaluate(predicted, given, true)
    relative = table["prediction"]["mse"] / table["all zeros"]["mse"]
    print(f"\n{arguments.samples} sequences of held-out digits, {GIVEN} frames in, {AHEAD} predicted:")
    print(metrics_table(table))
    print(f"MSE of the prediction: {relative:.2f} of all zeros")

    costs = {layer.name: compare(layer) for layer in (demo_layer(model, given[: recipe.batch]), paper_layer())}
    print(f"\nThe recurrence of one layer, {torch.get_num_threads()} threads, medians of interleaved runs:")
    print(cost_table(costs))

    several = slice(0, 3)
    pictures = {
        "strip.png": plotting.prediction_strip(given[0, :, 0], true[0, :, 0], predicted[0, :, 0]),
        "prediction.gif": plotting.prediction_gif(given[several, :, 0], true[several, :, 0], predicted[several, :, 0]),
        "loss.png": plotting.loss_curve(
            training.losses, {f"{name}, held-out": table[name]["mse"] for name in ("all zeros", "copy last")}
        ),
    }
    results = {
        "recipe": asdict(recipe),
        "seed": arguments.seed,
        "iterations_done": len(training.losses),
        "training_seconds": training.seconds,
        "threads": torch.get_num_threads(),
        "build": build_info(),
        "held_out_sequences": arguments.samples,
        "held_out": table,
        "mse_relative_to_all_zeros": relative,
        "costs": costs,
        "losses": training.losses,
    }
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    out: Path = arguments.out
    for name, data in pictures.items():
        write_atomically(out / name, data)
        if arguments.readme is not None:
            write_atomically(arguments.readme / f"demo_{name}", data)
    write_atomically(out / "checkpoint.pth", weights.getvalue())
    write_atomically(out / "results.json", to_json(results))
    print(f"\nWritten to {out}: {', '.join(pictures)}, checkpoint.pth, results.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
