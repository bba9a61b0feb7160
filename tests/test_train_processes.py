"""Training in several processes under torchrun, with gloo on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_runs import STEPS_PER_EPOCH, differences, history_of, state_of, write_config

from stc_cuda.train import load_state

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("train_worker.py")
# So that a spike near its threshold is the same whatever the sizes of the batches.
DOUBLE = {"training": {"precision": "fp64", "batch_size": 4, "checkpoint_every": 2}}


def torchrun(mode: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes of train_worker.py."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    return subprocess.run(
        [*launch, str(WORKER), mode, str(folder), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that trained to the end."""
    folder = tmp_path_factory.mktemp("two")
    file = write_config(folder, **DOUBLE)
    done = torchrun("gradients", folder, "train", str(file), "--out", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Done. Best epoch") == 1  # only the first process prints
    return folder


def test_gradients_and_training_equal_those_of_one_process(uninterrupted: Path, tmp_path: Path) -> None:
    program = [sys.executable, str(WORKER), "gradients", str(tmp_path)]
    file = write_config(tmp_path, **DOUBLE)
    command = [*program, "train", str(file), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = torch.load(tmp_path / "gradients_0.pt")
    for rank in (0, 1):
        both = torch.load(uninterrupted / f"gradients_{rank}.pt")
        for found, expected in zip(both, alone, strict=True):
            assert float(expected.norm()) > 0
            assert float((found - expected).norm() / expected.norm()) < 1e-6
    one, two = (load_state(folder / "run" / "last.resume.pt") for folder in (tmp_path, uninterrupted))
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-6, atol=1e-9, msg=name)
    for first, second in zip(one["history"], two["history"], strict=True):
        assert second["training_loss"] == pytest.approx(first["training_loss"], rel=1e-6)
        assert second["validation"] == pytest.approx(first["validation"], rel=1e-6)


def test_evaluation_counts_each_sequence_once(uninterrupted: Path, tmp_path: Path) -> None:
    """Seventeen sequences in batches of two in two processes: no share is even."""
    options = ["--split", "train", "--set", "validation.batch_size=2"]
    done = torchrun("eval", tmp_path, "eval", str(uninterrupted / "run"), "--out", str(tmp_path / "two.json"), *options)
    assert done.returncode == 0, done.stderr
    from stc_cuda.cli import main

    assert main(["eval", str(uninterrupted / "run"), "--out", str(tmp_path / "one.json"), *options]) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["sequences"] == two["sequences"] == 17
    for name, values in one["metrics"]["prediction"].items():
        assert two["metrics"]["prediction"][name]["per_frame"] == pytest.approx(values["per_frame"], rel=1e-6)


def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted(uninterrupted: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path, **DOUBLE)
    run = tmp_path / "run"
    done = torchrun("kill", tmp_path, "train", str(file), "--out", str(run))
    assert done.returncode != 0
    assert load_state(run / "last.resume.pt")["step"] == 6
    assert 6 % STEPS_PER_EPOCH
    done = torchrun("go on", tmp_path, "train", "--resume", str(run))
    assert done.returncode == 0, done.stderr
    assert not differences(state_of(uninterrupted / "run"), state_of(run))
    assert len(history_of(run)) == 2


def test_all_processes_stop_when_one_is_asked_to(tmp_path: Path) -> None:
    file = write_config(tmp_path, **DOUBLE)
    done = torchrun("stop", tmp_path, "train", str(file), "--out", str(tmp_path / "run"))
    assert "Stopped after step 3 of 8" in done.stdout, done.stderr
    assert load_state(tmp_path / "run" / "last.resume.pt")["step"] == 3


def test_all_processes_stop_when_one_meets_nan(tmp_path: Path) -> None:
    file = write_config(tmp_path, training={"checkpoint_every": 2})
    done = torchrun("poison", tmp_path, "train", str(file), "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "step 2, epoch 1" in done.stderr, done.stderr
    assert "(process 1)" in done.stderr
    assert "went first: cell_list.1, membrane potential at its call 1" in done.stderr
    assert load_state(tmp_path / "run" / "last.resume.pt")["step"] == 2


def test_fully_sharded(tmp_path: Path) -> None:
    done = torchrun("sharded", tmp_path)
    # Not by the exit status: now and then gloo's threads abort a process as it ends.
    assert done.stdout.count("equal") == 2, done.stderr


def test_more_parts_than_samples(tmp_path: Path) -> None:
    file = write_config(tmp_path, training={"batch_size": 3})
    done = torchrun("bad", tmp_path, "train", str(file), "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    for process in range(2):
        assert f"error (process {process} of 2): training.batch_size: got 3, expected a multiple of 2" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_of_two_processes_goes_on_in_one(uninterrupted: Path, tmp_path: Path) -> None:
    import shutil

    from stc_cuda.cli import main

    shutil.copytree(uninterrupted, tmp_path / "copy")
    assert main(["train", "--resume", str(tmp_path / "copy" / "run"), "--epochs", "3"]) == 0
    assert [entry["epoch"] for entry in history_of(tmp_path / "copy" / "run")] == [1, 2, 3]
