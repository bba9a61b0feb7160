"""Checkpoints of the authors' models: their names and shapes written out, their files, and files that do not fit."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import BAND
from torch import Tensor

from stc_cuda.models import SpikingPredictor, read_official_checkpoint

Shapes = dict[str, tuple[int, ...]]
SMALL: dict[str, Any] = {
    "in_shape": (2, 1, 8, 12), "out_frames": 3, "hidden": (8, 8), "patch_size": 2, "kernel_size": 5, "groups": 4,
}  # fmt: skip
DATA_SETS: dict[str, dict[str, Any]] = {
    "moving_mnist": {"in_shape": (10, 1, 64, 64), "out_frames": 10, "patch_size": 2},
    "taxibj": {"in_shape": (4, 2, 32, 32), "out_frames": 4, "patch_size": 1},
    "kth": {"in_shape": (10, 1, 128, 128), "out_frames": 20, "patch_size": 4},
}
COUNTS = {
    ("stclif", "moving_mnist"): 3_922_432,
    ("stclif", "taxibj"): 3_909_120,
    ("stclif", "kth"): 4_002_304,
    ("lif", "moving_mnist"): 3_304_960,
    ("lif", "taxibj"): 3_291_648,
    ("lif", "kth"): 3_384_832,
}
SCALARS = {
    "lif": (),
    "plif": ("t_m",),
    "lmh": ("t_m", "s_u", "s_p", "d_u", "d_p"),
    "tclif": ("t_m", "s_u", "s_p", "d_u", "d_p"),
    "glif": (),
    "stclif": (),
    "stcplif": ("t_m",),
    "stclmh": ("t_m", "s_u", "s_p", "d_u", "d_p"),
}
GLIF = ("alpha", "beta", "gamma", "tau", "Vth", "leak", "reVth")


def official(neuron: str, hidden: int, layers: int, patch_channels: int, in_group: int) -> Shapes:
    """What the authors' models save, from their documentation and not from ours."""
    shapes: Shapes = {}
    for i in range(layers):
        cell = f"cell_list.{i}"
        shapes[f"{cell}.conv_x.0.weight"] = (hidden, patch_channels if i == 0 else hidden, 5, 5)
        shapes[f"{cell}.conv_x.1.weight"] = shapes[f"{cell}.conv_x.1.bias"] = (hidden,)
        if neuron.startswith("stc"):
            for pathway in ("conv_h", "conv_v"):
                shapes[f"{cell}.{pathway}.0.weight"] = (hidden, in_group, 5, 5)
                shapes[f"{cell}.{pathway}.1.weight"] = shapes[f"{cell}.{pathway}.1.bias"] = (hidden,)
        shapes |= {f"{cell}.{name}": (1,) for name in SCALARS[neuron]}
        if neuron == "glif":
            shapes |= {f"{cell}.glif.{name}": (hidden,) for name in GLIF}
            shapes[f"{cell}.glif.conduct"] = (1, hidden)
    shapes["conv_last.weight"] = (patch_channels, hidden, 1, 1)
    return shapes


def small(neuron: str) -> dict[str, Tensor]:
    """Weights of a checkpoint that fits ``SMALL``."""
    rng = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=rng) for name, shape in official(neuron, 8, 2, 4, 2).items()}


def save(folder: Path, content: object, name: str = "checkpoint.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def as_latest(weights: dict[str, Tensor], prefix: str) -> dict[str, object]:
    """The shape of latest.pth, written in the middle of training."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    parameter.sum().backward()
    optimizer.step()
    return {
        "epoch": 7,
        "optimizer": optimizer.state_dict(),
        "state_dict": {prefix + name: x for name, x in weights.items()},
        "scheduler": scheduler.state_dict(),
    }


def assert_holds(model: SpikingPredictor, weights: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == weights.keys()
    for name, x in weights.items():
        assert torch.equal(own[name], x), name


# --- what fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", SCALARS)
@pytest.mark.parametrize("data_set", DATA_SETS)
def test_names_and_shapes_at_paper_size(neuron: str, data_set: str) -> None:
    settings = DATA_SETS[data_set]
    with torch.device("meta"):
        model = SpikingPredictor(neuron, **settings)
    patch_channels = settings["patch_size"] ** 2 * settings["in_shape"][1]
    expected = official(neuron, 256, 3, patch_channels, 16)
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == expected
    if (neuron, data_set) in COUNTS:
        assert sum(p.numel() for p in model.parameters()) == COUNTS[neuron, data_set]


@pytest.mark.parametrize("neuron", SCALARS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "model.module."])
@pytest.mark.parametrize("latest", [False, True])
def test_loads_all_of_it(tmp_path: Path, neuron: str, prefix: str, latest: bool) -> None:
    weights = small(neuron)
    content = as_latest(weights, prefix) if latest else {prefix + name: x for name, x in weights.items()}
    model = SpikingPredictor(neuron, **SMALL)
    model.load_official_checkpoint(save(tmp_path, content, "latest.pth" if latest else "checkpoint.pth"))
    assert_holds(model, weights)
    frames = torch.rand(1, 5, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    assert model(frames).isfinite().all()


def test_a_model_in_double_precision_keeps_it(tmp_path: Path) -> None:
    model = SpikingPredictor("stclif", **SMALL).double()
    weights = small("stclif")
    model.load_official_checkpoint(str(save(tmp_path, weights)))
    assert_holds(model, {name: x.double() for name, x in weights.items()})


# --- what does not --------------------------------------------------------------------------------------------------


class Danger:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch STC_CUDA_WAS_HERE",)


def refused(model: SpikingPredictor, path: Path, match: str, error: type[Exception] = ValueError) -> None:
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(error, match=match):
        model.load_official_checkpoint(path)
    assert_holds(model, before)


# LM-H and TC-LIF have the same names and shapes, so that nothing tells their checkpoints apart.
OTHERS = [(a, b) for a, b in itertools.permutations(SCALARS, 2) if {a, b} != {"lmh", "tclif"}]


@pytest.mark.parametrize(("neuron", "other"), OTHERS)
def test_another_neuron(tmp_path: Path, neuron: str, other: str) -> None:
    name = "lmh or tclif" if other in ("lmh", "tclif") else other
    match = rf"(?s)checkpoint\.pth: the checkpoint does not fit the model.*checkpoint: neuron {name}, hidden \(8, 8\)"
    refused(SpikingPredictor(neuron, **SMALL), save(tmp_path, small(other)), match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden": (8, 16)}, r"model: +neuron stclif, hidden \(8, 16\).*other shapes: .*\[8, 8, 5, 5\] in the check"),
        ({"hidden": (8,)}, r"model: +neuron stclif, hidden \(8,\).*not in the model: cell_list\.1\.conv_x"),
        ({"hidden": (8, 8, 8)}, r"missing in the checkpoint: cell_list\.2\.conv_x.*\.\.\. \d+ more"),
        ({"kernel_size": 3}, r"checkpoint: .*kernel_size 5.*model: .*kernel_size 3"),
        ({"patch_size": 1}, r"checkpoint: .*patch_size\^2 \* C 4.*model: .*patch_size\^2 \* C 1"),
        ({"groups": 2}, r"other shapes: cell_list\.0\.conv_h\.0\.weight: \[8, 2, 5, 5\] in the checkpoint, \[8, 4,"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_another_size(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    refused(SpikingPredictor("stclif", **{**SMALL, **changes}), save(tmp_path, small("stclif")), f"(?s){match}")


def test_a_weight_too_few_and_one_too_many(tmp_path: Path) -> None:
    model, weights = SpikingPredictor("stclif", **SMALL), small("stclif")
    refused(model, save(tmp_path, {**weights, "extra": torch.zeros(1)}), r"not in the model: extra")
    del weights["conv_last.weight"]
    refused(model, save(tmp_path, weights), r"missing in the checkpoint: conv_last\.weight")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], r"got a list, expected a state dict"),
        (torch.zeros(3), r"got a Tensor, expected a state dict"),
        ({}, r"got a dictionary with nothing, expected a state dict"),
        ({"epoch": 3, "lr": 0.1}, r"got a dictionary with 'epoch', 'lr', expected a state dict"),
        ({"state_dict": {"a": 1}}, r"got a dictionary with 'a', expected a state dict"),
        (
            {"a": torch.zeros(2), "bn.batches": torch.tensor(3), "n": 1},
            r"got a dictionary with 'bn\.batches' \(int64\), 'n' \(int\) among its tensors, expected a state dict",
        ),
        (
            {"a": torch.zeros(2), "b": torch.zeros(2).to_sparse(), "c": torch.zeros(2, device="meta")},
            r"with 'b' \(float32, torch\.sparse_coo\), 'c' \(float32, meta\) among its tensors",
        ),
        ({"module.a": torch.zeros(2), "a": torch.zeros(2)}, r"got 'a' with two prefixes, expected every name once"),
        ({"weight": torch.zeros(2)}, r"(?s)does not fit the model.*no layers cell_list\.0"),
        ({"cell": Danger()}, r"cannot be read as a checkpoint of tensors and plain values"),
        ({"state_dict": {}, "hook": Danger()}, r"cannot be read as a checkpoint of tensors and plain values"),
    ],
    ids=range(11),
)
def test_not_a_checkpoint(tmp_path: Path, content: object, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, content)
    monkeypatch.chdir(tmp_path)
    refused(SpikingPredictor("stclif", **SMALL), path, match)
    assert not (tmp_path / "STC_CUDA_WAS_HERE").exists()


def test_a_bare_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(pickle.dumps(Danger(), protocol=2))
    refused(SpikingPredictor("stclif", **SMALL), path, "cannot be read as a checkpoint")
    assert not (tmp_path / "STC_CUDA_WAS_HERE").exists()
    pickle.loads(path.read_bytes())  # guards the test: whoever trusts the file runs the command
    assert (tmp_path / "STC_CUDA_WAS_HERE").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, kept: float) -> None:
    path = save(tmp_path, small("stclif"))
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    refused(SpikingPredictor("stclif", **SMALL), path, r"checkpoint\.pth: cannot be read as a checkpoint")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("<html>404: not found</html>", "Unsupported operand 60"),
        ("version https://git-lfs.github.com/spec/v1", "Unsupported operand 118"),
        ("hello", "KeyError: 101"),
        ("", "EOFError"),
    ],
)
def test_text(tmp_path: Path, text: str, cause: str) -> None:
    """And without PyTorch's advice to load it with weights_only=False."""
    path = tmp_path / "checkpoint.pth"
    path.write_text(text)
    match = rf"checkpoint\.pth: cannot be read as a checkpoint of tensors and plain values: {cause}\Z"
    refused(SpikingPredictor("stclif", **SMALL), path, match)


def test_prefixes_of_some_keys(tmp_path: Path) -> None:
    weights = small("stclif")
    mixed = {("module." if i % 2 else "model.module.") + name: x for i, (name, x) in enumerate(weights.items())}
    model = SpikingPredictor("stclif", **SMALL)
    model.load_official_checkpoint(save(tmp_path, mixed))
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())


def test_a_model_without_memory(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = SpikingPredictor("stclif", **SMALL)
    with pytest.raises(ValueError, match=r"model: got weights on the meta device.*model\.to_empty\(\)"):
        model.load_official_checkpoint(save(tmp_path, small("stclif")))


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "missing.pth"
    refused(SpikingPredictor("stclif", **SMALL), path, r"missing\.pth", FileNotFoundError)


# --- known equalities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_untrained_stclmh_predicts_like_stclif(tmp_path: Path, dtype: torch.dtype) -> None:
    """All logits at 0. In float32 sums in another order may flip a spike in the band; none does with these weights."""
    torch.manual_seed(0)
    one, other = (SpikingPredictor(name, **SMALL).to(dtype) for name in ("stclmh", "stclif"))
    other.load_state_dict({name: x for name, x in one.state_dict().items() if name in other.state_dict()})
    frames = torch.rand(2, 5, 1, 8, 12, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = other(frames)
    assert expected.std() > 0.01
    tolerance = BAND if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(one(frames), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("content", [b"hello world\n" * 20, b"\x80\x02.", b"\x80", b""], ids=repr)
def test_bytes_that_are_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_official_checkpoint(path)


@pytest.mark.parametrize("weight", [torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.complex64)], ids=str)
def test_tensors_that_are_no_weights(weight: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"cell_list.0.conv_x.0.weight": weight}, path)
    with pytest.raises(ValueError, match="expected a state dict"):
        read_official_checkpoint(path)
