"""A usage error, and --help, are answered before anything is imported that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.topology import run_file

HEAVY = ("torch", "transformers", "matplotlib", "ray")
PROGRAM = """
import importlib, json, sys
name, *sys.argv[1:] = json.loads(sys.argv[1])
sys.argv[0] = name
try:
    code = importlib.import_module(name).main()
except SystemExit as ended:
    code = ended.code
print(json.dumps([code or 0, [each for each in HEAVY if each in sys.modules]]))
"""
COMMANDS = (
    "pelago.cli.main",
    "gps.__main__",
    "lps.__main__",
    "worker.__main__",
    "experiments.__main__",
    "convergence.fuzz.__main__",
    "convergence.theory.__main__",
)
DAEMONS = (
    "gps.__main__",
    "lps.__main__ --region eu",
    "worker.__main__ --region eu",
    "worker.__main__ --evaluate",
)
WRONG = (
    "pelago.cli.main",
    "pelago.cli.main local",
    "pelago.cli.main chekk RUN",
    "pelago.cli.main local RUN --livee",
    "pelago.cli.main check NOWHERE",
    *(
        f"pelago.cli.main {command} /nowhere.toml"
        for command in ("local", "check", "resume", "export")
    ),
    "pelago.cli.main export FOLDER",
    *(f"pelago.cli.main local RUN --out {place}" for place in ("RUN", "x" * 300)),
    "pelago.cli.main export STATE --out RUN",
    *(
        f"{line} --run RUN --out {out}"
        for line in DAEMONS
        for out in ("RUN", "RUN/below", "~no-such-user")
    ),
    *(f"{line} --run NOWHERE" for line in DAEMONS),
    *(f"{role}.__main__" for role in ("gps", "lps", "worker")),
    *(f"{role}.__main__ --run /nowhere.toml --region eu" for role in ("lps", "worker")),
    *(f"{role}.__main__ --run RUN --region mars" for role in ("lps", "worker")),
    "gps.__main__ --run /nowhere.toml",
    "gps.__main__ --run RUN --bind nonsense",
    "lps.__main__ --run RUN --region eu --connect nonsense",
    "lps.__main__ --run RUN --region eu --connect 0.0.0.0:7700",
    "worker.__main__ --run RUN",
    "worker.__main__ --run RUN --evaluate --connect nonsense",
    "worker.__main__ --run RUN --evaluate --describe",
    # No message can hold such a group, so the worker would wait for an answer without end.
    "worker.__main__ --run RUN --region eu --group -5",
    "worker.__main__ --run RUN --region eu --group 99999999999999999999",
    "experiments.__main__ replay",
    "experiments.__main__ replay nowhere",
    "experiments.__main__ replay RUN",
    "experiments.__main__ replay lm_search --jobs 0",
    "experiments.__main__ replay lm_search --trace",
    "experiments.__main__ replay lm_search --engine ray --together 2",
    "experiments.__main__ replay halos_paper --fresh",
    "experiments.__main__ report /nowhere",
    "convergence.fuzz.__main__ --seeds 0",
    "convergence.theory.__main__ --seeds 0",
)


def ran(*words: str) -> tuple[int, list[str], str]:
    """Run a command in a new process: its exit code, what it imported, and what it said."""
    program = PROGRAM.replace("HEAVY", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(words)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, imported = json.loads(done.stdout.splitlines()[-1])
    return code, imported, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    assert ran(command, "--help") == (0, [], "")


@pytest.mark.parametrize("line", WRONG)
def test_a_usage_error_imports_nothing_heavy(tmp_path: Path, line: str) -> None:
    path, nowhere = run_file(tmp_path), tmp_path / "nowhere.toml"
    text = path.read_text(encoding="utf-8")
    nowhere.write_text(text.replace("[run]", '[run]\nout = "/dev/null/out"'), encoding="utf-8")
    (tmp_path / "snapshot-1").touch()
    places = {
        "NOWHERE": nowhere,
        "RUN": path,
        "FOLDER": tmp_path / "corpus",
        "STATE": tmp_path,
    }
    for name, place in places.items():
        line = line.replace(name, str(place))
    words = line.split()
    code, imported, said = ran(*words)
    assert (code, imported) == (2, []), said
    assert "Traceback" not in said
    assert len(said.splitlines()[-1]) > len("error: ")
