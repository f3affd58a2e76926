"""The shape of the tree: unique class names, a limit of lines a file, a limit of parameters a constructor."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PRODUCT: Final = ("pelago", "gps", "lps", "worker", "convergence", "experiments")
EVERYTHING: Final = (*PRODUCT, "bench", "tests")
LINES_MAX: Final = 500


def modules(*folders: str) -> Iterator[Path]:
    """Every Python file below some folders."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def classes(path: Path) -> Iterator[ast.ClassDef]:
    """Every class of a file, nested ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node


def test_a_public_class_name_occurs_once_in_the_whole_tree() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in modules(*EVERYTHING):
        for each in classes(path):
            if not each.name.startswith("_"):
                found[each.name].append(f"{path.relative_to(ROOT)}:{each.lineno}")
    assert len(found) > 300
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


@pytest.mark.parametrize("folder", ["pelago", "gps", "lps", "worker"])
def test_no_file_is_longer_than_a_reader_can_hold(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules(folder)
    }
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}


PARAMETERS_MAX: Final = 6
"""Of a constructor, without ``self``."""


def parameters(of_class: ast.ClassDef) -> int:
    """How many parameters the constructor has that a class writes itself; 0 if it writes none."""
    for each in of_class.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            arguments = each.args
            return len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]) - 1
    return 0


@pytest.mark.parametrize("folder", ["pelago", "gps", "lps", "worker"])
def test_no_constructor_has_more_than_six_parameters(folder: str) -> None:
    counts = {
        f"{path.relative_to(ROOT)} {each.name}": parameters(each)
        for path in modules(folder)
        for each in classes(path)
    }
    assert max(counts.values()) > 0
    assert {name: count for name, count in counts.items() if count > PARAMETERS_MAX} == {}
