"""The demo end to end, made small, and the promises of its parts."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
import torch

from stc_cuda import demo
from stc_cuda.models import SpikingPredictor

TINY = demo.Recipe(iterations=6, batch=2, hidden=(8, 8), patch_size=8, kernel_size=3, groups=2)


class Bar:
    """A progress bar that counts."""

    updates = 0

    def set_postfix(self, **_: Any) -> None: ...

    def update(self) -> None:
        self.updates += 1


def train(seed: int = 0, limit: float = 1e9, recipe: demo.Recipe = TINY) -> tuple[SpikingPredictor, demo.Training]:
    torch.manual_seed(seed)
    model = demo.build_predictor(recipe)
    return model, demo.train(model, recipe, seed, limit, Bar())  # type: ignore[arg-type]


def small_layer() -> demo.Layer:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    norms = tuple((random(8), random(8)) for _ in range(3))
    return demo.Layer("paper layer", random(2, 2, 8, 6, 6), (random(8, 4, 3, 3), random(8, 4, 3, 3)), norms, 2, False)


@pytest.mark.filterwarnings("error")
def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "paper_layer", small_layer)
    out, readme = tmp_path / "new" / "out", tmp_path / "images"
    arguments = ["--out", str(out), "--iterations", "6", "--samples", "5", "--readme", str(readme)]
    assert demo.main(arguments, TINY) == 0

    expected = {"strip.png", "prediction.gif", "loss.png", "checkpoint.pth", "results.json"}
    assert {file.name for file in out.iterdir()} == expected
    assert {file.name for file in readme.iterdir()} == {"demo_strip.png", "demo_prediction.gif", "demo_loss.png"}
    assert imageio.imread(out / "prediction.gif").shape[0] == 20
    assert imageio.imread(out / "strip.png").std() > 10
    assert (readme / "demo_strip.png").read_bytes() == (out / "strip.png").read_bytes()

    results = json.loads((out / "results.json").read_text())
    assert results["iterations_done"] == len(results["losses"]) == 6
    zeros, prediction = results["held_out"]["all zeros"], results["held_out"]["prediction"]
    assert results["mse_relative_to_all_zeros"] == pytest.approx(prediction["mse"] / zeros["mse"])
    for cost in results["costs"].values():
        saved = cost["bytes_saved_per_neuron_and_step"]
        assert 8 <= saved["compiled"] < saved["reference"]
    model = demo.build_predictor(TINY)
    model.load_state_dict(torch.load(out / "checkpoint.pth", weights_only=True), strict=True)
    printed = capsys.readouterr().out
    for text in ("all zeros", "copy last", "forward + backward, ms per sample and step", "bytes saved", "compiled"):
        assert text in printed


def test_training_is_reproducible_and_depends_on_the_seed() -> None:
    _, first = train(seed=3)
    model, again = train(seed=3)
    _, other = train(seed=4)
    assert first.losses == again.losses
    assert first.losses != other.losses
    assert not first.cut_short
    assert all(p.isfinite().all() for p in model.parameters())


def test_training_learns() -> None:
    _, training = train(recipe=demo.replace(TINY, iterations=60, learning_rate=1e-2))
    assert sum(training.losses[-10:]) < 0.8 * sum(training.losses[:10])


def test_training_ends_at_its_time_limit() -> None:
    start = time.perf_counter()
    _, training = train(limit=1.0, recipe=demo.replace(TINY, iterations=10**6))
    assert training.cut_short
    assert 1 <= len(training.losses) < 10**6
    assert time.perf_counter() - start < 20


def test_schedules() -> None:
    recipe = demo.Recipe()
    rates = [recipe.learning_rate_at(i / 1000) for i in range(1001)]
    peak = rates.index(max(rates))
    assert 0 < rates[0] < 0.1 * recipe.learning_rate
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0.95 * recipe.learning_rate < max(rates) <= recipe.learning_rate
    assert rates[-1] == pytest.approx(recipe.learning_rate / 100)
    assert recipe.teacher_probability_at(0) == 1
    assert recipe.teacher_probability_at(recipe.teacher_until / 2) == pytest.approx(0.5)
    assert recipe.teacher_probability_at(1) == 0


def test_evaluation_of_known_videos() -> None:
    given = torch.zeros(2, 10, 1, 8, 8)
    given[:, -1] = 1
    true = torch.ones(2, 10, 1, 8, 8)
    table = demo.evaluate(true / 2, given, true)
    assert {name: row["mse"] for name, row in table.items()} == {"prediction": 16, "all zeros": 64, "copy last": 0}
    assert table["prediction"]["mae"] == 32
    assert table["copy last"]["psnr"] == math.inf
    assert table["all zeros"]["mse_per_frame"] == [64] * 10
    assert len(demo.metrics_table(table).splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "0"], "argument --iterations: invalid positive int value: '0'"),
        (["--seconds", "inf"], "argument --seconds: invalid positive float value: 'inf'"),
        (["--samples", "many"], "argument --samples: invalid positive int value: 'many'"),
        (["--seed", "-1"], "argument --seed: got -1, expected 0 or more"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(arguments)
    assert message in capsys.readouterr().err
