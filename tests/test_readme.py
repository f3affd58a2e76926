"""The project tree in README.md: everything that it names exists, and every package is in it."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PRODUCT: Final = ("pelago", "gps", "lps", "worker", "convergence", "experiments")
LINE: Final = re.compile(r"(?P<indent> *)(?P<name>\S+) {2,}(?P<purpose>\S.*)")


def tree() -> dict[str, str]:
    """Purpose by path; a folder's path ends with a slash."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("## What is where\n")[2].split("```\n")[1]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        match = LINE.fullmatch(line)
        assert match is not None, line
        folders = folders[: len(match["indent"]) // 2]
        folders.append(match["name"])
        found["".join(folders)] = match["purpose"]
    return found


def test_everything_in_the_tree_exists() -> None:
    wrong = [
        path
        for path in tree()
        if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    ]
    assert wrong == []


def test_every_package_is_in_the_tree() -> None:
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert len(packages) > 30
    assert sorted(packages - tree().keys()) == []
