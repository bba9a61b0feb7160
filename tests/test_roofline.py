"""The model of the persistent kernels: its counts, against numbers found otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import stc_cuda
from bench import machine_code, report, roofline
from bench.cases import BACKWARD, DETACHED, FORWARD, ROLLOUT, TRAINING, Layer, layer_cases
from bench.contestants import GRAPH, OURS
from bench.kernels import ARCHITECTURES, ToolError
from bench.latency import Row
from bench.limits import Ceilings
from bench.roofline import GPUS, Split, predict

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


FORWARD_KERNEL = "persistent_forward<Channels=16, Kernel=5, Runs={}, ResidentWeights={}, Cell=StcLif>"
BACKWARD_KERNEL = "persistent_backward<Channels=16, Kernel=5, Runs={}, Attached={}, Cell=StcLif>"
WEIGHT_KERNEL = "weight_gradient_partials<Channels=16, Kernel=5>"


@pytest.mark.parametrize("runs", [1, 2, 4])
def test_machine_code_times_trips_gives_the_sources_products(runs: int) -> None:
    """Tensor-core instructions of each compiled loop, as often as it is run, against the sizes of the layer."""
    h100, warps, all_runs = GPUS["h100"], 16, 16 * runs
    for resident in ("true", "false"):
        trips = roofline.forward_trips(PAPER, runs, warps)
        forward = roofline.block(h100, FORWARD_KERNEL.format(runs, resident), warps, trips)
        assert forward.mma == roofline.gate_mma(PAPER, all_runs)
    for attached in (False, True):
        trips = roofline.backward_trips(PAPER, runs, warps, attached)
        backward = roofline.block(h100, BACKWARD_KERNEL.format(runs, str(attached).lower()), warps, trips)
        transposed = roofline.transposed_mma(PAPER, all_runs) if attached else 0
        assert backward.mma == roofline.gate_mma(PAPER, all_runs) + transposed
    weights = roofline.block(h100, WEIGHT_KERNEL, 20, roofline.weight_trips(PAPER))
    assert weights.mma == roofline.weight_mma(PAPER)
    for cost in (forward, backward, weights):
        assert cost.step >= max(cost.tensor, cost.issue) > 0


def test_machine_code_has_the_barriers_of_the_sources() -> None:
    def in_the_loop(name: str, first: str, last: str) -> int:
        text = (ROOT / "csrc" / "cuda" / name).read_text()
        return text[text.index(first) : text.index(last)].count("__syncthreads()")

    def compiled(name: str) -> int:
        return sum(loop["units"]["barriers"] for loop in roofline.loops()[name])

    forward = in_the_loop("persistent_forward.cuh", "for (int t = 0;", "store4(p.states")
    backward = in_the_loop("persistent_backward.cuh", "for (int t = steps - 1;", "double* partial_sums")
    assert compiled(FORWARD_KERNEL.format(4, "true")) == forward == 2
    assert compiled(BACKWARD_KERNEL.format(4, "true")) == backward == 7  # two of them around each chunk
    assert compiled(BACKWARD_KERNEL.format(4, "false")) == backward - 2


def test_record_is_the_machine_code_of_the_extension() -> None:
    record = json.loads(machine_code.RECORD.read_text())
    if stc_cuda.build_info()["cuda"] != record["cuda"]:
        pytest.skip(f"the record is of CUDA {record['cuda']}, which compiles in its own way")
    try:
        codes = machine_code.kernels_of(Path(stc_cuda._C.__file__))
    except ToolError as error:
        pytest.skip(str(error))
    assert codes.keys() == record["kernels"].keys()
    for name, code in codes.items():
        loops = machine_code.loops_of(code)
        counts = [{key: loop[key] for key in ("role", "instructions", "units")} for loop in record["kernels"][name]]
        assert [machine_code.counted(loop) for loop in loops] == counts, name
        products = next(i for i, (role, _) in enumerate(loops) if role == "products")
        assert machine_code.simulated(loops[products]) == record["kernels"][name][products]["cycles"], name


def instructions(*lines: tuple[str, int, int, int]) -> list[machine_code.Instruction]:
    """From text, stall, scoreboard set (7: none) and mask of those waited for."""
    return [
        machine_code.Instruction(16 * i, text, stall | board << 5 | 7 << 8 | mask << 11)
        for i, (text, stall, board, mask) in enumerate(lines)
    ]


def test_simulated_warps_obey_the_machine_code() -> None:
    def cycles(warps: int, *lines: tuple[str, int, int, int]) -> float:
        return machine_code.simulate(instructions(*lines), warps)

    add, shift, product = ("FADD R0, R1, R2", 1, 7, 0), ("SHF.L R0, R1, R2", 1, 7, 0), ("HMMA.16816.F32 R0", 1, 7, 0)
    assert cycles(1, ("FADD R0, R1, R2", 5, 7, 0)) == pytest.approx(5, abs=0.3)  # one warp waits as long as it is told
    assert cycles(4, ("FADD R0, R1, R2", 5, 7, 0)) == pytest.approx(5, rel=0.1)  # others fill the gap
    assert cycles(8, ("FADD R0, R1, R2", 5, 7, 0)) == pytest.approx(8, rel=0.1)  # until the slots are full
    assert cycles(4, *[add] * 10) == pytest.approx(40, rel=0.1)  # a slot a cycle
    assert cycles(4, *[shift] * 10) == pytest.approx(80, rel=0.1)  # 16 lanes
    assert cycles(4, *[product] * 10) == pytest.approx(40 * machine_code.TENSOR_CYCLES, rel=0.1)
    load = ("LDS R0, [R1]", 1, 0, 0)
    assert cycles(1, load, ("FADD R0, R0, R2", 1, 7, 1)) == pytest.approx(machine_code.LATENCIES["LDS"] + 1, rel=0.1)
    wide = ("LDS.128 R0, [R1]", 1, 0, 0)
    assert cycles(4, *[wide] * 10) == pytest.approx(4 * 10 * 16, rel=0.1)  # four schedulers, four cycles each


SASS = """
		Function : kernel
        /*0000*/                   MOV R1, c[0x0][0x28] ;          /* 0x0000000000000000 */
                                                                   /* 0x000fe20000000f00 */
        /*0010*/                   FADD R2, R2, R3 ;               /* 0x0000000000000000 */
                                                                   /* 0x000fc80000000000 */
        /*0020*/              @P0 BRA 0x50 ;                       /* 0x0000000000000000 */
                                                                   /* 0x000fea0003800000 */
        /*0030*/                   STG.E.128 desc[UR4][R4.64], R8 ; /* 0x0000000000000000 */
                                                                   /* 0x000fe2000c101d04 */
        /*0040*/                   BRA 0x60 ;                      /* 0x0000000000000000 */
                                                                   /* 0x000fea0003800000 */
        /*0050*/                   STG.E desc[UR4][R4.64], R8 ;    /* 0x0000000000000000 */
                                                                   /* 0x000fe2000c101904 */
        /*0060*/              @!P1 BRA 0x10 ;                      /* 0x0000000000000000 */
                                                                   /* 0x000fea000383ffff */
        /*0070*/                   EXIT ;                          /* 0x0000000000000000 */
                                                                   /* 0x000fea0003800000 */
"""


def test_way_through_a_loop_is_that_of_whole_fours() -> None:
    code = machine_code.Code(machine_code.read_code(SASS)["kernel"])
    assert code.loops == {0x10: 0x60}
    way, inside = code.path(0x10, lambda one: one.narrow)
    assert [one.address for one in way] == [0x10, 0x20, 0x30, 0x40, 0x60]
    assert not inside
    assert [one.stall for one in way] == [4, 5, 1, 5, 5]
    narrow, _ = code.path(0x10, lambda one: ".128" in one.name)
    assert [one.address for one in narrow] == [0x10, 0x20, 0x50, 0x60]


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
    assert terms.kernels == 2
    assert terms.seconds == pytest.approx(max(terms.tensor, terms.issue) + terms.waits + terms.launches)
    assert terms.seconds > terms.memory


@pytest.mark.parametrize("gpu", GPUS)
def test_predictions_hang_together(gpu: str) -> None:
    for case in layer_cases("cuda", ["moving-mnist", "rollout"], ["18%"]):
        for what in case.passes:
            terms = predict(GPUS[gpu], case.layer, what)
            assert terms.seconds > max(terms.memory, terms.tensor)
            assert terms.bound in ("memory", "tensor cores", "issue", "waits", "launches", "waves")
    attached, detached = (predict(GPUS[gpu], PAPER, what) for what in (BACKWARD, BACKWARD + DETACHED))
    assert attached.seconds > detached.seconds
    assert (attached.kernels, detached.kernels) == (6, 5)
    both, forward = (predict(GPUS[gpu], PAPER, what) for what in (TRAINING, FORWARD))
    assert list(both.each) == ["persistent_forward", "persistent_backward", "weight_gradient_partials"]
    assert sum(both.each.values()) < both.seconds < sum(both.each.values()) + 8 * roofline.SMALL_LAUNCH
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


def test_predictions_for_the_h100_are_near_what_it_took() -> None:
    """Nothing in the model is fitted to these; calls in CUDA graphs are free of what Python costs."""
    results = report.Results.from_json(ROOT / "bench" / "results" / "latency_h100_graph.json")
    found, seen = roofline.measured(results), set()
    for case in layer_cases("cuda", ["moving-mnist", "taxibj", "kth", "rollout"], ["18%"]):
        for what in case.passes:
            predicted = 1e3 * predict(GPUS["h100"], case.layer, what).seconds
            graph = found.get((str(case.layer), what, GRAPH))
            if graph is not None:
                assert 1 < graph / predicted < (1.65 if what == ROLLOUT else 1.35), (case, what)
                seen.add(what)
            elif what.startswith(BACKWARD):
                assert 1 < found[str(case.layer), what, OURS] / predicted < 1.4, (case, what)
    assert seen == {FORWARD, TRAINING, TRAINING + DETACHED, ROLLOUT}


@pytest.mark.parametrize("anew", [False, True])
def test_split_units_fill_the_card(anew: bool) -> None:
    """Of the design for small batches: parts of a unit side by side, until they have to take turns."""
    gpu, one, four = GPUS["h100"], Layer(10, 1), Layer(10, 4)
    split = {blocks: Split(blocks, anew) for blocks in (1, 2, 4)}
    whole, half, quarter = (predict(gpu, one, FORWARD, split[blocks]) for blocks in (1, 2, 4))
    assert whole.seconds > half.seconds > quarter.seconds > whole.seconds / 4
    assert whole.mma == half.mma == quarter.mma
    assert (whole.even, half.even) == (pytest.approx(16 / 132), pytest.approx(32 / 132))
    assert predict(gpu, four, FORWARD, split[2]).turns == 1
    assert predict(gpu, four, FORWARD, split[4]).turns == 2
    plan = roofline._plan(gpu, one, False, True, split[4])
    assert (plan.runs_per_warp, plan.warps, plan.tasks) == ((1, 16, 64) if anew else (4, 4, 64))
    # without clusters the blocks meet by way of the second-level cache
    meetings = [roofline._meetings(GPUS[name], split[2], 1) for name in ("h100", "a100")]
    assert 0 == roofline._meetings(gpu, split[1], 2) < meetings[0] < meetings[1]


def test_small_batches_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main(["--gpu", "h100", "--blocks-per-unit", "2", "4"])
    printed = capsys.readouterr().out
    layer = Layer(1, 2, carried=True)
    whole, *others = (
        predict(GPUS["h100"], layer, ROLLOUT, split).seconds
        for split in (Split(), Split(2), Split(2, True), Split(4), Split(4, True))
    )
    a, b, c, d = (f"{report.number(1e3 * each)} ({report.number(whole / each)}x)" for each in others)
    assert f"| T=1, N=2 | rollout step | 32 | 76% | {report.number(1e3 * whole)} | {a}; {b} | {c}; {d} |" in printed


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
    with pytest.raises(ValueError, match=r"runs persistent_forward<Channels=8, .*expected one of .*loops.json"):
        predict(GPUS["h100"], Layer(1, 1, 128, 16), FORWARD)
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
