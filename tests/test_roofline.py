"""The model of the persistent kernels: its counts, against numbers found otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import report, roofline
from bench.cases import BACKWARD, DETACHED, FORWARD, TRAINING, Layer, layer_cases
from bench.contestants import GRAPH, OURS
from bench.kernels import ARCHITECTURES
from bench.latency import Row
from bench.limits import Ceilings
from bench.roofline import GPUS, predict

ROOT = Path(__file__).resolve().parents[1]
PAPER = Layer(19, 16)
AUDITED = Layer(3, 1)  # what tests/cuda_emulation/audit.py counts


def test_tensor_core_instructions_of_the_papers_layer() -> None:
    """A unit has 16 channels and 64 runs of 16 pixels; an instruction is a 16x8 tile over 16 (tap, channel) pairs."""
    runs = 64
    gate = 25 * 2 * (1024 // 8) * 2  # taps, m tiles, n tiles, fp16 numbers of a weight
    assert roofline.gate_mma(PAPER, runs) == gate == 12800
    assert roofline.transposed_mma(PAPER, runs) == 8 * 7 * (1024 // 8) * 6 == 43008
    assert roofline.weight_mma(PAPER) == 64 * 25 * 2 * 2 * 3 == 19200
    # what they multiply, twice and three times: once a term; the transposed ones pad 25 taps to 28
    macs = 2 * 16 * 16 * 25 * 1024
    assert gate * roofline.MACS == 2 * macs
    assert roofline.weight_mma(PAPER) * roofline.MACS == 3 * macs
    assert roofline.transposed_mma(PAPER, runs) * roofline.MACS == 6 * macs * 28 // 25
    small = Layer(1, 1, 128, 16, kernel=3)
    assert roofline.gate_mma(small, 16) == 5 * 32 * 1 * 2  # eight channels: two taps an instruction


@pytest.mark.parametrize("gpu", ["h100", "a100", "rtx4090"])
def test_traffic_is_what_the_audit_counts(gpu: str) -> None:
    """Against the table of docs/performance.md, which is the audit's."""
    kilobytes = ARCHITECTURES[GPUS[gpu].arch].shared_block
    column = {227: 3, 163: 4, 99: 5}[kilobytes]
    text = (ROOT / "docs" / "performance.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in re.findall(r"^\| (?:for|back)ward, .*", text, re.M)]
    kinds = {"inference": "inference", "training": "training", "detached": "backward", "attached": "attached"}
    seen = set()
    for cells in rows:
        title = re.match(r"(\w+), (\w+)", cells[1])
        if title is None or title[2] not in kinds or not re.fullmatch(r"[\d.]+", cells[2]):
            continue
        seen.add(title[2])
        backward = title[1] == "backward"
        plan = roofline._plan(GPUS[gpu], AUDITED, backward, attached=title[2] == "attached")
        first, again = roofline.traffic(AUDITED, plan, kinds[title[2]])
        weights = 8.125 if backward else 0.0  # z' and the bits once more, by the second launch
        assert first == pytest.approx(float(cells[2]), abs=0.01)
        assert again + weights == pytest.approx(float(cells[column]), abs=0.01)
    assert seen == kinds.keys()


def test_prediction_for_a_known_card() -> None:
    """An H100 has 132 multiprocessors for 256 units: two turns."""
    gpu = GPUS["h100"]
    terms = predict(gpu, PAPER, FORWARD)
    assert (terms.turns, terms.even) == (2, pytest.approx(256 / 132))
    assert terms.blocks == {"persistent_forward": 1}
    assert terms.mma == 12800 * 256 * 19
    assert terms.bytes == pytest.approx(8 * PAPER.neurons_and_steps, rel=1e-3)
    assert terms.memory == pytest.approx(8 * PAPER.neurons_and_steps / gpu.bandwidth, rel=1e-3)
    # two turns of 19 steps of 12,800 instructions, each 2 x 2048 operations, at a multiprocessor's part of the peak
    rate = gpu.tensor * gpu.mma_sync / gpu.multiprocessors
    assert terms.tensor == pytest.approx(2 * 19 * 12800 * 4096 / rate)
    assert terms.bound == "tensor cores"
    assert terms.kernels == 2
    assert terms.seconds >= max(terms.memory, terms.tensor)


@pytest.mark.parametrize("gpu", GPUS)
def test_predictions_hang_together(gpu: str) -> None:
    for case in layer_cases("cuda", ["moving-mnist", "rollout"], ["18%"]):
        for what in case.passes:
            terms = predict(GPUS[gpu], case.layer, what)
            assert terms.seconds > max(terms.memory, terms.tensor)
            assert terms.bound in ("memory", "tensor cores", "issue", "latency", "launches", "waves")
    attached, detached = (predict(GPUS[gpu], PAPER, what) for what in (BACKWARD, BACKWARD + DETACHED))
    assert attached.seconds > detached.seconds
    assert (attached.kernels, detached.kernels) == (6, 5)
    both, forward = (predict(GPUS[gpu], PAPER, what) for what in (TRAINING, FORWARD))
    assert both.bytes > attached.bytes + forward.bytes  # in training u is written
    assert both.seconds >= (attached.seconds + forward.seconds) * (1 - 1e-12)
    long = predict(GPUS[gpu], Layer(38, 16), FORWARD)
    assert long.seconds == pytest.approx(2 * predict(GPUS[gpu], PAPER, FORWARD).seconds, rel=0.02)


def test_launches_are_those_of_the_sources() -> None:
    folder = ROOT / "csrc" / "cuda"
    sources = {
        FORWARD: ("persistent_launch.h", "persistent_forward_launch.cuh", "persistent_forward.cu"),
        BACKWARD: (
            "persistent_launch.h",
            "persistent_backward_launch.cuh",
            "persistent_backward.cu",
            "weight_gradient.cuh",
        ),
    }
    for what, names in sources.items():
        text = "".join((folder / name).read_text() for name in names)
        launches = len(re.findall(r"launch\.(?:start|flat)\(", text))
        assert launches == predict(GPUS["h100"], PAPER, what).kernels


def test_few_units_are_bound_by_waves() -> None:
    terms = predict(GPUS["h100"], Layer(10, 1), FORWARD)
    assert (terms.turns, terms.bound) == (1, "waves")


def test_occupancy_is_that_of_the_table() -> None:
    name = "persistent_forward<Channels=8, Kernel=5, Runs=1, ResidentWeights=true, Cell=StcLif>"
    # 56 registers in 512 threads: 28,672 of 65,536 a block; half of the threads once shared memory is for one
    assert roofline.blocks_a_multiprocessor(name, 90, 512, 36_096) == 2
    assert roofline.blocks_a_multiprocessor(name, 90, 512, 128 * 1024) == 1
    assert roofline.blocks_a_multiprocessor("persistent_forward<unknown>", 90, 512, 100_000) == 1


def test_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer: got .*64x64.*general kernels .*larger than 32x32"):
        predict(GPUS["h100"], Layer(10, 16, size=64), FORWARD)
    with pytest.raises(ValueError, match="what: got 'sideways'"):
        predict(GPUS["h100"], PAPER, "sideways")


def measured_run(device: str, tmp_path: Path) -> Path:
    layer = next(iter(layer_cases("cuda", ["taxibj"], ["18%"]))).layer
    usual = {"section": "layers", "case": "taxibj", "value": None, "layer": str(layer), "steps": 7, "samples": 16}
    rows = [
        Row(**usual, channels=256, size=32, firing_rate=0.18, what=FORWARD, contestant=name, ms=ms)
        for name, ms in ((OURS, 0.5), (GRAPH, 0.4))
    ]
    path = tmp_path / "gpu.json"
    about = {"device": device, "gpu": "H100", "commit": "abc"}
    path.write_text(report.Results(about, Ceilings(1.0, 1.0, "float16"), rows).to_json())
    return path


def test_prediction_and_measurement_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measured_run("cuda", tmp_path)
    roofline.main(["--gpu", "h100", "--layers", "taxibj", "--against", str(path)])
    printed = capsys.readouterr().out
    predicted = 1e3 * predict(GPUS["h100"], Layer(7, 16), FORWARD).seconds
    ratios = f"| 0.5 | {report.number(0.5 / predicted)}x | 0.4 | {report.number(0.4 / predicted)}x |"
    assert ratios in printed
    assert "measured on H100, commit abc" in printed
    assert "NVIDIA H100 data sheet" in printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_a_run_of_a_cpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        roofline.main(["--gpu", "h100", "--against", str(measured_run("cpu", tmp_path))])
    assert "is of a CPU, expected a run with --device cuda" in capsys.readouterr().err
    (tmp_path / "other.json").write_text(json.dumps({}))
    with pytest.raises(SystemExit):
        roofline.main(["--gpu", "h100", "--against", str(tmp_path / "other.json")])
