"""Words that docs/GLOSSARY.md has struck occur nowhere: a term has one name."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
GLOSSARY: Final = "docs/GLOSSARY.md"
HISTORY: Final = ("CHANGELOG.md", "docs/decisions/", "experiments/LOG.md")
"""Files that record the history of the project keep the words of their time."""


def _rows() -> list[list[str]]:
    lines = (ROOT / GLOSSARY).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return rows[2:]


def _words(row: list[str]) -> list[str]:
    return [word.strip() for word in row[2].split(",") if word.strip()]


def _texts() -> dict[str, str]:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.cfg", "*.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.splitlines()
    kept = [name for name in tracked if name != GLOSSARY and not name.startswith(HISTORY)]
    return {
        name: (ROOT / name).read_text(encoding="utf-8") for name in kept if (ROOT / name).exists()
    }


def test_every_term_has_one_line_and_a_struck_word_stands_for_one_term() -> None:
    rows = _rows()
    terms = [row[0] for row in rows]
    struck = [word for row in rows for word in _words(row)]
    assert all(len(row) == 3 and row[0] and row[1] for row in rows)
    assert len(set(terms)) == len(terms)
    assert len(set(struck)) == len(struck) > 0
    assert not set(struck) & set(terms)


@pytest.mark.parametrize("word", [word for row in _rows() for word in _words(row)])
def test_a_struck_word_occurs_neither_in_code_nor_in_documents(word: str) -> None:
    # Also as a part of a name: of a class, an attribute, a module.
    spelled = re.compile(rf"(?<![a-z]){word}(?![a-z])|(?<![A-Z]){word.capitalize()}(?![a-z])")
    found = [
        f"{name}:{number}"
        for name, text in _texts().items()
        for number, line in enumerate([name, *text.splitlines()])
        if spelled.search(line)
    ]
    assert not found, f"docs/GLOSSARY.md strikes {word!r}"
