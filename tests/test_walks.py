"""The walks through the code in docs/ARCHITECTURE.md lead to places that exist, through few files."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
KEY: Final = "A run-file key from the file to its use"
FILES_MAX: Final = {KEY: 5, "A push from worker to LPS to GPS and back": 8}
"""By heading."""
STEP: Final = re.compile(r"^\d+\. .*?`(?P<file>[\w/]+\.py): (?P<name>[\w.]+)`", re.MULTILINE)


def walks(text: str) -> dict[str, list[tuple[str, str]]]:
    """The steps of each walk of a document, as (file, name), by heading. Raises `ValueError` for none."""
    found = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        if heading in FILES_MAX:
            numbered = len(re.findall(r"^\d+\. ", body, flags=re.MULTILINE))
            found[heading] = [(step["file"], step["name"]) for step in STEP.finditer(body)]
            if not numbered or len(found[heading]) != numbered:
                raise ValueError(f"{heading}: every step must begin with `FILE.py: NAME`")
    return found


def names(text: str) -> set[str]:
    """Functions, classes and methods ("Class.method") that a module defines."""
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


WALKS: Final = walks((ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("heading", WALKS)
def test_every_step_of_a_walk_exists(heading: str) -> None:
    missing = [
        f"{file}: {name}"
        for file, name in WALKS[heading]
        if not (ROOT / file).is_file()
        or name not in names((ROOT / file).read_text(encoding="utf-8"))
    ]
    assert missing == []


@pytest.mark.parametrize("heading", WALKS)
def test_a_walk_passes_few_files(heading: str) -> None:
    assert len({file for file, _ in WALKS[heading]}) <= FILES_MAX[heading]


def test_there_are_both_walks() -> None:
    assert set(WALKS) == set(FILES_MAX)


def test_a_step_without_a_place_is_found() -> None:
    with pytest.raises(ValueError, match="every step"):
        walks(f"### {KEY}\n\n1. `a.py: f` does.\n2. then this.\n")
