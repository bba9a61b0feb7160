"""``python -m bench.gpu_report LOGS RESULTS``: what bench/gpu_check.sh found, as one JSON, one log and a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .environment import environment
from .files import write_whole

SHOWN = 60  # lines of a failed step's log that go to the terminal


def read_steps(logs: Path) -> list[dict[str, Any]]:
    """Name, status, seconds, command and the last line of the log, in the order of the steps."""
    steps = []
    for line in (logs / "steps.tsv").read_text().splitlines():
        name, status, seconds, command = line.split("\t", 3)
        lines = log_of(logs, name).strip().splitlines()
        said = lines[-1].strip(" =") if lines else ""
        steps.append({"name": name, "status": status, "seconds": int(seconds), "command": command, "said": said})
    return steps


def log_of(logs: Path, name: str) -> str:
    path = logs / f"{name}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def main() -> None:
    logs, results = map(Path, sys.argv[1:])
    steps = read_steps(logs)
    latency = logs / "latency.json"
    about = environment()
    found = {
        "environment": about,
        "steps": steps,
        "latency": json.loads(latency.read_text()) if latency.exists() else None,
    }
    everything = "".join(f"---- {step['name']}: {step['command']}\n{log_of(logs, step['name'])}\n" for step in steps)
    write_whole(results / "gpu_check.log", everything)
    write_whole(results / "gpu_check.json", json.dumps(found, indent=1))

    for step in steps:
        if step["status"].startswith(("failed", "over")):
            print(f"---- {step['name']}, the end of its output")
            print("\n".join(log_of(logs, step["name"]).splitlines()[-SHOWN:]), "\n")
    print(log_of(logs, "latency") if latency.exists() else "no latencies")
    print(", ".join(f"{key} {value}" for key, value in about.items()), "\n")
    print("| step | status | seconds | last line of its output |\n|---|---|---|---|")
    for step in steps:
        print(f"| {step['name']} | {step['status']} | {step['seconds']} | {step['said'][:100]} |")


if __name__ == "__main__":
    main()
