"""``python -m bench roofline --gpu NAME``: what a GPU should take for a layer, and why, without one.

A model of STC-LIF's persistent kernels, to hold a GPU run against (``--against FILE``, of ``--json``).

* **Known**: bytes moved (the audit's, tests/cuda_emulation/audit.py), trips of the loops, launches and tensor-core
  instructions (the sources), instructions of each loop and how long a warp waits after each (the machine code,
  bench/machine_code.py and its bench/loops.json), the cut of the work (``stc_cuda.kernel_plan``), occupancy
  (docs/kernels.md).
* **Estimated**: latencies and throughputs (bench/machine_code.py), the constants below, the card's sheet. Machine code
  is that of sm_90 for all cards. Nothing is fitted to a measurement.

A kernel takes the longer of its traffic and of its busiest multiprocessor, which takes, unit after unit,

    sum over the loops (trips x cycles of an iteration, all warps of a scheduler at once) + barriers

where an iteration with tensor-core products takes no less than these. The phases of a step add up, since barriers part
them. What is left out: the misses of the instruction caches, loads that wait for a busy memory, warps that reach a
barrier late, and clocks other than the sheet's.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stc_cuda import KernelPlan, kernel_plan

from .cases import BACKWARD, DETACHED, FORWARD, PAPER_NAMES, ROLLOUT, TRAINING, USUAL_RATE, Layer, layer_cases
from .contestants import GRAPH, OURS
from .kernels import ARCHITECTURES, ROOT, Kernel
from .machine_code import DEVICE_MEMORY, ONCE, RECORD, SECOND_LEVEL
from .report import Results, number

MACS = 16 * 8 * 16  # of one m16n8k16
SCHEDULERS = 4  # of a multiprocessor, an instruction of a warp a cycle each
MAX_REGISTERS = 128  # of a thread, by the persistent kernels' launch bounds
WEIGHT_BATCH = 10  # runs of a batch of the weight gradient, in two parts, by 20 warps; csrc/cuda/weight_gradient.cuh

# Estimates.
BARRIER_CYCLES = 40  # a block's warps to meet, and to go on
REMOTE_CYCLES = 180  # between multiprocessors of a cluster: Luo et al., the source of the H100's ``mma_sync``
SMALL_LAUNCH = 3e-6  # seconds of a kernel that packs or sums, with its start
LAUNCH = 1e-6  # start of one that follows another
CLUSTERS_FROM = 90  # compute capability
FORWARD_MEETINGS, BACKWARD_MEETINGS = 2, 1  # barriers of a cluster a step, as docs/small_batches.md has them
SMALL_BATCHES = (1, 2, 3, 4)
L2_SHARE = 2.0  # bytes per second that the second-level cache gives, in parts of device memory's


@dataclass(frozen=True)
class Gpu:
    """A card by its data sheet.

    Attributes:
        clock: Hz, boost; that of the tensor cores' figure.
        bandwidth: bytes per second.
        tensor: operations per second, fp16 with fp32 sums, dense.
        mma_sync: the part of ``tensor`` that ``mma.sync`` reaches, which is what the kernels use.
        source: of the figures.
    """

    name: str
    arch: int
    multiprocessors: int
    clock: float
    bandwidth: float
    tensor: float
    mma_sync: float
    source: str

    @property
    def mma_cycles(self) -> float:
        """Of a multiprocessor for one m16n8k16."""
        return 2 * MACS * self.multiprocessors * self.clock / (self.tensor * self.mma_sync)


_HOPPER = "mma.sync at 63% of it: Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, 2024"
GPUS = {
    "a100": Gpu(
        "A100 SXM 80 GB", 80, 108, 1.41e9, 2.039e12, 312e12, 1.0, "NVIDIA A100 80GB data sheet and Ampere white paper"
    ),
    "rtx4090": Gpu("GeForce RTX 4090", 89, 128, 2.52e9, 1.008e12, 165.2e12, 1.0, "NVIDIA Ada architecture white paper"),
    "h100": Gpu(
        "H100 SXM",
        90,
        132,
        1.83e9,
        3.35e12,
        989.4e12,
        0.63,
        f"NVIDIA H100 data sheet and Hopper white paper; {_HOPPER}",
    ),
    "h200": Gpu("H200 SXM", 90, 132, 1.83e9, 4.8e12, 989.4e12, 0.63, f"NVIDIA H200 data sheet; {_HOPPER}"),
    "rtx3090": Gpu(
        "GeForce RTX 3090", 86, 82, 1.695e9, 0.936e12, 71e12, 1.0, "NVIDIA Ampere GA102 architecture white paper"
    ),
    "rtx5090": Gpu(
        "GeForce RTX 5090", 120, 170, 2.41e9, 1.792e12, 209.5e12, 1.0, "NVIDIA RTX Blackwell architecture white paper"
    ),
    "b200": Gpu(
        "B200",
        100,
        148,
        1.86e9,
        8.0e12,
        2250e12,
        0.31,
        "NVIDIA HGX B200 data sheet; mma.sync assumed as fast a multiprocessor and clock as on Hopper",
    ),
}


@dataclass
class Terms:
    """Seconds of one kernel or pass, term by term. Tensor cores, issue slots and memory are busy at the same time.

    Attributes:
        issue: slots of the schedulers.
        waits: what the busiest multiprocessor takes beyond its tensor cores and its slots, whichever is longer.
        turns: units that the busiest multiprocessor has to do, against ``even``, were they spread without remainder.
    """

    memory: float = 0.0
    tensor: float = 0.0
    issue: float = 0.0
    waits: float = 0.0
    launches: float = 0.0
    seconds: float = 0.0
    turns: float = 0.0
    even: float = 0.0
    mma: int = 0
    bytes: float = 0.0
    kernels: int = 0
    blocks: dict[str, int] = field(default_factory=dict)  # a multiprocessor, by kernel
    each: dict[str, float] = field(default_factory=dict)  # seconds by kernel

    def __add__(self, other: Terms) -> Terms:
        summed = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("memory", "tensor", "issue", "waits", "launches", "seconds", "mma", "bytes", "kernels")
        }
        longer = self if self.seconds >= other.seconds else other
        return Terms(
            **summed,
            turns=longer.turns,
            even=longer.even,
            blocks={**self.blocks, **other.blocks},
            each={**self.each, **other.each},
        )

    @property
    def bound(self) -> str:
        """The largest term; ``waves`` where the remainder of the last turn costs more than any."""
        busy = max(self.tensor, self.issue) + self.waits
        waves = busy * (1 - self.even / self.turns) if self.turns else 0.0
        terms = {
            "memory": self.memory,
            "tensor cores": self.tensor,
            "issue": self.issue,
            "waits": self.waits,
            "launches": self.launches,
            "waves": waves,
        }
        return max(terms, key=lambda name: terms[name])


@functools.cache
def _compiled() -> dict[tuple[str, int], tuple[int, int]]:
    """Registers and static shared memory by kernel and architecture, from docs/kernels.md."""
    found = {}
    for line in (ROOT / "docs" / "kernels.md").read_text().splitlines():
        cells = [cell.strip(" `") for cell in line.split("|")[1:-1]]
        if len(cells) == 7 and "<" in cells[0]:
            for arch in re.findall(r"\d+", cells[1]):
                static = int(cells[4].split("+")[0].replace(",", ""))
                found[cells[0], int(arch)] = (int(cells[3]), static)
    return found


def blocks_a_multiprocessor(name: str, arch: int, threads: int, shared: int) -> int:
    """From docs/kernels.md where the kernel is there, else with all registers that its launch bounds allow."""
    registers, static = _compiled().get((name, arch), (MAX_REGISTERS, 4096))
    kernel = Kernel("", name, (), arch, registers, static, 0, 0, 0)
    return max(1, kernel.blocks_per_sm(threads, shared))


@dataclass(frozen=True)
class Block:
    """What one unit costs a multiprocessor, in cycles.

    Attributes:
        mma: tensor-core instructions of a step.
        tensor, issue: cycles of a step in which these are busy.
        step: cycles of a step.
        once: cycles before the first step and after the last.
    """

    mma: int
    tensor: float
    issue: float
    step: float
    once: float


@functools.cache
def loops() -> dict[str, list[dict[str, Any]]]:
    """bench/loops.json: by kernel, the loops of a step."""
    found: dict[str, list[dict[str, Any]]] = json.loads(RECORD.read_text())["kernels"]
    return found


def _product_sizes(layer: Layer) -> tuple[int, int, int, int]:
    """Channels a group, tiles of eight of them, steps along K of a gate convolution, and runs of pixels."""
    in_group = layer.channels // layer.groups
    steps = -(-(layer.kernel**2) // (16 // in_group))
    return in_group, in_group // 8, steps, layer.size * -(-layer.size // 16)


def gate_mma(layer: Layer, runs: int) -> int:
    """Of both gate convolutions of a unit and step: two n tiles a run, and two fp16 numbers a weight."""
    _, tiles, steps, _ = _product_sizes(layer)
    return steps * runs * 2 * tiles * 2


def transposed_mma(layer: Layer, runs: int) -> int:
    """Of the transposed convolutions: four gate outputs and four taps at a time, six products of bf16 numbers."""
    chunks, steps = 2 * (layer.channels // layer.groups) // 4, -(-(layer.kernel**2) // 4)
    return chunks * steps * runs * 2 * 6


def weight_mma(layer: Layer) -> int:
    """Of the weight gradients of a unit and step, three bf16 numbers a gradient."""
    _, tiles, _, runs = _product_sizes(layer)
    return runs * layer.kernel**2 * tiles * tiles * 3


Trips = dict[str, float]  # of a warp, by what the loop does; one that is not named is not run, or before the steps once


def _once_trips(layer: Layer, runs: int, warps: int) -> Trips:
    _, tiles, steps, _ = _product_sizes(layer)
    trips: Trips = {f"{ONCE} {what}": runs * tiles for what in ("spikes", "states", "fetch")}
    return trips | {f"{ONCE} fold": runs * tiles + 1, f"{ONCE} weights": steps * tiles * 2 / warps}


def forward_trips(layer: Layer, runs: int, warps: int) -> Trips:
    _, tiles, steps, _ = _product_sizes(layer)
    return _once_trips(layer, runs, warps) | {
        "step": 1,
        "terms": 2,
        "products": 2 * steps,
        "current": runs * tiles + 1,  # one iteration fetches the first
        "merge": 4.5,  # twice: by distances 16 to 1, and 8 to 1
        "update": runs,
        "fetch": runs * tiles,
    }


def backward_trips(layer: Layer, runs: int, warps: int, attached: bool) -> Trips:
    in_group, tiles, steps, _ = _product_sizes(layer)
    chunks = 2 * in_group // 4 if attached else 0
    trips = _once_trips(layer, runs, warps)
    trips |= {"step": 1, "spikes before": runs * tiles + 1, "products": steps, "fold": runs * tiles + 1}
    for visit in ("sum", "gradient"):
        trips |= {f"{visit} visit": 1, f"{visit} tile": tiles, f"{visit} run": tiles * runs}
    return trips | {"fetch": runs * tiles, "chunks": chunks, "transposed taps": chunks * -(-(layer.kernel**2) // 4)}


def weight_trips(layer: Layer) -> Trips:
    """Of a pair of step and sample; both loops that put its spikes into the map run once."""
    runs = _product_sizes(layer)[3]
    batches = -(-runs // WEIGHT_BATCH)
    return {"step": batches, "products": runs / 2, "fetch": 2 * batches, "terms": 1, "fold": 1}


def block(gpu: Gpu, name: str, warps: int, trips: Trips, cached_current: bool = True) -> Block:
    """From the loops of the kernel of this name, for so many warps of a multiprocessor.

    Raises:
        ValueError: there is no machine code of it on record.
    """
    if name not in loops():
        raise ValueError(f"layer: got one that runs {name}, expected one of the kernels of {RECORD.name}")
    per_scheduler = -(-warps // SCHEDULERS)
    mma = tensor = issue = cycles = once = barriers = 0.0
    for loop in loops()[name]:
        recorded = {int(number): taken for number, taken in loop["cycles"].items()}
        taken = recorded[min(number for number in recorded if number >= per_scheduler)]
        products = loop["units"].get("tensor", 0)
        busy = products * per_scheduler * SCHEDULERS * gpu.mma_cycles
        if loop["role"].startswith(ONCE):
            once += trips.get(loop["role"], 1) * taken
            continue
        times = trips.get(loop["role"], 0)
        mma += times * products * warps
        tensor += times * busy
        issue += times * loop["instructions"] * warps / SCHEDULERS
        cycles += times * max(taken, busy)
        barriers += times * loop["units"]["barriers"]
    cycles += barriers * BARRIER_CYCLES + (0 if cached_current else DEVICE_MEMORY)
    return Block(round(mma), tensor, issue, cycles, once)


def traffic(layer: Layer, plan: KernelPlan, what: str) -> tuple[float, float]:
    """Bytes per neuron and step of a persistent kernel, float32: first touches, and what is read again while it is in
    the second-level cache. ``what``: ``"inference"``, ``"training"``, ``"backward"`` or ``"attached"``."""
    stats = 3 * 2 * 8 / (plan.unit_channels * layer.size**2)
    again = 0.0 if plan.cached_current else 4.0
    if what in ("inference", "training"):
        return (8.0 if what == "inference" else 12.0 + stats) + (12.0 / layer.steps if layer.carried else 0.0), again
    attached = what == "attached"
    before = (layer.steps - 1) / layer.steps  # steps that have one before them
    # u of the step before, and attached ds/du: to its array and from it
    again += 0.0 if plan.cached_u else 24.0 if attached else 16.0 + 4.0 / layer.steps
    again += 8.0 * before if attached else 0.0
    return 4 * 4.0 + 8.0 + 1 / 8 + stats, again


def _kernel(
    gpu: Gpu, layer: Layer, cost: Block, first: float, again: float, units: int, resident: int, steps: int, tasks: int
) -> Terms:
    """``cost``: of ``resident`` units at once; ``units``: those of the busiest multiprocessor, of ``tasks`` in all;
    ``steps``: of each."""
    turns = units / resident
    cycles = turns * steps / gpu.clock
    moved = layer.neurons_and_steps * (first + again / L2_SHARE)
    memory = moved / gpu.bandwidth
    busy = cost.step * cycles + turns * cost.once / gpu.clock
    return Terms(
        memory=memory,
        tensor=cost.tensor * cycles,
        issue=cost.issue * cycles,
        waits=busy - max(cost.tensor, cost.issue) * cycles,
        launches=LAUNCH,
        seconds=max(memory, busy) + LAUNCH,
        turns=units,
        even=tasks / gpu.multiprocessors,
        mma=cost.mma // resident * tasks * steps,
        bytes=layer.neurons_and_steps * (first + again),
        kernels=1,
    )


def _called(terms: Terms, kernel: str, resident: int) -> Terms:
    return replace(terms, blocks={kernel: resident}, each={kernel: terms.seconds})


def _small(count: int) -> Terms:
    return Terms(launches=count * SMALL_LAUNCH, seconds=count * SMALL_LAUNCH, kernels=count)


@dataclass(frozen=True)
class Split:
    """How blocks would share the rows of a unit, a design (docs/small_batches.md).

    Attributes:
        blocks: of a unit.
        anew: each block plans its rows as if they were a map, which takes warps with fewer runs; else a warp keeps the
            runs that it has in the undivided unit, and so every sum its order.
    """

    blocks: int = 1
    anew: bool = False


WHOLE = Split()


def _plan(gpu: Gpu, layer: Layer, backward: bool, attached: bool, split: Split = WHOLE) -> KernelPlan:
    """Of one block."""

    def planned(rows: int) -> KernelPlan:
        return kernel_plan(
            (layer.steps, layer.samples, layer.channels, rows, layer.size),
            layer.kernel,
            layer.groups,
            backward=backward,
            gradient_detach=not attached,
            device="cuda",
            capability=divmod(gpu.arch, 10),
            shared_memory=ARCHITECTURES[gpu.arch].shared_block * 1024,
        )

    whole, part = planned(layer.size), planned(-(-layer.size // split.blocks))
    if whole.kernel != "persistent":
        raise ValueError(
            f"layer: got {layer}, which runs on the {whole.kernel} kernels ({whole.reason}); the model is of the "
            "persistent ones"
        )
    if not split.anew:
        warps = -(-part.warps * part.runs_per_warp // whole.runs_per_warp)
        part = replace(part, runs_per_warp=whole.runs_per_warp, warps=warps)
    return replace(part, tasks=whole.tasks * split.blocks)


def _meetings(gpu: Gpu, split: Split, count: int) -> float:
    """Cycles of a step in which the blocks of a unit wait for one another: in a cluster a message there and one back,
    else what was written, a count that goes up after it, the count read, and what was written read."""
    if split.blocks == 1:
        return 0.0
    return count * (2 * REMOTE_CYCLES if gpu.arch >= CLUSTERS_FROM else 4 * SECOND_LEVEL)


def _name(layer: Layer, plan: KernelPlan, flag: str) -> str:
    kernel = "persistent_forward" if flag.startswith("Resident") else "persistent_backward"
    sizes = f"Channels={plan.unit_channels}, Kernel={layer.kernel}, Runs={plan.runs_per_warp}"
    return f"{kernel}<{sizes}, {flag}, Cell=StcLif>"


def _units(gpu: Gpu, tasks: int, resident: int) -> tuple[int, int]:
    """Those of the busiest multiprocessor, and how many of them at once."""
    units = -(-tasks // gpu.multiprocessors)
    return units, min(resident, units)


def _forward(gpu: Gpu, layer: Layer, training: bool, split: Split = WHOLE) -> Terms:
    plan = _plan(gpu, layer, backward=False, attached=True, split=split)
    name = _name(layer, plan, f"ResidentWeights={str(plan.resident_weights).lower()}")
    resident = blocks_a_multiprocessor(name, gpu.arch, plan.warps * 32, plan.shared_memory)
    units, at_once = _units(gpu, plan.tasks, resident)
    trips = forward_trips(layer, plan.runs_per_warp, plan.warps)
    cost = block(gpu, name, plan.warps * at_once, trips, plan.cached_current)
    cost = replace(cost, step=cost.step + _meetings(gpu, split, FORWARD_MEETINGS))
    first, again = traffic(layer, plan, "training" if training else "inference")
    terms = _kernel(gpu, layer, cost, first, again, units, at_once, layer.steps, plan.tasks)
    return _called(terms, "persistent_forward", resident) + _small(1)


def _backward(gpu: Gpu, layer: Layer, attached: bool, split: Split = WHOLE) -> Terms:
    plan = _plan(gpu, layer, backward=True, attached=attached, split=split)
    name = _name(layer, plan, f"Attached={str(attached).lower()}")
    resident = blocks_a_multiprocessor(name, gpu.arch, plan.warps * 32, plan.shared_memory)
    units, at_once = _units(gpu, plan.tasks, resident)
    trips = backward_trips(layer, plan.runs_per_warp, plan.warps, attached)
    cost = block(gpu, name, plan.warps * at_once, trips, plan.cached_current)
    cost = replace(cost, step=cost.step + _meetings(gpu, split, BACKWARD_MEETINGS + attached))
    first, again = traffic(layer, plan, "attached" if attached else "backward")
    kernel = _kernel(gpu, layer, cost, first, again, units, at_once, layer.steps, plan.tasks)
    kernel = _called(kernel, "persistent_backward", resident)
    # the second launch, over z' and the spike bits of all pairs of step and sample
    pairs = layer.steps * layer.samples
    splits = max(1, min(264 // layer.groups, pairs))  # weight_splits of csrc/cuda/persistent_backward.cu
    in_group = layer.channels // layer.groups
    weights = f"weight_gradient_partials<Channels={in_group}, Kernel={layer.kernel}>"
    warps = 4 * layer.kernel
    resident = blocks_a_multiprocessor(weights, gpu.arch, warps * 32, 128 * warps * 32)
    units, at_once = _units(gpu, layer.groups * splits, resident)
    cost = block(gpu, weights, warps * at_once, weight_trips(layer))
    second = _kernel(gpu, layer, cost, 8.0 + 1 / 8, 0.0, units, at_once, -(-pairs // splits), layer.groups * splits)
    second = replace(second, mma=weight_mma(layer) * pairs * layer.groups)
    second = _called(second, "weight_gradient_partials", resident)
    return kernel + second + _small(4 if attached else 3)


def predict(gpu: Gpu, layer: Layer, what: str, split: Split = WHOLE) -> Terms:
    """Of one pass of STC-LIF.

    Raises:
        ValueError: the layer does not run on the persistent kernels, or there is no such pass.
    """
    attached, name = not what.endswith(DETACHED), what.removesuffix(DETACHED)
    if name in (FORWARD, ROLLOUT):
        return _forward(gpu, layer, training=False, split=split)
    if name == BACKWARD:
        return _backward(gpu, layer, attached, split)
    if name == TRAINING:
        return _forward(gpu, layer, training=True, split=split) + _backward(gpu, layer, attached, split)
    raise ValueError(f"what: got {what!r}, expected a pass of bench/cases.py")


def measured(results: Results) -> dict[tuple[str, str, str], float]:
    """Milliseconds a call by layer, pass and contestant, of this library."""
    return {
        (row.layer, row.what, row.contestant): row.ms
        for row in results.rows
        if row.contestant in (OURS, GRAPH) and row.section == "layers" and row.ms is not None
    }


def table(gpu: Gpu, names: list[str], found: dict[tuple[str, str, str], float] | None = None) -> str:
    """Predictions, with what was measured beside them."""
    columns = ["layer", "pass", "ms", "us a step", "bound by", "memory", "tensor cores", "issue", "waits", "launches"]
    columns += ["us a step of each kernel", "units of the busiest SM, even", "blocks a SM", "Mmma", "MB"]
    if found is not None:
        columns += ["measured ms", "of the prediction", "in a graph, ms", "of the prediction"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for case in layer_cases("cuda", names, [USUAL_RATE]):
        for what in case.passes:
            terms = predict(gpu, case.layer, what)
            layer = f"{case.name}, T={case.layer.steps}, N={case.layer.samples}"
            cells = [layer, what, number(1e3 * terms.seconds), number(1e6 * terms.seconds / case.layer.steps)]
            cells.append(terms.bound)
            cells += [
                number(1e3 * value) for value in (terms.memory, terms.tensor, terms.issue, terms.waits, terms.launches)
            ]
            cells.append(", ".join(number(1e6 * seconds / case.layer.steps) for seconds in terms.each.values()))
            cells += [f"{terms.turns:g}, {terms.even:.2f}", ", ".join(map(str, terms.blocks.values()))]
            cells += [number(terms.mma / 1e6), number(terms.bytes / 1e6)]
            if found is not None:
                for contestant in (OURS, GRAPH):
                    ms = found.get((str(case.layer), what, contestant))
                    cells += ["", ""] if ms is None else [number(ms), f"{number(ms / terms.seconds / 1e3)}x"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def small_batches(gpu: Gpu, splits: list[int]) -> str:
    """What few samples take, and what they would take with each unit split over so many blocks: with the runs that a
    warp has now, and planned anew."""
    columns = ["layer", "pass", "units", "of the card idle", "ms"]
    columns += [f"{blocks} blocks a unit: ms, runs kept; planned anew" for blocks in splits]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for steps, passes in ((1, (ROLLOUT,)), (10, (FORWARD, BACKWARD + DETACHED, BACKWARD))):
        for what in passes:
            for samples in SMALL_BATCHES:
                layer = Layer(steps, samples, carried=steps == 1)
                units = samples * layer.groups
                idle = 1 - units / (-(-units // gpu.multiprocessors) * gpu.multiprocessors)
                whole = predict(gpu, layer, what).seconds
                cells = [f"T={steps}, N={samples}", what, str(units), f"{idle:.0%}", number(1e3 * whole)]
                for blocks in splits:
                    both = [predict(gpu, layer, what, Split(blocks, anew)).seconds for anew in (False, True)]
                    cells.append("; ".join(f"{number(1e3 * each)} ({number(whole / each)}x)" for each in both))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", choices=GPUS, required=True, help="whose published figures to take")
    parser.add_argument("--layers", nargs="+", choices=PAPER_NAMES, default=list(PAPER_NAMES))
    parser.add_argument("--against", type=Path, metavar="FILE", help="a GPU run's --json, or its gpu_check.json")
    parser.add_argument(
        "--blocks-per-unit",
        nargs="+",
        type=int,
        choices=(2, 4, 8),
        metavar="B",
        help="instead: batches of 1 to 4 samples, and what they would take if so many blocks shared a unit",
    )
    options = parser.parse_args(arguments)
    gpu, found = GPUS[options.gpu], None
    if options.against:
        try:
            results = Results.from_json(options.against)
        except ValueError as error:
            parser.error(f"--against: {error}")
        if results.about.get("device") != "cuda":
            parser.error(f"--against: {options.against} is of a CPU, expected a run with --device cuda")
        found = measured(results)
        print(f"measured on {results.about['gpu']}, commit {results.about['commit']}")
    print(
        f"{gpu.name}: {gpu.multiprocessors} multiprocessors at {gpu.clock / 1e9:.2f} GHz, {gpu.bandwidth / 1e12:.2f} "
        f"TB/s, {gpu.tensor / 1e12:.0f} TFLOP/s in fp16, of which mma.sync {gpu.mma_sync:.0%}\nsource: {gpu.source}\n"
    )
    if options.blocks_per_unit:
        print(small_batches(gpu, options.blocks_per_unit))
        return
    print("Milliseconds a call and of each term; Mmma: millions of tensor-core instructions; MB: bytes moved\n")
    print(table(gpu, options.layers, found))
