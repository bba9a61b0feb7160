"""``stc-cuda compare`` against a stand-in for the authors' repository, made of authors.py."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authors
import pytest
import torch

from stc_cuda.cli import main
from stc_cuda.models import SpikingPredictor
from stc_cuda.train import comparison, load

SIZES = {
    "data.frame_size": "[16, 16]", "data.in_frames": "3", "data.out_frames": "3",
    "model.hidden": "[16, 32]", "model.patch_size": "2", "model.kernel_size": "3", "model.groups": "16",
}  # fmt: skip
#: What a model needs and no other: their packages import all of OpenSTL.
NOT_TO_BE_RUN = "raise RuntimeError('executed a file that no model needs')\n"
#: Their code makes its zeros of the default dtype, casts spikes to float32 and waits for a GPU.
MODELS = """
import torch
from openstl.modules import {cells}
from openstl.modules import Model

{classes}
"""
CLASS = """
class {name}_Model(Model):
    cell = {name}Cell

    def forward(self, frames, mask, **options):
        torch.cuda.synchronize()
        zeros = torch.zeros(1)
        assert zeros.to(self.configs.device).dtype == zeros.float().dtype == frames.dtype
        return super().forward(frames, mask)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Laid out as theirs."""
    root = tmp_path / "their code"
    names = [neuron.upper() for neuron in authors.CELLS]
    models = MODELS.format(
        cells=", ".join(f"{name}Cell" for name in names), classes="".join(CLASS.format(name=name) for name in names)
    )
    for part in ("", "modules", "models"):
        (root / "openstl" / part).mkdir(parents=True, exist_ok=True)
        (root / "openstl" / part / "__init__.py").write_text(NOT_TO_BE_RUN)
    (root / "openstl" / "modules" / "convlif_modules.py").write_text(Path(authors.__file__).read_text())
    (root / "openstl" / "models" / "convlif_model.py").write_text(models)
    return root


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def cells_of(repository: Path) -> Path:
    return repository / "openstl" / "modules" / "convlif_modules.py"


def models_of(repository: Path) -> Path:
    return repository / "openstl" / "models" / "convlif_model.py"


def compare(repository: Path, *arguments: str, **changes: Any) -> int:
    sizes = {**SIZES, **{name.replace("__", "."): str(value) for name, value in changes.items()}}
    options = [part for name, value in sizes.items() for part in ("--set", f"{name}={value}")]
    return main(["compare", "digits", "--repository", str(repository), "--device", "cpu", *options, *arguments])


@pytest.mark.parametrize("detach", [False, True])
def test_all_eight_agree_in_double_precision(
    repository: Path, detach: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Their code's casts, which must not end in single precision.
    edit(cells_of(repository), "return (z > 0).to(z.dtype)", "return (z > 0).float()")
    file = tmp_path / "figures.json"
    assert compare(repository, "--json", str(file), "--samples", "2", model__gradient_detach=detach) == 0
    text = capsys.readouterr().out
    assert text.count("EQUAL within 1e-09") == 8
    assert text.endswith("8 of 8 agree\n")
    results = json.loads(file.read_text())
    assert [result["neuron"] for result in results] == list(authors.CELLS)
    for result in results:
        assert (result["steps"], result["samples"], result["complaints"]) == (5, 2, [])
        assert all(0 < x["theirs"] < x["of"] and x["differ"] == 0 for x in result["spikes"])
        assert result["loss"]["theirs"] > 0
        assert result["loss"]["relative"] < 1e-12
        names = dict(authors.build(result["neuron"], ARGUMENTS).named_parameters())
        assert result["gradients"].keys() == names.keys()
        convolutions = [pair for name, pair in result["gradients"].items() if name.endswith("conv_x.0.weight")]
        assert all(pair["theirs"] > 0 and pair["relative"] < 1e-9 for pair in convolutions)


ARGUMENTS: dict[str, Any] = {
    "in_shape": (3, 1, 16, 16), "out_frames": 3, "hidden": (16, 32), "patch_size": 2, "kernel_size": 3, "groups": 16,
}  # fmt: skip


@pytest.mark.parametrize("neuron", ["lif", "stclif", "glif"])
def test_single_precision_beside_its_own_error(
    repository: Path, neuron: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    assert compare(repository, "--neuron", neuron, "--precision", "fp32", "--json", str(file)) == 0
    assert "EQUAL within 4 times their own error" in capsys.readouterr().out
    (result,) = json.loads(file.read_text())
    assert 0 < result["predictions"]["their_error"] < 1e-4
    assert 0 < result["predictions"]["our_error"] < 1e-4


@pytest.mark.parametrize(
    ("neuron", "old", "new", "complaint"),
    [
        ("lif", "return (v + current) / 2", "return (v + current) / 2.00001", "predictions|gradient of cell_list.0"),
        (
            "stclif",
            "return temporal * v + spatial * current",
            "return spatial * v + temporal * current",
            "spikes of la",
        ),
        ("plif", "(1 - self.t_m) * current", "(1 - torch.sigmoid(self.t_m)) * current", "spikes of layer 0"),
        ("lmh", "u - spikes.detach(), d", "u - spikes, d", "gradient of cell_list.0.conv_x.0.weight"),
        ("glif", "(ctx.saved_tensors[0].abs() < 0.5)", "(ctx.saved_tensors[0].abs() < 0.4)", "gradient of cell_list"),
    ],
)
def test_a_difference_is_seen_and_named(
    repository: Path, neuron: str, old: str, new: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(cells_of(repository), old, new)
    assert compare(repository, "--neuron", neuron) == 3
    text = capsys.readouterr().out
    assert re.search(rf"^DIFFERENT.*({complaint})", text, flags=re.MULTILINE)
    assert text.endswith(f"0 of 1 agree; not {neuron}\n")


def test_a_difference_is_seen_in_single_precision(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(cells_of(repository), "return (v + current) / 2", "return (v + current) / 2.001")
    assert compare(repository, "--neuron", "lif", "--precision", "fp32") == 3
    assert re.search(
        r"DIFFERENT; step \d, layer \d: \d+ spikes differ .* rounding cannot be why", capsys.readouterr().out
    )


@pytest.mark.parametrize(("undecided", "later", "verdict"), [(True, 0.0, 0), (False, 0.0, 1), (True, 1.0, 0)])
def test_a_flip_is_rounding_only_near_the_threshold(undecided: bool, later: float, verdict: int) -> None:
    """What comes after such a flip is not judged, and what came before is."""

    def outcome(flip: bool, off: float) -> comparison._Outcome:
        spikes = torch.zeros(4, 1, 1, 2, 2, dtype=torch.bool)
        spikes[2, 0, 0, 1, 1] = flip
        predictions = torch.ones(1, 4, 1, 2, 2, dtype=torch.float64)
        predictions[:, 2:] += off
        gradient = torch.ones(3, dtype=torch.float64) + off
        near = torch.full(spikes.shape, undecided)
        return comparison._Outcome(torch.tensor(1.0 + off), predictions, [spikes], {"weight": gradient}, [near])

    config = load("digits", {"training.precision": "fp32"})
    arguments = (config, torch.device("cpu"), 1, torch.nn.Linear(1, 1))
    exact = outcome(False, 0.0)
    result = comparison._judged(*arguments, exact, exact, outcome(True, later))
    assert result.judged_steps == 2
    assert len(result.complaints) == verdict
    assert all("step 2, layer 0: 1 spikes differ" in complaint for complaint in result.complaints)
    early = outcome(True, later)
    early.predictions[:, 1] += 1e-3
    assert len(comparison._judged(*arguments, exact, exact, early).complaints) == verdict + 1


@pytest.mark.parametrize("neuron", authors.CELLS)
def test_the_distance_to_the_threshold_of_every_neuron(neuron: str) -> None:
    model = authors.build(neuron, ARGUMENTS)
    layer = comparison._TheirSpikes(model.cell_list[0])
    potentials = []
    layer.potential = lambda *state: potentials.append(type(layer).potential(layer, *state)) or potentials[-1]  # type: ignore[method-assign]
    authors.predict(model, torch.rand(2, 6, 1, 16, 16, dtype=torch.float64), None)
    assert len(potentials) == len(layer.spikes) == 5
    for found, (expected, _) in zip(potentials, model.cell_list[0].trace, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_cancelled_number_is_held_to_the_size_of_its_peers() -> None:
    def outcome(off: float) -> comparison._Outcome:
        numbers = {"small": torch.tensor([1e-3 + off]), "large": torch.tensor([1.0])}
        gradients = {name: x.double() for name, x in {**numbers, "tensor": torch.ones(2)}.items()}
        spikes = torch.zeros(2, 1, 1, 2, 2, dtype=torch.bool)
        return comparison._Outcome(torch.tensor(1.0), torch.ones(1, 2, dtype=torch.float64), [spikes], gradients, [])

    arguments = (load("digits", {"training.precision": "fp64"}), torch.device("cpu"), 1, torch.nn.Linear(1, 1))

    def complaints(change: str, by: float) -> list[str]:
        exact, mine = outcome(0.0), outcome(0.0)
        mine.gradients[change] = mine.gradients[change] + by
        return comparison._judged(*arguments, exact, exact, mine).complaints

    assert complaints("small", 0.5e-9) == []
    assert complaints("small", 2e-9) == ["gradient of small: relative difference 2.0e-06"]
    assert complaints("tensor", 2e-9) == ["gradient of tensor: relative difference 2.0e-09"]


def test_nothing_else_is_run_and_nothing_is_left_behind(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {path for path in repository.rglob("*") if path.is_file()}
    own = type(sys)("openstl")  # the user's own OpenSTL
    monkeypatch.setitem(sys.modules, "openstl", own)
    assert compare(repository, "--neuron", "lif") == 0
    assert {path for path in repository.rglob("*") if path.is_file()} == there
    assert [name for name in sys.modules if name.startswith("openstl")] == ["openstl"]
    assert sys.modules["openstl"] is own
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(1).float().dtype == torch.ones(1, dtype=torch.float64).float().dtype == torch.float32


def test_weights_of_a_checkpoint(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], errors: Callable[..., str]
) -> None:
    torch.manual_seed(3)
    model = SpikingPredictor("stclif", **ARGUMENTS)
    torch.save({f"module.{name}": x for name, x in model.state_dict().items()}, tmp_path / "checkpoint.pth")
    arguments = ("--neuron", "stclif", "--checkpoint", str(tmp_path / "checkpoint.pth"))
    assert compare(repository, *arguments) == 0
    trained = capsys.readouterr().out
    assert compare(repository, "--neuron", "stclif") == 0
    assert capsys.readouterr().out != trained
    assert "does not fit the model" in errors(repository, "--neuron", "lif", *arguments[2:])


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The message of a comparison that cannot be made."""

    def run(*arguments: Any, **changes: Any) -> str:
        capsys.readouterr()
        assert compare(*arguments, **changes) == 1
        return capsys.readouterr().err

    return run


def test_a_folder_that_is_not_the_repository(tmp_path: Path, errors: Callable[..., str]) -> None:
    message = errors(tmp_path / "nowhere", "--neuron", "lif")
    assert "there is no openstl/modules/convlif_modules.py and no openstl/models/convlif_model.py" in message
    assert "expected a clone of the code of 'Autaptic Synaptic Circuit" in message
    assert "proceedings.mlr.press" in message


def test_a_repository_that_does_not_fit(repository: Path, errors: Callable[..., str]) -> None:
    lif = ("--neuron", "lif")
    assert "their norms have 16; type --set model.groups=16" in errors(repository, *lif, model__groups=8)
    assert "expected square frames" in errors(repository, *lif, data__name="kth", data__frame_size="[16, 32]")
    assert "training.precision: got bf16, expected fp64 or fp32" in errors(repository, *lif, "--precision", "bf16")
    models, cells = models_of(repository), cells_of(repository)
    whole = models.read_text()
    edit(models, "class LIF_Model", "class Other_Model")
    assert "has no class LIF_Model; those that end in _Model: GLIF_Model" in errors(repository, *lif)
    models.write_text(whole.replace("import torch\n", "import torch\nimport spikingjelly.of_another_world\n"))
    message = errors(repository, *lif)
    assert "convlif_model.py: needs spikingjelly" in message
    assert "pip install --no-deps spikingjelly" in message
    models.write_text(whole.replace("import torch\n", "import a_package_of_their_own\n"))
    assert "needs a_package_of_their_own, which is not installed" in errors(repository, *lif)
    models.write_text("1 / 0")
    assert "cannot be imported: ZeroDivisionError" in errors(repository, *lif)
    models.write_text(whole.replace("torch.cuda.synchronize()", "1 / 0"))
    assert "LIF_Model: cannot be run: ZeroDivisionError" in errors(repository, *lif)
    models.write_text(whole)
    edit(cells, "self.conv_last = nn.Conv2d", "self.last = nn.Conv2d")
    assert "does not take our weights" in errors(repository, *lif)
    edit(cells, "super().__init__()\n        self.configs = configs", "raise OSError('no room')")
    assert "LIF_Model: cannot be made: OSError: no room" in errors(repository, *lif)
