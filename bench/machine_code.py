"""``python -m bench.machine_code``: writes bench/loops.json, the loops of STC-LIF's persistent kernels as compiled.

Reads the sm_90 machine code of the installed extension; needs cuobjdump and no GPU. Of each loop it records the way of
whole rows of float32 numbers through its body, without the loops inside, which have entries of their own:

* **Counted**: the instructions of a warp, by the unit that executes them.
* **Simulated**: cycles of an iteration on one of a multiprocessor's four schedulers, for so many warps at once. Warps
  issue in order; how long one waits after an instruction, and for which loads, stands in the machine code. Throughputs
  are those of the CUDA C++ programming guide, latencies (``LATENCIES``) are published measurements.

The way is searched, not run: the path with most 128-bit accesses, products and arithmetic and the fewest instructions
beside these, that avoids accesses to single numbers, which serve ragged rows and 16-bit storage.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import stc_cuda
from stc_cuda import _C

from .files import write_whole
from .kernel_table import describe
from .kernels import ROOT, Kernel, ToolError, _output, demangle, find_cuobjdump, template_of

RECORD = ROOT / "bench" / "loops.json"
ARCH = 90
WARPS = (1, 2, 4, 5, 8)  # of a scheduler
# The instances that the paper's layer takes, and those that a half, a quarter or an eighth of its map would.
WANTED = re.compile(
    r"persistent_(for|back)ward<Channels=16, Kernel=5, Runs=[124], (ResidentWeights|Attached)=\w+, Cell=StcLif>"
    r"|weight_gradient_partials<Channels=16, Kernel=5>"
)

# Cycles until a result can be used. Shared memory and the caches of an H100: Luo et al. 2024, the source of
# roofline.py's share of mma.sync. The rest are of Volta (Jia et al. 2018, Dissecting the NVIDIA Volta GPU Architecture
# via Microbenchmarking) or guesses of that order. Fixed latencies stand in the machine code.
LATENCIES = {"LDS": 29, "LDSM": 33, "LDL": 40, "SHFL": 23, "MUFU": 22, "LDC": 30, "VOTE": 14, "S2R": 24, "S2UR": 24}
OTHER_LATENCY = 20
# Weights, marked constant, stream from the second-level cache: the first has no room beside so much shared memory.
SECOND_LEVEL, DEVICE_MEMORY = 264, 479
# Of mma.m16n8k16 on one tensor core of an H100: 4 cycles at the full rate, of which mma.sync reaches 63%.
TENSOR_CYCLES = 4 / 0.63
# Cycles that an instruction of a warp keeps a unit of the scheduler's: 32 lanes over 16, 16 and 4.
BUSY = {"alu": 2, "imad": 2, "mufu": 8, "tensor": TENSOR_CYCLES}
ONCE = "once"  # the role of a loop beside that over the steps, and the first word of those with a purpose
QUEUE = 16  # cycles of shared memory's work that may lie ahead of an access
WARM_UP, ITERATIONS = 2, 6  # of each warp at least

_UNITS = {
    "tensor": ("HMMA",),
    "fma": ("FADD", "FMUL", "FFMA"),
    "imad": ("IMAD",),
    "mufu": ("MUFU",),
    "memory": ("LDS", "LDSM", "STS", "LDG", "STG", "LDGSTS", "LDL", "STL", "LDC", "SHFL", "LDGDEPBAR"),
    "control": ("BRA", "BSSY", "BSYNC", "BAR", "NOP", "WARPSYNC", "EXIT", "CALL", "DEPBAR", "BREAK", "RET"),
}


@dataclass(frozen=True)
class Instruction:
    """One line of machine code, with the scheduling that ptxas put into its upper bits."""

    address: int
    text: str
    control: int

    @cached_property
    def name(self) -> str:
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]

    @cached_property
    def base(self) -> str:
        return self.name.split(".")[0]

    @cached_property
    def unit(self) -> str:
        if self.base.startswith("U") or self.base in ("S2R", "S2UR", "R2UR", "CS2R"):
            return "uniform"
        return next((unit for unit, names in _UNITS.items() if self.base in names), "alu")

    @property
    def stall(self) -> int:
        """Cycles before the warp's next instruction."""
        return max(1, self.control & 15)

    @property
    def sets(self) -> tuple[int, ...]:
        """Scoreboards that wait for its result and for its operands to be read."""
        return tuple(board for board in (self.control >> 5 & 7, self.control >> 8 & 7) if board < 6)

    @cached_property
    def waits(self) -> tuple[int, ...]:
        return tuple(board for board in range(6) if self.control >> 11 >> board & 1)

    @property
    def wavefronts(self) -> int:
        """Cycles that shared memory, or the path to global memory, is at it for a warp."""
        if self.base in ("LDS", "STS", "LDG", "STG", "LDGSTS", "LDSM"):
            return 4 if ".128" in self.name or self.base == "LDSM" else 2 if ".64" in self.name else 1
        return int(self.base == "SHFL")

    @property
    def target(self) -> int | None:
        found = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", self.text)
        return int(found[1], 16) if found else None

    @property
    def ends(self) -> bool:
        """Whether nothing that follows is reached from here."""
        return not self.text.startswith("@") and not re.search(r"BRA\S*\s+!?U?P\d", self.text)

    @cached_property
    def latency(self) -> int:
        if self.base == "LDG":
            return SECOND_LEVEL if "CONSTANT" in self.name else DEVICE_MEMORY
        return LATENCIES.get(self.base, OTHER_LATENCY)

    @property
    def narrow(self) -> bool:
        return self.base in ("LDG", "STG", "LDGSTS") and ".128" not in self.name


def read_code(sass: str) -> dict[str, list[Instruction]]:
    """The functions of a dump of cuobjdump, whose every second line has the upper half of an instruction."""
    found: dict[str, list[Instruction]] = {}
    here: list[Instruction] = []
    for line in sass.splitlines():
        if function := re.match(r"\s+Function : (\w+)", line):
            here = found.setdefault(function[1], [])
        elif first := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s+/\* 0x[0-9a-f]{16} \*/", line):
            here.append(Instruction(int(first[1], 16), first[2].rstrip(" ;"), 0))
        elif second := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line):
            last = here.pop()
            here.append(Instruction(last.address, last.text, int(second[1], 16) >> 41))
    return found


Avoided = Callable[[Instruction], bool]


def _score(block: list[Instruction], avoided: Avoided) -> int:
    score = 0
    for instruction in block:
        score -= 1
        if instruction.base == "CALL" or avoided(instruction):
            score -= 100_000
        if ".128" in instruction.name and instruction.unit == "memory":
            score += 300 if instruction.base in ("LDG", "STG") else 400  # what is on chip, where it may be
        score += {"tensor": 300, "mufu": 30, "fma": 3}.get(instruction.unit, 0)
        score += 300 * (instruction.base in ("VOTE", "SHFL", "BAR"))
    return score


class Code:
    """One kernel: its blocks without a branch inside, and its loops, which are the branches back."""

    def __init__(self, instructions: list[Instruction]) -> None:
        heads = {instructions[0].address}
        for one in instructions:
            if one.target is not None:
                heads.add(one.target)
            if one.base in ("BRA", "EXIT", "BSYNC", "RET", "BREAK"):
                heads.add(one.address + 16)
        self.blocks: dict[int, list[Instruction]] = {}
        for one in instructions:
            if one.address in heads:
                block = self.blocks.setdefault(one.address, [])
            block.append(one)
        self.loops: dict[int, int] = {}  # last address by the first
        for one in instructions:
            if one.target is not None and one.target < one.address:
                self.loops[one.target] = max(self.loops.get(one.target, 0), one.address)

    def _next(self, head: int) -> list[int]:
        last = self.blocks[head][-1]
        after = [last.address + 16] if last.address + 16 in self.blocks else []
        if last.target is not None:
            return [last.target] if last.ends else [last.target, *after]
        return [] if last.base == "EXIT" and last.ends else after

    def inside(self, first: int, last: int) -> list[int]:
        """Heads of the outermost loops in this range, which is not one itself."""
        found = [h for h, end in self.loops.items() if first <= h and end <= last and (h, end) != (first, last)]
        outer = [h for h in found if not any(o != h and o <= h and self.loops[h] <= self.loops[o] for o in found)]
        return sorted(outer)

    def path(self, head: int, avoided: Avoided) -> tuple[list[Instruction], list[int]]:
        """Through a loop once: the instructions beside the loops inside it, and the heads of those that it meets."""
        end, inner = self.loops[head], self.inside(head, self.loops[head])
        best: dict[int, tuple[int, list[int]]] = {}
        for block in sorted((h for h in self.blocks if head <= h <= end), reverse=True):
            within = next((h for h in inner if h <= block <= self.loops[h]), None)
            if within not in (None, block):
                continue
            if within is None:
                score, following = _score(self.blocks[block], avoided), self._next(block)
            else:
                members = [h for h in self.blocks if within <= h <= self.loops[within]]
                body = [one for h in members for one in self.blocks[h]]
                outside = [one.narrow for one in body if one.base in ("LDG", "STG", "LDGSTS")]
                score = -100_000 if outside and all(outside) else 1000  # a loop over single numbers is off the way
                following = [h for m in members for h in self._next(m) if not within <= h <= self.loops[within]]
            ways = [(score + best[h][0], [block, *best[h][1]]) for h in following if h in best and h > block]
            if within is None and head in following:
                ways.append((score, [block]))
            if ways:
                best[block] = max(ways)
        way = best[head][1]
        return [one for h in way if h not in inner for one in self.blocks[h]], [h for h in way if h in inner]


def simulate(body: list[Instruction], warps: int) -> float:
    """Cycles of an iteration for so many warps of one scheduler, all of which do one: how fast they get on once they
    have spread over the loop."""
    place, ready, issued = [0] * warps, [3 * w for w in range(warps)], [0] * warps
    boards = [[0.0] * 6 for _ in range(warps)]
    free = dict.fromkeys(("alu", "imad", "mufu", "tensor", "memory"), 0.0)
    ahead = {"tensor": 2, "memory": QUEUE}  # cycles of work that may wait in front of these
    now, last, begin, before = 0, 0, -1, 0
    while min(issued) < ITERATIONS * len(body):
        if begin < 0 and min(issued) >= WARM_UP * len(body):
            begin, before = now, sum(issued)
        for w in ((last + 1 + k) % warps for k in range(warps)):  # in turn, so that none is left behind
            if ready[w] > now:
                continue
            one = body[place[w]]
            if any(boards[w][board] > now for board in one.waits):
                continue
            if free.get(one.unit, 0) > now + ahead.get(one.unit, 0):
                continue
            latency: float = one.latency
            if one.unit in free:
                # four schedulers share the memory's path
                busy = 4 * one.wavefronts if one.unit == "memory" else BUSY[one.unit]
                free[one.unit] = max(free[one.unit], now) + busy
                if one.unit == "memory":
                    latency += max(0, free[one.unit] - now - busy)
            for board in one.sets:
                boards[w][board] = max(boards[w][board], now + latency)
            ready[w] = now + one.stall
            place[w] = (place[w] + 1) % len(body)
            issued[w] += 1
            last = w
            break
        now += 1
    return (now - begin) * warps * len(body) / (sum(issued) - before)


def _narrow(one: Instruction) -> bool:
    return one.narrow


def _role(own: list[Instruction], parent: str, children: bool) -> str:
    """What a loop does, from what is in it."""
    names = Counter(one.base for one in own)
    if not parent:
        return "step"
    if parent.startswith(ONCE):
        if names["VOTE"] or names["MUFU"]:
            return f"{ONCE} {'spikes' if names['VOTE'] else 'fold'}"
        if names["LDGSTS"]:
            return f"{ONCE} fetch"
        wide = {one.base for one in own if ".128" in one.name}
        if wide & {"STG", "LDG"}:
            return f"{ONCE} states" if len(own) > 20 else f"{ONCE} weights"
        return ONCE
    if names["HMMA"]:
        return "transposed taps" if parent == "chunks" else "products"
    if parent == "step" and children and names["BAR"] and not names["MUFU"]:
        return "chunks"
    if parent == "step" and children:
        return "terms"
    if names["LDGSTS"]:
        return "fetch"
    if names["VOTE"]:
        return "update" if names["MUFU"] else "spikes before"
    if names["SHFL"]:
        return "merge"
    if names["MUFU"] and names["STS"]:
        return "fold"
    if not names["STS"] and names["FADD"] + names["FFMA"] >= 8 and names["BAR"] == 0:
        return "current"
    return "other"


Loop = tuple[str, list[Instruction]]  # what it does, and the way through it


def _reaches(code: Code, head: int, unit: str) -> bool:
    return any(one.unit == unit for h, block in code.blocks.items() if head <= h <= code.loops[head] for one in block)


def _walk(code: Code, head: int, parent: str) -> Iterator[Loop]:
    own, children = code.path(head, _narrow)
    if parent == "step" and any(one.base == "BAR" for one in own) and _reaches(code, head, "mufu"):
        yield from _visits(code, head)
        return
    role = _role(own, parent, bool(children))
    yield role, own
    for child in children:
        yield from _walk(code, child, role)


def _visits(code: Code, head: int) -> Iterator[Loop]:
    """The backward kernel's two visits of the neurons by one text: for the sums, which stores nothing, and for the
    gradients, which has no barrier."""
    for visit, without in (("sum", ("STG",)), ("gradient", ("BAR", "SHFL"))):

        def avoided(one: Instruction, without: tuple[str, ...] = without) -> bool:
            return one.base in without or one.narrow

        inner = [head]
        for part in ("visit", "tile", "run"):
            if inner:
                own, children = code.path(inner[0], avoided)
                yield f"{visit} {part}", own
                inner = [child for child in children if _reaches(code, child, "mufu")]


def loops_of(code: Code) -> list[Loop]:
    """That over the steps, or of the weight gradient over the batches, which is the longest, and those inside; then
    those before and behind it."""
    step = max(code.loops, key=lambda head: code.loops[head] - head)
    return [
        loop
        for head in (step, *(h for h in code.inside(-1, 1 << 60) if h != step))
        for loop in _walk(code, head, "" if head == step else ONCE)
    ]


def counted(loop: Loop) -> dict[str, Any]:
    role, own = loop
    units = Counter(one.unit for one in own)
    units["wavefronts"] = sum(one.wavefronts for one in own)
    units["barriers"] = sum(one.base == "BAR" for one in own)
    return {"role": role, "instructions": len(own), "units": dict(sorted(units.items()))}


def simulated(loop: Loop) -> dict[str, float]:
    return {str(warps): round(simulate(loop[1], warps), 1) for warps in WARPS}


def kernels_of(extension: Path) -> dict[str, Code]:
    """Those of the record, by the names of docs/kernels.md.

    Raises:
        ToolError: no cuobjdump, or no such machine code.
    """
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        raise ToolError("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    listed = _output([cuobjdump, "-arch", f"sm_{ARCH}", "--list-text", str(extension)])
    symbols = sorted(set(re.findall(r"\bx-(_Z\w+)\.sm_", listed)))
    names = {}
    for symbol, pretty in zip(symbols, demangle("\n".join(symbols)).splitlines(), strict=True):
        if "persistent_" in pretty or "weight_gradient_partials" in pretty:
            name = describe(Kernel(symbol, *template_of(pretty), ARCH, 0, 0, 0, 0, 0))
            if WANTED.fullmatch(name):
                names[symbol] = name
    if not names:
        raise ToolError(f"{extension} has no kernels for sm_{ARCH}: build it with TORCH_CUDA_ARCH_LIST=9.0")
    sass = _output([cuobjdump, "-arch", f"sm_{ARCH}", "--dump-sass", "-fun", ",".join(names), str(extension)])
    return {names[symbol]: Code(code) for symbol, code in sorted(read_code(sass).items()) if symbol in names}


def record() -> dict[str, Any]:
    codes = kernels_of(Path(_C.__file__))
    return {
        "arch": ARCH,
        "cuda": stc_cuda.build_info()["cuda"],
        "kernels": {
            name: [{**counted(loop), "cycles": simulated(loop)} for loop in loops_of(code)]
            for name, code in sorted(codes.items())
        },
    }


def as_text(found: dict[str, Any]) -> str:
    """JSON with a loop a line."""
    text = json.dumps(found, indent=1)
    return re.sub(r"\{\s*\"role\"[^{}]*\{[^{}]*\}[^{}]*\{[^{}]*\}\s*\}", lambda m: " ".join(m[0].split()), text) + "\n"


def main() -> None:
    found = record()
    write_whole(RECORD, as_text(found))
    for name, entries in found["kernels"].items():
        print(
            f"\n{name}\n\n| loop | instructions | of them by unit | cycles by warps of a scheduler |\n|---|---|---|---|"
        )
        for entry in entries:
            by_unit, cycles = (", ".join(f"{k} {v}" for k, v in entry[key].items()) for key in ("units", "cycles"))
            print(f"| {entry['role']} | {entry['instructions']} | {by_unit} | {cycles} |")


if __name__ == "__main__":
    main()
