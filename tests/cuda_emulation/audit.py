"""Bytes that the kernels move between themselves and device memory, per neuron and step, at the paper's size.

    cd tests && python -m cuda_emulation.audit [KB of shared memory a block, default 227]

A byte's first touch, by reading or by writing, is counted apart from every later one. The lanes of a warp that read
one address count as often as they are; caches do not exist here.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import oracle
import torch

from . import NAME
from .backend import load

PAPER = oracle.Case(
    seed=7,
    steps=3,
    samples=1,
    groups=16,
    in_group=16,
    height=32,
    width=32,
    kernel=5,
    store_v_seq=False,
    initial_v=False,
    initial_spikes=False,
    upstream=("spikes",),
)
# Of every neuron and step.
SEQUENCES = {
    "current",
    "spikes",
    "packed_spikes",
    "v_seq",
    "potentials",
    "norm_stats",
    "grad_spikes_out",
    "grad_v_seq_out",
    "grad_current",
}
# Of every neuron, once a sequence.
STATES = {"v", "spikes_before", "v_out", "grad_v_out", "grad_v", "grad_spikes"}


@dataclasses.dataclass
class Row:
    """One buffer in one pass; bytes per neuron and step.

    Attributes:
        kind: ``"sequence"``, ``"state"``, ``"kept"``, what a block keeps of the step at hand for want of room on chip,
            or ``"parameter"``.
    """

    name: str
    kind: str
    first: float
    again: float  # read or written when it had been touched before


Table = dict[str, list[Row]]


def first_touches(rows: list[Row]) -> float:
    return sum(row.first for row in rows if row.kind == "sequence")


def rereads(rows: list[Row]) -> float:
    """What is kept counts in full: caches serve it, its first touch too."""
    return sum(row.again for row in rows if row.kind == "sequence") + sum(
        row.first + row.again for row in rows if row.kind == "kept"
    )


def _classify(name: str, size: int, case: oracle.Case) -> tuple[str, str]:
    """A readable name, and the kind. Arrays of the workspace have numbers only; their sizes give them away."""
    if name.startswith("workspace"):
        neurons, gates = case.neurons, "gradients of the gates"  # together or each pathway by itself
        sizes = {
            8 * neurons: (gates, "sequence"),
            4 * neurons: (gates, "sequence"),
            neurons // 8: ("spike bits", "sequence"),
        }
        known = {**sizes, 4 * neurons // case.steps: ("u of the step before", "kept")}
        if len(known) == len(sizes):
            raise ValueError(f"steps: got {case.steps}, of which arrays of different meaning have the same size")
        return known.get(size, (f"{name}, {size:,} bytes", "parameter"))
    return name, "sequence" if name in SEQUENCES else "state" if name in STATES else "parameter"


def _rows(case: oracle.Case) -> list[Row]:
    rows: dict[str, Row] = {}
    for name, t in load().traffic().items():
        if t["touched"]:
            label, kind = _classify(name, t["bytes"], case)
            row = rows.setdefault(label, Row(label, kind, 0.0, 0.0))
            row.first += t["touched"] / case.neurons
            row.again += (t["read"] + t["written"] - t["touched"]) / case.neurons
    return sorted(rows.values(), key=lambda row: (row.kind != "sequence", row.kind, -row.first))


def measure(case: oracle.Case = PAPER) -> Table:
    """Rows by pass."""
    emulation = load()
    if emulation.mode != "check":
        raise RuntimeError(f"STC_EMULATION_MODE: got {emulation.mode!r}, expected 'check', which counts; unset it")
    table: Table = {}
    problem = oracle.make_problem(case, torch.float32)
    with torch.no_grad():
        emulation.reset_traffic()
        oracle.call(oracle.kernel(NAME), problem.inputs, problem.options)
        table["forward, inference"] = _rows(case)
    for detach in (True, False):
        options = {**problem.options, "gradient_detach": detach}
        leaves = {name: None if x is None else x.requires_grad_() for name, x in problem.inputs.items()}
        emulation.reset_traffic()
        outputs = oracle.call(oracle.kernel(NAME), leaves, options)
        table["forward, training"] = _rows(case)
        emulation.reset_traffic()
        given = [x for x in leaves.values() if x is not None]
        torch.autograd.grad(outputs["spikes"], given, problem.upstream["spikes"])
        table[f"backward, {'detached' if detach else 'attached'}"] = _rows(case)
    return table


def lines(table: Table) -> Iterator[str]:
    """As a table to print."""
    for title, rows in table.items():
        yield f"{title:44}{'first touch':>12}{'again':>10}"
        for row in rows:
            yield f"  {row.kind:10}{row.name:32}{row.first:12.3f}{row.again:10.3f}"
        yield f"  {'in all':42}{first_touches(rows):12.3f}{rereads(rows):10.3f}"
        yield ""


if __name__ == "__main__":
    if len(sys.argv) > 1:
        load().set_shared_limit(1024 * int(sys.argv[1]))
    print("Bytes per neuron and step, by buffer")
    print("\n".join(lines(measure())))
