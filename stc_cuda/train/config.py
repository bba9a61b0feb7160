"""What a training run is: typed options, presets, and the command line's changes to them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..backends import REFERENCE, select_backend
from ..data import VideoDataset, open_dataset
from ..models import NoSampling, ReverseScheduledSampling, SamplingSchedule, ScheduledSampling, SpikingPredictor

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
# Bounded, so that float32 holds what is made of them.
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
_FRAME_SHAPES = {"moving_mnist": (1, 64, 64), "digits": (1, 64, 64), "taxibj": (2, 32, 32), "kth": (1, 128, 128)}
NotNegative = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the option, what was given and what was expected."""


class Section(BaseModel):
    """A group of options. Unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(Section):
    """Which sequences.

    Attributes:
        name: of the data set, see :func:`stc_cuda.data.open_dataset`.
        root: its folder or file, where it has one.
        in_frames: frames given.
        out_frames: frames to predict.
        frame_size: ``[height, width]`` in pixels; ``None`` leaves the data set's own.
        train_length: training sequences of an epoch; ``None`` takes all.
        validation_length: sequences to validate on; ``None`` takes all.
        test_length: sequences to evaluate on; ``None`` takes all.
        workers: processes that load data, for each training process.
        stride: videos and array: frames from the start of a sequence to that of the next.
        frame_step: videos: keep every so many-th frame.
        grayscale: videos: one channel.
        cache: videos: folder for decoded frames.
        test_fraction: videos and array: part held out for the test set.
    """

    name: Literal["moving_mnist", "digits", "taxibj", "kth", "videos", "array"]
    root: str | None = None
    in_frames: Count = 10
    out_frames: Count = 10
    frame_size: tuple[Count, Count] | None = None
    train_length: Count | None = None
    validation_length: Count | None = None
    test_length: Count | None = None
    workers: Whole = 0
    stride: Count | None = None
    frame_step: Count | None = None
    grayscale: bool | None = None
    cache: str | None = None
    test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None


class ModelConfig(Section):
    """The predictor: arguments of :class:`stc_cuda.models.SpikingPredictor`."""

    neuron: Literal["lif", "plif", "glif", "tclif", "lmh", "stclif", "stcplif", "stclmh"] = "stclif"
    hidden: tuple[Count, ...] = (256, 256, 256)
    patch_size: Count = 2
    kernel_size: Count = 5
    groups: Count = 16
    gradient_detach: bool = False
    backend: str = "auto"
    recompute_every: Count | None = None

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if not self.hidden or any(channels % self.groups for channels in self.hidden):
            raise ValueError(f"hidden: got {list(self.hidden)}, expected multiples of groups = {self.groups}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {self.kernel_size}, expected an odd number")
        return self


class OptimizerConfig(Section):
    """Adam and its learning rate.

    Attributes:
        lr: largest learning rate, for ``training.batch_size = lr_batch_size``.
        lr_scaling: what a batch k times ``lr_batch_size`` does to the learning rates: ``"none"``, ``"sqrt"``
            (times the root of k), ``"linear"`` (times k).
        lr_batch_size: the batch that the learning rates are meant for.
        min_lr: at the end of the cosine.
        warm_up_lr: at the start of the warm-up, from which it rises in a line to ``lr``.
        warm_up_epochs: length of the warm-up; a fraction is allowed.
        schedule: ``"cosine"`` or ``"constant"``, after the warm-up.
        schedule_by: ``"epoch"`` changes the rate at the start of an epoch, ``"step"`` at every step.
        betas: of Adam.
        weight_decay: decoupled (AdamW); 0 is Adam.
        clip_norm: largest norm of all gradients together; ``None`` does not clip.
    """

    lr: Positive = 1e-3
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    lr_batch_size: Count = 16
    min_lr: NotNegative = 1e-5
    warm_up_lr: NotNegative = 1e-5
    warm_up_epochs: NotNegative = 10
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_by: Literal["epoch", "step"] = "epoch"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: NotNegative = 0.0
    clip_norm: Positive | None = None


class SamplingConfig(Section):
    """True frames shown in training, see :mod:`stc_cuda.models.sampling`.

    Attributes:
        kind: ``"scheduled"`` (reads ``start``, ``rate``, ``until``), ``"reverse"`` (reads ``begin``, ``end``,
            ``scale``), or ``"none"``. All count iterations.
    """

    kind: Literal["scheduled", "reverse", "none"] = "scheduled"
    start: Annotated[float, Field(ge=0, le=1)] = 1.0
    rate: NotNegative = 2e-5
    until: Whole = 50_000
    begin: Whole = 25_000
    end: Whole = 50_000
    scale: Positive = 5_000.0

    @model_validator(mode="after")
    def _ordered(self) -> SamplingConfig:
        if self.begin >= self.end:
            raise ValueError(f"begin: got {self.begin}, expected less than end = {self.end}")
        return self

    def schedule(self) -> SamplingSchedule:
        """The schedule of this kind."""
        if self.kind == "scheduled":
            return ScheduledSampling(self.start, self.rate, self.until)
        if self.kind == "reverse":
            return ReverseScheduledSampling(self.begin, self.end, self.scale)
        return NoSampling()


class TrainingConfig(Section):
    """The loop.

    Attributes:
        epochs: passes over the training data.
        batch_size: samples of one optimiser step, over all processes and accumulated parts together.
        accumulate: parts that a process cuts its share of a batch into, one after the other, to need less memory.
        precision: ``"fp32"``, ``"fp64"``, or ``"bf16"`` and ``"fp16"`` for autocast (parameters and states stay fp32).
        seed: of weights, order and sampling.
        deterministic: choose cuDNN's deterministic convolutions, so that a resumed run on a GPU repeats bit for bit.
        checkpoint_every: optimiser steps between checkpoints inside an epoch; ``None`` saves after epochs only.
        tensorboard: write event files for TensorBoard.
    """

    epochs: Count = 500
    batch_size: Count = 16
    accumulate: Count = 1
    precision: Literal["fp32", "fp64", "bf16", "fp16"] = "fp32"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    deterministic: bool = True
    checkpoint_every: Count | None = 1000
    tensorboard: bool = True


class ValidationConfig(Section):
    """What chooses the best checkpoint.

    Attributes:
        every: epochs between validations; the last epoch always has one.
        fraction: of the training data, held out to validate on.
        on_test_set: validate on the test set, as the authors do: the best checkpoint is then chosen on the data that
            it is judged on. Nothing is held out of the training data then.
        batch_size: samples at a time, for each process; also of ``eval``.
        pictures: sequences drawn after each validation.
    """

    every: Count = 1
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    on_test_set: bool = False
    batch_size: Count = 16
    pictures: Whole = 3


class Config(Section):
    """Everything that decides a training run."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SamplingConfig = SamplingConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = ValidationConfig()

    @field_validator("data", mode="before")
    @classmethod
    def _has_data(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def total_frames(self) -> int:
        """Frames of a sequence."""
        return self.data.in_frames + self.data.out_frames

    def to_yaml(self) -> str:
        """Readable, and read back by :func:`load`."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Lists on one line."""


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))


def open_split(config: Config, split: str) -> VideoDataset:
    """The ``"train"``, ``"validation"`` or ``"test"`` sequences of a configuration.

    Raises:
        ConfigError: an option does not fit the data set, or its files are missing or damaged.
    """
    data, validation = config.data, config.validation
    lengths = {"train": data.train_length, "validation": data.validation_length, "test": data.test_length}
    if data.root is None and data.name != "digits":
        raise ConfigError(f"data.root: missing, expected where the files of data set {data.name} are: --data-root PATH")
    own = ("stride", "frame_step", "grayscale", "cache", "test_fraction")
    try:
        return open_dataset(
            data.name,
            data.root,
            "test" if split == "validation" and validation.on_test_set else split,
            in_frames=data.in_frames,
            out_frames=data.out_frames,
            frame_size=data.frame_size,
            seed=config.training.seed,
            length=lengths[split],
            validation_fraction=0.0 if validation.on_test_set else validation.fraction,
            **{name: getattr(data, name) for name in own if getattr(data, name) is not None},
        )
    except (ValueError, TypeError, FileNotFoundError) as error:
        argument, colon, rest = str(error).partition(":")
        option = {"length": f"{split}_length", "image_size": "frame_size"}.get(argument, argument)
        # What is no option is a file, or all files of a root that has been named.
        known = option in DataConfig.model_fields
        raise ConfigError(f"data.{option}{colon}{rest}" if known else str(error)) from error


def frame_shape(config: Config) -> tuple[int, int, int]:
    """``(C, H, W)`` of the benchmarks' frames, without opening any file.

    Raises:
        ConfigError: the data set is one of the user's own, whose frames only its files know.
    """
    name = config.data.name
    if name not in _FRAME_SHAPES:
        raise ConfigError(f"data.name: got {name!r}, expected one of {', '.join(_FRAME_SHAPES)}")
    channels, height, width = _FRAME_SHAPES[name]
    return (channels, *(config.data.frame_size or (height, width)))


def check_backend(config: Config, device: torch.device) -> None:
    """Whether the model's backend is one of this build and takes tensors of the device. Not a check of the option
    itself: a run may have been made on another machine.

    Raises:
        ConfigError: it does not.
    """
    if config.model.backend == REFERENCE:
        return
    try:
        select_backend(config.model.backend, device)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"model.{error}") from error


def build_model(config: Config, frame_shape: Sequence[int]) -> SpikingPredictor:
    """The untrained predictor of frames ``(C, H, W)``.

    Raises:
        ConfigError: the model and the frames do not fit.
    """
    try:
        return SpikingPredictor(
            in_shape=(config.data.in_frames, *frame_shape),
            out_frames=config.data.out_frames,
            **config.model.model_dump(),
        )
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error


def preset_names() -> list[str]:
    """Of the configurations that the package ships."""
    folder = resources.files(__package__) / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(source: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> Config:
    """Reads a preset by name, or a YAML file, and applies changes.

    Args:
        source: a name from :func:`preset_names`, or the path of a file such as a run's ``config.yaml``.
        changes: dotted name of an option -> its new value.

    Raises:
        ConfigError: there is no such preset or file, it is not YAML, an option is unknown (the message names the
            nearest), or a value has the wrong type or range.
    """
    return parse(_changed(_read(source), changes or {}))


def change(config: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with other values; arguments and errors as :func:`load`."""
    return parse(_changed(config.model_dump(mode="json"), changes)) if changes else config


def parse(values: Mapping[str, Any]) -> Config:
    """A configuration from nested plain values; errors as :func:`load`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(problem) for problem in error.errors())) from error


def parse_change(text: str) -> tuple[str, Any]:
    """``"optimizer.lr=1e-3"`` as a dotted name and a value, which is read as YAML.

    Raises:
        ConfigError: there is no ``=``, or what follows it is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {text}: expected SECTION.OPTION=VALUE, such as optimizer.lr=1e-3")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: the value {value!r} is not YAML: {error}") from error


def _changed(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    known = list(_option_names())
    for name, value in changes.items():
        section, _, option = name.partition(".")
        if name not in known:
            raise ConfigError(f"{name}: there is no such option; {_nearest(name, known)}")
        values[section] = {**(values.get(section) or {}), option: value}
    return values


def _read(source: str | os.PathLike[str]) -> dict[str, Any]:
    name = os.fspath(source)
    if name in preset_names():
        text = (resources.files(__package__) / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(
                f"{name}: neither a preset ({', '.join(preset_names())}) nor a YAML file; "
                f"{_nearest(name, preset_names())}"
            )
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: got a {type(values).__name__}, expected sections: {', '.join(Config.model_fields)}")
    return {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}


def _option_names() -> Iterator[str]:
    for section, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, Section)
        for option in field.annotation.model_fields:
            yield f"{section}.{option}"


def _nearest(name: str, known: Sequence[str]) -> str:
    # The last part alone finds a right option in a wrong or missing section.
    ends = {option: option.rpartition(".")[2] for option in known}
    same = [option for option, end in ends.items() if end == name.rpartition(".")[2]]
    near = same or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    if not near:
        close = difflib.get_close_matches(name.rpartition(".")[2], ends.values(), n=1, cutoff=0.4)
        near = [option for option, end in ends.items() if close and end == close[0]]
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _explain(problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
    if problem["type"] == "extra_forbidden":
        known = list(_option_names()) if "." in name else list(Config.model_fields)
        return f"{name}: there is no such option; {_nearest(name, known)}"
    if problem["type"] == "missing":
        short = isinstance(problem["loc"][-1], int)
        return f"{name}: got {problem['input']!r}, expected more values" if short else f"{name}: missing"
    if problem["type"] == "value_error":
        return f"{name}.{problem['ctx']['error']}" if name else str(problem["ctx"]["error"])
    return f"{name}: got {problem['input']!r}, expected {str(problem['msg']).removeprefix('Input should be ')}"
