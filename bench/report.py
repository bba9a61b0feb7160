"""What becomes of the rows: a table to read, JSON, CSV, the tables of README.md and docs, plots."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contestants import OURS, RIVALS
from .files import write_whole
from .latency import Row
from .limits import Ceilings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = {"readme": ROOT / "README.md", "docs": ROOT / "docs" / "performance.md"}
PLOTTED = {"T": "time steps", "N": "samples", "C": "channels", "map": "rows and columns of the map", "K": "kernel size"}


@dataclass
class Results:
    """A run: the header of machine, versions and commit, the measured ceilings, and the rows."""

    about: dict[str, Any]
    ceilings: Ceilings
    rows: list[Row]

    def to_json(self) -> str:
        rows = [row.as_dict() for row in self.rows]
        return json.dumps({"about": self.about, "ceilings": self.ceilings.as_dict(), "rows": rows}, indent=1)

    def to_csv(self) -> str:
        """The rows, with device and commit in front of each."""
        text = io.StringIO()
        names = ["device", "commit", *(field.name for field in dataclasses.fields(Row))]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({"device": device_of(self.about), "commit": self.about["commit"], **row.as_dict()})
        return text.getvalue()

    @classmethod
    def from_json(cls, path: Path) -> Results:
        """Reads a file of ``--json``, or the one of bench/gpu_check.sh, which holds such a one.

        Raises:
            ValueError: it is something else.
        """
        try:
            found = json.loads(path.read_text())
            found = found.get("latency", found)
            rows = [Row(**row) for row in found["rows"]]
            return cls(found["about"], Ceilings(**found["ceilings"]), rows)
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a file that `python -m bench --json` wrote, got {error!r}") from error


def merged(several: Iterable[Results]) -> Results:
    """Slices of one run: header and ceilings of the first, the rows of all.

    Raises:
        ValueError: they come from different machines or commits.
    """
    first, *others = several
    for other in others:
        for key in ("commit", "torch", "gpu" if "gpu" in first.about else "processor"):
            if other.about.get(key) != first.about.get(key):
                raise ValueError(
                    f"{key}: got {first.about.get(key)!r} and {other.about.get(key)!r}, expected slices of one run"
                )
    return Results(first.about, first.ceilings, [row for results in (first, *others) for row in results.rows])


def device_of(about: Mapping[str, Any]) -> str:
    return str(about["gpu"] if about.get("device") == "cuda" else about["processor"])


def headline(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())


def number(value: float | None, digits: int = 3) -> str:
    """In so many significant digits, without an exponent."""
    if value is None:
        return ""
    if value >= 10 ** (digits - 1):
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.6f}"


HEAD = (
    "| pass | contestant | stc_cuda is faster | ms a call | ms a sample and step | +- | GB/s | GFLOP/s | of the limit "
    "| bytes saved | bytes at the peak |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    if row.ms is None:
        return f"| {row.what} | {row.contestant} | {row.error} |" + " |" * 8
    cells = [
        row.what,
        row.contestant,
        "" if row.ratio is None or row.contestant == OURS else f"{number(row.ratio)}x",
        number(row.ms),
        number(row.ms_per_step),
        f"{row.spread:.0%}",
        number((row.bytes_per_s or 0) / 1e9),
        number((row.flop_per_s or 0) / 1e9) if row.flop_per_s else "",
        f"{row.limit:.0%} ({row.limited_by})",
        number(row.saved_bytes),
        number(row.peak_bytes),
    ]
    return f"| {' | '.join(cells)} |"


def about_in_words(results: Results) -> str:
    about, ceilings = results.about, results.ceilings
    versions = f"Python {about['python']}, torch {about['torch']}, commit {about['commit']}"
    machine = (
        f"{about['gpu']}" if about.get("device") == "cuda" else f"{about['processor']}, {about['threads']} threads"
    )
    kernel = f", {about['cpu_kernel']} kernels" if "cpu_kernel" in about else ""
    return (
        f"{machine}{kernel}, {versions}; measured ceilings: copy {ceilings.copy / 1e9:.0f} GB/s, matrix product "
        f"{ceilings.matmul / 1e9:,.0f} GFLOP/s in {ceilings.matmul_dtype}"
    )


def _by_pass(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    grouped: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        grouped.setdefault(row.pass_of_case, {})[row.contestant] = row
    return grouped


def _ratio(row: Row | None) -> str:
    if row is None:
        return ""
    return "failed" if row.ms is None else f"{number(row.ms_per_step)} ({number(row.ratio)}x)"


def short_table(results: Results) -> str:
    """One line a pass: milliseconds per sample and step, and how many times faster this library is."""
    groups = _by_pass(row for row in results.rows if row.section in ("layers", "compiled", "neurons"))
    present = [name for name in RIVALS if any(name in group for group in groups.values())]
    text = f"| layer, milliseconds per sample and step | firing | stc_cuda | {' | '.join(present)} |\n"
    text += "|---" * (3 + len(present)) + "|\n"
    for group in groups.values():
        row = group.get(OURS) or next(iter(group.values()))
        kind = f"{row.case}: {row.channels} channels, {row.size}x{row.size}, T={row.steps}, N={row.samples}, {row.what}"
        mine = "failed" if row.ms is None or row.contestant != OURS else number(row.ms_per_step)
        cells = [kind, f"{row.firing_rate:.0%}", mine, *(_ratio(group.get(name)) for name in present)]
        text += f"| {' | '.join(cells)} |\n"
    return text


def memory_line(results: Results) -> str:
    """Bytes kept for backward and held at most, of the first layer."""
    said = []
    for name in (OURS, *RIVALS):
        kept = next((r for r in results.rows if r.contestant == name and r.saved_bytes and r.section == "layers"), None)
        if kept is not None:
            peak = "" if kept.peak_bytes is None else f" ({number(kept.peak_bytes)} at the peak)"
            said.append(f"{name} {number(kept.saved_bytes)}{peak}")
    return f"Bytes kept for backward per neuron and step, parameters excluded: {', '.join(said)}.\n" if said else ""


def full_tables(results: Results) -> str:
    """Every row, a table a case."""
    text, last = "", None
    for row in results.rows:
        case = row.pass_of_case[:4]
        if case != last:
            swept = "" if row.value is None else f" = {row.value:g}"
            text += f"\n**{row.section}, {row.case}{swept}**: `{row.layer}`, {row.firing_rate:.0%} firing\n\n{HEAD}\n"
            last = case
        text += line(row) + "\n"
    return text


def block(results: Results, document: str) -> str:
    """What stands between the markers of a document."""
    if document == "readme":
        return f"{about_in_words(results)}.\n\n{short_table(results)}\n{memory_line(results)}"
    return f"{about_in_words(results)}.\n{full_tables(results)}"


def _parts(path: Path, device: str) -> tuple[str, str]:
    begin, end = (f"<!-- bench:{device}:{where} -->\n" for where in ("begin", "end"))
    whole = path.read_text()
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
        raise ValueError(f"{path}: expected one line {begin.strip()} and after it one line {end.strip()}")
    before, rest = whole.split(begin)
    return before + begin, end + rest.split(end)[1]


def check_markers(device: str, documents: Iterable[Path] | None = None) -> None:
    """Raises ValueError where a document has no place for the tables of this device."""
    for path in DOCUMENTS.values() if documents is None else documents:
        _parts(path, device)


def rewrite(path: Path, device: str, text: str) -> None:
    """Puts a text between the markers of a device.

    Raises:
        ValueError: the file has no such markers, or more than one pair.
    """
    before, after = _parts(path, device)
    write_whole(path, before + text + after)


def rewrite_documents(results: Results) -> list[Path]:
    for document, path in DOCUMENTS.items():
        rewrite(path, results.about["device"], block(results, document))
    return list(DOCUMENTS.values())


def draw(results: Results, folder: Path) -> list[Path]:
    """Log-log plots of a call's cost against T, N, C and the map, a PNG a pass; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    swept = [row for row in results.rows if row.section == "sweep" and row.ms is not None and row.case in PLOTTED]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for what in dict.fromkeys(row.what for row in swept):
        figure, all_axes = pyplot.subplots(1, len(PLOTTED), figsize=(16, 4), sharey=True)
        for axes, (name, title) in zip(all_axes, PLOTTED.items(), strict=True):
            here = [row for row in swept if row.what == what and row.case == name]
            for contestant in dict.fromkeys(row.contestant for row in here):
                points = sorted((row.value, row.ms) for row in here if row.contestant == contestant)
                axes.loglog(*zip(*points, strict=True), marker="o", label=contestant)
            axes.set_xlabel(title)
            axes.grid(True, which="both", alpha=0.3)
        all_axes[0].set_ylabel(f"{what}, ms a call")
        all_axes[0].legend()
        figure.suptitle(f"{device_of(results.about)}, commit {results.about['commit']}")
        figure.tight_layout()
        path = folder / f"cost-{what.replace(' ', '-')}-{results.about.get('device', 'cpu')}.png"
        figure.savefig(path, dpi=100)
        pyplot.close(figure)
        written.append(path)
    return written
