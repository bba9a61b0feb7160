"""What a newcomer reads works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/neurons.md"])
def test_snippets_run(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    each = "\n".join(f"exec({block!r}, {{'__name__': '__main__'}})" for block in blocks)
    done = subprocess.run([sys.executable, "-c", each], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


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
