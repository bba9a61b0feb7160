"""The training loop: one process or many, resumable after every step."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._files import to_json, write_atomically
from .._version import __version__
from ..data import VideoDataset, make_loader
from . import checkpoints
from .checkpoints import CheckpointError
from .config import Config, ConfigError, build_model, parse
from .diagnosis import NonFiniteError, first_non_finite
from .evaluation import autocast, draw, evaluate, next_batch, parameter_dtype
from .processes import Processes
from .schedule import learning_rate

T = TypeVar("T")
CONFIG_FILE, HISTORY_FILE, PICTURES, EVENTS = "config.yaml", "history.json", "pictures", "tensorboard"
_ANOTHER_SIGNAL_AFTER = 3.0  # seconds; torchrun passes on what the terminal has sent already


@dataclass(frozen=True)
class Part:
    """What one pass of a step saw."""

    frames: Tensor
    mask: Tensor


class Trainer:
    """Trains a predictor in a run folder.

    Everything that a step depends on follows from the step's number (batch, learning rate, sampling) or is saved
    (weights, optimiser, random numbers): a resumed run equals one that was never stopped.

    Args:
        config: of the run.
        folder: of the run; the first process writes there.
        processes: this process among all.
        train, validation: the sequences.
        state: of :func:`stc_cuda.train.checkpoints.load_state`, to go on from; ``None`` starts anew.

    Raises:
        ConfigError: sizes do not fit together.
        CheckpointError: ``state`` does not fit the configuration.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        processes: Processes,
        train: VideoDataset,
        validation: VideoDataset,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        self.train_data, self.validation_data = train, validation
        t = config.training
        parts = processes.world_size * t.accumulate
        if t.batch_size % parts:
            raise ConfigError(
                f"training.batch_size: got {t.batch_size}, expected a multiple of {parts} = "
                f"{processes.world_size} processes * training.accumulate {t.accumulate}"
            )
        if len(train) < t.batch_size:
            raise ConfigError(
                f"training.batch_size: got {t.batch_size}, expected at most the {len(train)} training sequences"
            )
        self.part_size = t.batch_size // parts
        self.steps_per_epoch = len(train) // t.batch_size
        self.total_steps = t.epochs * self.steps_per_epoch
        torch.backends.cudnn.deterministic = t.deterministic
        torch.backends.cudnn.benchmark = not t.deterministic

        torch.manual_seed(t.seed)
        self.model = build_model(config, train.frame_shape).to(processes.device, parameter_dtype(t.precision))
        learnt = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        o = config.optimizer
        self.optimizer = torch.optim.AdamW(learnt, o.lr, betas=o.betas, weight_decay=o.weight_decay)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=t.precision == "fp16")
        self.sampling = config.sampling.schedule()
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.loss_sum, self.loss_count = 0.0, 0
        self.seconds = 0.0
        self.stop_requested = False
        checkpoints.seed_everything(t.seed + processes.rank)
        if state is not None:
            self._restore(state)
        self.parallel: nn.Module = self.model
        if processes.world_size > 1:
            on_gpu = processes.device.type == "cuda"
            self.parallel = DistributedDataParallel(self.model, device_ids=[processes.device] if on_gpu else None)

    # --- the loop -----------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Trains to the end, or until a signal asks to stop; whether it came to the end.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite; the message says where that began. The last
                checkpoint stays as it is.
            CheckpointError: a checkpoint cannot be written; the one before it stays as it is.
        """
        self._on_first(self._prepare_folder)
        with self._signals(), self._progress() as bar, self._events() as events:
            while True:
                if self._validation_is_due():
                    self._validate(bar, events)
                    self.save("last")
                if self.step >= self.total_steps:
                    return True
                if self._epoch(bar, events):
                    self.save("last")
                    return False

    def _prepare_folder(self) -> None:
        # Of a process that was killed while it wrote; whatever else lies here is not this program's.
        names = [CONFIG_FILE, HISTORY_FILE]
        names += [kind.format(name) for kind in (checkpoints.STATE, checkpoints.WEIGHTS) for name in ("last", "best")]
        pictures = [f"{PICTURES}/epoch_[0-9][0-9][0-9][0-9].{kind}" for kind in ("png", "gif")]
        for pattern in (*names, *pictures):
            for part in self.folder.glob(f"{pattern}.part"):
                part.unlink()
        write_atomically(self.folder / CONFIG_FILE, self.config.to_yaml().encode())

    def _epoch(self, bar: Any, events: Any) -> bool:
        """Trains to the end of the epoch; whether it was asked to stop."""
        t, p = self.config.training, self.processes
        epoch, done = divmod(self.step, self.steps_per_epoch)
        loader = make_loader(
            self.train_data,
            self.part_size,
            seed=t.seed,
            epoch=epoch,
            workers=self.config.data.workers,
            shuffle=True,
            rank=p.rank,
            world_size=p.world_size,
            skip_batches=done * t.accumulate,
            drop_last=True,
            pin_memory=p.device.type == "cuda",
        )
        loader.worker_init_fn = _ignore_interrupts
        batches = iter(loader)
        self.model.train()
        for _ in range(done, self.steps_per_epoch):
            start = time.perf_counter()
            rate = learning_rate(self.config, self.step, self.steps_per_epoch)
            loss, stop = self._step(batches, rate)
            seconds = time.perf_counter() - start
            self.seconds += seconds
            self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.5f}", ms_step=f"{1e3 * seconds:.0f}", refresh=False)
            bar.update()
            if events is not None:
                events.add_scalar("train/loss", loss, self.step)
                events.add_scalar("train/learning_rate", rate, self.step)
                events.add_scalar("train/milliseconds_per_step", 1e3 * seconds, self.step)
            if stop:
                return True
            inside = self.step % self.steps_per_epoch != 0
            if inside and t.checkpoint_every is not None and self.step % t.checkpoint_every == 0:
                self.save("last")
        if not self._validation_is_due():
            self.save("last")
        return False

    def _step(self, batches: Iterator[Tensor], rate: float) -> tuple[float, bool]:
        """One optimiser step: the mean loss over all processes, and whether any of them was asked to stop."""
        t = self.config.training
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        masks = self._teacher_masks()
        parts: list[Part] = []
        local = 0.0
        for number in range(t.accumulate):
            part = self._next_part(batches, masks, number)
            parts.append(part)
            synchronised = number == t.accumulate - 1 or self.parallel is self.model
            with nullcontext() if synchronised else self.parallel.no_sync():  # type: ignore[operator]
                loss = self._loss(self.parallel, part) / t.accumulate
                self.scaler.scale(loss).backward()
            local += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        total, stop, broken = self.processes.sum(
            [local, float(self.stop_requested), float(not self._is_usable(local, norm))]
        )
        if broken:
            self._diagnose(parts, local, norm, rate)
        if self.config.optimizer.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(
                self.optimizer.param_groups[0]["params"], self.config.optimizer.clip_norm, torch.tensor(norm)
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return total / self.processes.world_size, stop > 0

    def _loss(self, model: nn.Module, part: Part) -> Tensor:
        with autocast(self.config.training.precision, self.processes.device):
            predictions = model(part.frames, part.mask)
        return F.mse_loss(predictions, part.frames[:, 1:])

    def _teacher_masks(self) -> Tensor:
        """Of the whole batch, the same in all processes: what a sample is shown depends on the seed and the step."""
        generator = torch.Generator().manual_seed(self.config.training.seed * 2**32 + self.step)
        d = self.config.data
        return self.sampling.teacher_mask(
            self.step, self.config.training.batch_size, d.in_frames, d.out_frames, generator
        )

    def _next_part(self, batches: Iterator[Tensor], masks: Tensor, number: int) -> Part:
        p = self.processes
        frames = next_batch(batches)
        expected = (self.part_size, self.config.total_frames, *self.train_data.frame_shape)
        if tuple(frames.shape) != expected:
            raise ConfigError(f"data: got a batch of shape {list(frames.shape)}, expected {list(expected)}")
        frames = frames.to(p.device, parameter_dtype(self.config.training.precision), non_blocking=True)
        # The loader deals the samples of a batch out to the processes in turn.
        first = number * self.part_size * p.world_size
        mask = masks[first : first + self.part_size * p.world_size][p.rank :: p.world_size]
        return Part(frames, mask.to(p.device))

    # --- numbers that are not finite ----------------------------------------------------------------------------

    def _is_usable(self, loss: float, norm: float) -> bool:
        # With fp16 an infinite gradient is the scaler's business, which skips the step and halves its scale.
        scaled = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        return math.isfinite(loss) and (math.isfinite(norm) or scaled)

    def _diagnose(self, parts: list[Part], loss: float, norm: float, rate: float) -> None:
        found: tuple[str, list[str]] | None = None
        for part in parts:
            candidate = first_non_finite(self.model, part.frames, lambda part=part: self._loss(self.model, part))  # type: ignore[misc]
            if found is None or "does not repeat" in found[0]:
                found = candidate
        everywhere = self.processes.gather((found, loss, norm))
        # A gradient is the sum of all processes: look first where the forward pass broke.
        rank, (where, loss, norm) = min(
            enumerate(everywhere), key=lambda entry: (math.isfinite(entry[1][1]), "gradient" in str(entry[1][0]))
        )
        assert where is not None
        process = f" (process {rank})" if self.processes.world_size > 1 else ""
        lines = "".join(f"\n    {line}" for line in where[1])
        last = self.folder / checkpoints.STATE.format("last")
        kept = f"the last checkpoint is that of an earlier step: {last}" if last.exists() else "nothing was saved yet"
        raise NonFiniteError(
            f"step {self.step}, epoch {self.step // self.steps_per_epoch + 1}, learning rate {rate:.3g}: loss {loss}, "
            f"norm of the gradients {norm}{process}\n  went first: {where[0]}{lines}\n  {kept}; a smaller "
            "optimizer.lr, a longer warm-up or optimizer.clip_norm may help"
        )

    # --- validation ---------------------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        """At the end of an epoch that has one, unless it is in the history."""
        epoch, inside = divmod(self.step, self.steps_per_epoch)
        ends = (
            inside == 0 and epoch > 0 and (epoch % self.config.validation.every == 0 or self.step >= self.total_steps)
        )
        return ends and (not self.history or self.history[-1]["step"] < self.step)

    def _validate(self, bar: Any, events: Any) -> None:
        epoch = self.step // self.steps_per_epoch
        best = min((entry["validation"]["mse"] for entry in self.history), default=math.inf)
        scores = evaluate(
            self.model, self.validation_data, self.config, self.processes, names=("mse", "mae", "psnr", "ssim")
        )
        means = {name: values["mean"] for name, values in scores["prediction"].items()}
        entry = {
            "epoch": epoch,
            "step": self.step,
            "training_loss": self.loss_sum / max(1, self.loss_count),
            "validated_on": "test set" if self.config.validation.on_test_set else "held-out training data",
            "validation": means,
            "training_seconds": round(self.seconds, 3),
        }
        self.history.append(entry)
        self.loss_sum, self.loss_count = 0.0, 0
        self._on_first(lambda: self._report(entry, bar, events))
        if means["mse"] < best:
            self.save("best")

    def _report(self, entry: dict[str, Any], bar: Any, events: Any) -> None:
        text = ", ".join(f"{name} {value:.4g}" for name, value in entry["validation"].items())
        bar.write(
            f"epoch {entry['epoch']}: training loss {entry['training_loss']:.5f}; {entry['validated_on']}: {text}"
        )
        write_atomically(self.folder / HISTORY_FILE, to_json(self.history))
        if events is not None:
            for name, value in entry["validation"].items():
                events.add_scalar(f"validation/{name}", value, self.step)
        if self.config.validation.pictures:
            strip, gif = draw(self.model, self.validation_data, self.config)
            write_atomically(self.folder / PICTURES / f"epoch_{entry['epoch']:04d}.png", strip)
            write_atomically(self.folder / PICTURES / f"epoch_{entry['epoch']:04d}.gif", gif)

    # --- state --------------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Writes the checkpoint ``"last"`` or ``"best"``.

        Raises:
            CheckpointError: see :func:`stc_cuda.train.checkpoints.save`.
        """
        random_states = self.processes.gather(checkpoints.random_state(self.processes.device))

        def write() -> None:
            state = {
                "version": __version__,
                "config": self.config.model_dump(mode="json"),
                "step": self.step,
                "steps_per_epoch": self.steps_per_epoch,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": random_states,
                "history": self.history,
                "loss": (self.loss_sum, self.loss_count),
                "seconds": self.seconds,
            }
            checkpoints.save(self.folder, name, state, self.train_data.frame_shape)

        self._on_first(write)

    def _restore(self, state: dict[str, Any]) -> None:
        self._require_same(parse(state["config"]))
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise CheckpointError(
                f"the checkpoint has {state['steps_per_epoch']} steps an epoch and this run {self.steps_per_epoch}: "
                "data or training.batch_size were changed; start a new run with another --out"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the configured model: {error}") from error
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.history = list(state["history"])
        self.loss_sum, self.loss_count = state["loss"]
        self.seconds = state["seconds"]
        if len(state["random"]) == self.processes.world_size:
            checkpoints.set_random_state(state["random"][self.processes.rank], self.processes.device)

    def _require_same(self, before: Config) -> None:
        """What a run cannot change on its way."""
        fixed = {
            "data": ("name", "in_frames", "out_frames", "frame_size"),
            "model": tuple(type(before.model).model_fields.keys() - {"backend", "recompute_every"}),
            "training": ("batch_size", "seed"),
        }
        for section, names in fixed.items():
            for name in sorted(names):
                was, now = (getattr(getattr(config, section), name) for config in (before, self.config))
                if was != now:
                    raise CheckpointError(
                        f"{section}.{name}: got {now}, expected {was} as in the run that goes on; start a new run with "
                        "another --out"
                    )

    # --- surroundings -------------------------------------------------------------------------------------------

    def _on_first(self, work: Callable[[], None]) -> None:
        """Runs ``work`` in the first process; all raise its error, so that none is left waiting."""
        failure: Exception | None = None
        if self.processes.is_first:
            try:
                work()
            except OSError as error:
                last = self.folder / checkpoints.STATE.format("last")
                kept = f"; the last checkpoint is intact: {last}" if last.exists() else ""
                failure = CheckpointError(f"{self.folder}: cannot be written to ({error}){kept}")
            except Exception as error:
                failure = error
        failure = self.processes.broadcast(failure)
        if failure is not None:
            raise failure

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask to stop after the step; a second Ctrl-C, some seconds later, stops at once."""
        asked = 0.0

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            now = time.monotonic()
            if self.stop_requested and now - asked > _ANOTHER_SIGNAL_AFTER:
                raise KeyboardInterrupt
            asked = asked if self.stop_requested else now
            self.stop_requested = True

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _progress(self) -> Iterator[Any]:
        from tqdm import tqdm

        seen = sys.stderr.isatty()
        with tqdm(
            total=self.total_steps,
            initial=self.step,
            desc="training",
            unit="step",
            mininterval=0.5 if seen else 30,
            disable=not self.processes.is_first,
        ) as bar:
            yield bar

    @contextmanager
    def _events(self) -> Iterator[Any]:
        if not (self.config.training.tensorboard and self.processes.is_first):
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        events = _Events(SummaryWriter(str(self.folder / EVENTS), purge_step=self.step))
        try:
            yield events
        finally:
            events.close()


class _Events:
    """TensorBoard's writer. A run does not end because the disk is full of curves: it says so and goes on without."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def add_scalar(self, *scalar: Any) -> None:
        self._try(lambda writer: writer.add_scalar(*scalar))

    def close(self) -> None:
        self._try(lambda writer: writer.close())

    def _try(self, work: Callable[[Any], None]) -> None:
        if self.writer is None:
            return
        try:
            work(self.writer)
        except OSError as error:
            self.writer = None
            print(f"\nTensorBoard's file cannot be written ({error.strerror or error}); going on without.", flush=True)


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches the processes that load data, too; they are needed to the end of the step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
