"""The tables of transitions in the tree: found, and drawn into docs/ARCHITECTURE.md.

``python -m tests.draw_transitions`` (or ``make tables``) draws them anew; tests/test_transitions.py
compares them with the code and with the document.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from pelago.core.transitions import Transition, TransitionTable

ROOT: Final = Path(__file__).parents[1]
DOCUMENT: Final = ROOT / "docs" / "ARCHITECTURE.md"
FOLDERS: Final = ("gps", "lps", "worker", "pelago")
BEGIN: Final = "<!-- transitions:begin -->"
END: Final = "<!-- transitions:end -->"
METHOD: Final = "_enter"
"""The one method of a machine that changes its state."""


@dataclass(frozen=True)
class StateMachine:
    """A class that has a table of transitions."""

    table: TransitionTable
    of_class: ast.ClassDef
    attribute: str
    """Of the class: its state."""
    path: str
    """Of its file, relative to the root of the tree."""


def files() -> Iterator[Path]:
    """Every file that may hold a table or a machine."""
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def tables() -> list[TransitionTable]:
    """Every table that is a constant of a module, once, in the order of the files."""
    found: list[TransitionTable] = []
    for path in files():
        if "TransitionTable(" in path.read_text(encoding="utf-8"):
            values = vars(import_module(_module(path))).values()
            found += [each for each in values if isinstance(each, TransitionTable)]
    return found


def machines() -> list[StateMachine]:
    """Every class with a method `_enter`, which must be no more than the question to its table."""
    found = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == METHOD:
                    name, attribute = _asked(method)
                    table = getattr(import_module(_module(path)), name)
                    where = str(path.relative_to(ROOT))
                    found.append(StateMachine(table, node, attribute, where))
    return found


def _asked(method: ast.FunctionDef) -> tuple[str, str]:
    """Names of the table and of the attribute in ``self.attribute = table.move(self.attribute, target)``."""
    [statement] = method.body
    target = method.args.args[1].arg
    assert isinstance(statement, ast.Assign), ast.unparse(method)
    [to] = statement.targets
    assert isinstance(to, ast.Attribute), ast.unparse(method)
    table, _, rest = ast.unparse(statement.value).partition(".")
    assert rest == f"move(self.{to.attr}, {target})", ast.unparse(method)
    return table, to.attr


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def drawn(machine: StateMachine) -> str:
    """The table as Markdown; rows that differ only in their source are one."""
    sources: dict[tuple[str, str, str], list[str]] = {}
    for each in machine.table.transitions:
        sources.setdefault((each.target, each.method, each.when), []).append(each.source)
    rows = [
        f"| {', '.join(each)} | {target} | {when} | `{method}` |"
        for (target, method, when), each in sources.items()
    ]
    name = machine.table.name
    title = f"**{name[0].upper()}{name[1:]}**, `{machine.of_class.name}` in `{machine.path}`, from"
    head = f"{title} *{machine.table.start}*:"
    return "\n".join([head, "", "| from | to | when | in |", "|---|---|---|---|", *rows])


def section() -> str:
    """What stands between the marks in the document."""
    return "\n\n".join(drawn(each) for each in machines())


def parts() -> tuple[str, str, str]:
    """The document before, between and after the marks."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between, after


def main() -> None:
    """Draw the tables anew."""
    before, _, after = parts()
    text = f"{before}{BEGIN}\n{section()}\n{END}{after}"
    DOCUMENT.write_text(text, encoding="utf-8")


def moves(table: TransitionTable) -> set[tuple[str, str]]:
    """(source, target) of every row."""
    return {_move(each) for each in table.transitions}


def _move(row: Transition) -> tuple[str, str]:
    return row.source, row.target


if __name__ == "__main__":
    main()
