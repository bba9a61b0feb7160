"""The command that trains every neuron and writes docs/results.md: it trains once, pairs by seed, and counts right."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest
from train_runs import write_config

from bench import learning, report
from bench.learning import Results, Run
from stc_cuda.train import NonFiniteError, Trainer, load

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "docs" / "results.md"
    path.parent.mkdir()
    path.write_text("above\n<!-- bench:learning-config:begin -->\nold\n<!-- bench:learning-config:end -->\nbelow\n")
    monkeypatch.setattr(learning, "PAGE", path)
    return path


def command(folder: Path, *arguments: str, **changes: Any) -> list[str]:
    source = write_config(folder, **changes)
    own = ("--json", str(folder / "out.json"), "--runs", str(folder / "runs"), "--device", "cpu")
    return [str(source), *own, *arguments]


def test_a_run_is_trained_once_and_gives_the_page(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--neurons", "lif", "stclif", "--page")
    assert learning.main(command(tmp_path, *few, "--seeds", "0")) == 0
    first = json.loads((tmp_path / "out.json").read_text())
    trained: list[tuple[str, int]] = []
    fit = Trainer.fit

    def counted(trainer: Trainer) -> bool:
        trained.append((trainer.config.model.neuron, trainer.config.training.seed))
        return fit(trainer)

    monkeypatch.setattr(Trainer, "fit", counted)
    assert learning.main(command(tmp_path, *few, "--seeds", "0", "1")) == 0
    assert trained == [("lif", 1), ("stclif", 1)]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["runs"][:2] == first["runs"]
    assert "root" not in found["config"]["data"]
    for run in found["runs"]:
        assert [point["step"] for point in run["curve"]] == [4, 8]
        assert run["about"]["commit"]
        assert run["milliseconds_per_step"] > 0
        assert run["test"]["mse"] == pytest.approx(statistics.fmean(run["mse_per_frame"]))
    assert len({run["test"]["mse"] for run in found["runs"]}) == 4
    assert found["runs"][0]["parameters"] < found["runs"][1]["parameters"]

    text = page.read_text()
    assert text.startswith("above\n<!--")
    assert text.endswith("-->\nbelow\n")
    assert "old" not in text
    assert "| *all zeros* |" in text
    assert "8 steps of 4 sequences" in text
    assert (page.parent / "images" / "learning_config.png").read_bytes().startswith(b"\x89PNG")
    trained.clear()
    page.write_text(text.replace("STC-LIF", "lost"))
    assert learning.main(command(tmp_path, *few, "--seeds", "0", "1")) == 0
    assert (trained, page.read_text()) == ([], text)


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--neurons", "stclif", "--seeds", "3")
    assert learning.main(command(tmp_path / "whole", *arguments)) == 0
    validate = Trainer._validate

    def stopped(trainer: Trainer, *rest: Any) -> None:
        validate(trainer, *rest)
        trainer.stop_requested = True

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", stopped)
        assert learning.main(command(tmp_path / "cut", *arguments)) == 130
    assert not (tmp_path / "cut" / "out.json").exists()
    assert learning.main(command(tmp_path / "cut", *arguments)) == 0
    (whole,), (cut,) = (Results.from_json(tmp_path / name / "out.json").runs for name in ("whole", "cut"))
    assert (cut.test, cut.curve) == (whole.test, whole.curve)


def test_runs_that_do_not_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--neurons", "lif", "--seeds", "0")
    assert learning.main(command(tmp_path, *few)) == 0
    capsys.readouterr()
    assert learning.main(command(tmp_path, *few, training={"epochs": 3})) == 1
    message = capsys.readouterr().err
    assert "holds runs of another configuration (training.epochs 2, now 3)" in message
    (tmp_path / "out.json").unlink()
    assert learning.main(command(tmp_path, *few, training={"epochs": 3})) == 1
    assert "lif_0 holds a run of another configuration" in capsys.readouterr().err
    (tmp_path / "out.json").write_text("{}")
    assert learning.main(command(tmp_path, *few)) == 1
    assert "expected a file that `python -m bench.learning` wrote" in capsys.readouterr().err
    (tmp_path / "out.json").unlink()

    def broken(trainer: Trainer) -> bool:
        raise NonFiniteError("step 3: loss nan")

    monkeypatch.setattr(Trainer, "fit", broken)
    assert learning.main(command(tmp_path, *few)) == 1
    assert "error: step 3: loss nan" in capsys.readouterr().err


def test_a_page_without_a_place_is_said_before_training(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page.write_text("nothing")
    with pytest.raises(SystemExit):
        learning.main(command(tmp_path, "--page"))
    assert "--page: " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# --- arithmetic -----------------------------------------------------------------------------------------------------


def results(mse: dict[str, dict[int, float]]) -> Results:
    """Runs of these test MSE by neuron and seed."""
    about = {"processor": "a processor", "threads": 1, "python": "3.12", "torch": "2.99", "commit": "abc"}
    usual = Run("", 0, about, 1000, 12.0, [{"step": 4, "training_loss": 1.0, "mse": 100.0}], {"ssim": 0.5}, [])
    runs = [
        dataclasses.replace(usual, neuron=neuron, seed=seed, test={"mse": value, "ssim": 0.5})
        for neuron, by_seed in mse.items()
        for seed, value in by_seed.items()
    ]
    config = {
        "data": {"name": "digits", "in_frames": 10, "out_frames": 10},
        "training": {"batch_size": 4},
        "model": {"hidden": [8]},
    }
    baselines = {split: {"all zeros": 200.0, "copy last": 300.0} for split in ("test", "validation")}
    return Results("digits", config, baselines, runs)


def test_gaps_are_paired_by_seed() -> None:
    found = results({"stclif": {2: 90.0, 0: 100.0, 7: 5.0}, "lif": {0: 110.0, 1: 1.0, 2: 120.0}})
    assert learning.paired(found, "stclif", "lif") == {0: -10.0, 2: -30.0}
    words = learning.gap_in_words(found, "stclif", "lif")
    # (-10 - 30) / 2, their sample standard deviation, and -20 of the mean of 110 and 120
    assert words == "- STC-LIF less LIF: -20.0 ± 14.1 (-17.4%); by seed -10.0, -30.0; smaller in 2 of 2\n"
    assert learning.gap_in_words(found, "stcplif", "plif") == ""
    assert learning.gap_in_words(results({"stclif": {0: 3.0}, "lif": {0: 2.0}}), "stclif", "lif").startswith(
        "- STC-LIF less LIF: 1.0 (+50.0%); by seed +1.0; smaller in 0 of 1"
    )


def test_the_table_has_the_best_first_and_parts_of_all_zeros() -> None:
    rows = learning.table(results({"lif": {0: 100.0, 1: 104.0}, "stclif": {0: 50.0, 1: 50.0}})).splitlines()[2:]
    assert rows == [
        "| STC-LIF | 1,000 | 12 | 50.0 ± 0.0 | 0.25 | 0.500 ± 0.000 | 0, 1 |",
        "| LIF | 1,000 | 12 | 102.0 ± 2.8 | 0.51 | 0.500 ± 0.000 | 0, 1 |",
        "| *all zeros* | | | 200.0 | 1.00 | | |",
        "| *copy last* | | | 300.0 | 1.50 | | |",
    ]


def test_frames_are_means_over_the_seeds() -> None:
    found = results({"lif": {0: 100.0, 1: 104.0}})
    found.runs = [
        dataclasses.replace(run, mse_per_frame=frames)
        for run, frames in zip(found.runs, ([1.0, 20.0], [3.0, 30.0]), strict=True)
    ]
    assert learning.frames_table(found).splitlines() == [
        "| predicted frame | 1 | 2 |",
        "|---|---|---|",
        "| LIF | 2 | 25 |",
    ]


def test_time_is_that_of_the_fastest_epoch() -> None:
    history = [{"step": 4, "training_seconds": 4.0}, {"step": 8, "training_seconds": 6.0}]
    assert learning.milliseconds_per_step(history) == 500.0


def test_digits_have_the_budget_of_their_preset() -> None:
    """Cut into more epochs, for curves of more points: steps, warm-up and all that is not data are the same."""

    def budget(changes: dict[str, Any]) -> tuple[float, ...]:
        config = load("digits", changes)
        assert config.data.train_length is not None
        steps = config.data.train_length // config.training.batch_size
        return steps * config.training.epochs, steps * config.optimizer.warm_up_epochs

    assert budget(learning.OWN_CHANGES["digits"]) == budget({}) == (1600, 48)


def test_the_page_is_what_the_committed_results_make_of_it() -> None:
    committed = Results.from_json(ROOT / "bench" / "results" / "learning_digits.json")
    assert len(committed.runs) == len({(run.neuron, run.seed) for run in committed.runs})
    for neuron in learning.NEURONS:
        assert len(committed.of(neuron)) >= 3
    text = learning.PAGE.read_text()
    marker = learning.marker(committed.name)
    begin, end = (f"<!-- bench:{marker}:{where} -->\n" for where in ("begin", "end"))
    assert text.split(begin)[1].split(end)[0] == learning.page_block(committed)
    report.check_markers(marker, [learning.PAGE])
    # and it can be gone on with, whatever options there are by now
    preset = load("digits", {**learning.OWN_CHANGES.get("digits", {}), **learning.ALWAYS})
    path = ROOT / "bench" / "results" / "learning_digits.json"
    assert len(learning.opened(path, committed.name, preset).runs) == len(committed.runs)


def test_commands_of_the_page_are_understood() -> None:
    lines = re.findall(r"^    python -m bench.learning (.*)$", learning.PAGE.read_text(), flags=re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        learning.parser().parse_args(shlex.split(line, comments=True))
