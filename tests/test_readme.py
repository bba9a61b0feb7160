"""What a newcomer reads works as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from published_files import ACTIONS, kth_video, moving_mnist, save_taxis, taxi_arrays, write_video

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def folder_with_data(tmp_path: Path) -> Path:
    """A place where ``data`` has a little of each data set."""
    data = tmp_path / "data"
    data.mkdir()
    moving_mnist(data)
    save_taxis(data, taxi_arrays())
    for action in ACTIONS:
        for person in (1, 17):
            kth_video(data, action, person, range(1, 31))
    for clip in range(4):
        write_video(data / "clips" / f"{clip}.mkv", range(40))
    return tmp_path


#: Shown and not needed: blocks that use them are compiled and not run.
NOT_INSTALLED = ("lightning", "accelerate")


def snippets(page: str) -> list[str]:
    """Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/neurons.md", "docs/data.md", "docs/training.md"])
def test_snippets_run(page: str, folder_with_data: Path) -> None:
    assert snippets(page)
    for block in snippets(page):
        compile(block, page, "exec")
    blocks = [block for block in snippets(page) if not any(f"import {name}" in block for name in NOT_INSTALLED)]
    each = "\n".join(f"exec({block!r}, {{'__name__': '__main__'}})" for block in blocks)
    done = subprocess.run(
        [sys.executable, "-c", each], cwd=folder_with_data, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "docs/results.md"])
def test_commands_are_understood(page: str) -> None:
    from stc_cuda import cli
    from stc_cuda.train import config

    lines = re.findall(
        r"^    (?:torchrun \S+ -m stc_cuda|stc-cuda) (.*)$", (ROOT / page).read_text(), flags=re.MULTILINE
    )
    assert len(lines) >= 3
    for line in lines:
        arguments = cli._parser().parse_args(shlex.split(line, comments=True))
        if getattr(arguments, "source", None) in config.preset_names():
            config.load(arguments.source, cli._changes(arguments))
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        config.parse(yaml.safe_load(block))


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text())
    missing = [target for target in targets if "://" not in target and not (file.parent / target).exists()]
    assert not missing


def test_names_of_the_table_exist() -> None:
    import stc_cuda

    names = re.findall(r"^\| `stc_cuda\.([\w.]+)`", README, flags=re.MULTILINE)
    assert len(names) >= 6
    for name in names:
        thing: object = stc_cuda
        for part in name.split("."):
            thing = getattr(thing, part)
