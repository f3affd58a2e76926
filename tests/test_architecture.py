"""The import contracts of setup.cfg hold, and each of them catches what it is there for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pelago", "gps", "lps", "worker", "convergence", "experiments")

LAYERS = "Imports point down only; roles, and the two drivers, never see each other"
PARTS = "Every part of pelago has its layer"
VIRTUAL = "Convergence is studied on the virtual driver only"
TRAINER = "What a worker computes knows no driver; only its process does"
PURE = "Machines, core, wire and the virtual driver do no I/O and know no clock"
INTEGERS = "Machines, core and wire hold no tensors"


def lint_imports(folder: Path) -> tuple[int, str]:
    """Check the contracts of a tree; the packages found there hide the installed ones."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "COLUMNS": "200", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the six packages and of the contracts."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "setup.cfg", folder)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def test_every_import_contract_holds() -> None:
    status, output = lint_imports(ROOT)
    assert status == 0, output
    for name in (LAYERS, PARTS, VIRTUAL, TRAINER, PURE, INTEGERS):
        assert f"{name} KEPT" in output


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("gps/state.py", "import zmq", PURE),
        ("lps/state.py", "import asyncio", PURE),
        ("worker/state.py", "import logging", PURE),
        ("worker/evaluator/state.py", "import time", PURE),
        ("pelago/core/planted.py", "import time", PURE),
        ("pelago/wire/planted.py", "from socket import socket", PURE),
        ("pelago/sim/planted.py", "import threading", PURE),
        ("pelago/core/planted.py", "import torch", INTEGERS),
        ("lps/state.py", "from numpy import float32", INTEGERS),
        ("gps/planted.py", "from lps import state", LAYERS),
        ("worker/planted.py", "import gps", LAYERS),
        ("pelago/net/planted.py", "import pelago.sim", LAYERS),
        ("pelago/sim/planted.py", "import pelago.net", LAYERS),
        ("pelago/tensor/planted.py", "from pelago.config import run_toml", LAYERS),
        ("pelago/runlog/planted.py", "import pelago.net", LAYERS),
        ("pelago/net/planted.py", "import lps", LAYERS),
        ("pelago/planted.py", "", PARTS),
        ("convergence/planted.py", "import pelago.net", VIRTUAL),
        ("worker/trainer.py", "from pelago.net.tensors import training", TRAINER),
        ("worker/evaluator/planted.py", "import pelago.net.node", TRAINER),
    ],
)
def test_a_planted_violation_breaks_its_contract(
    tree: Path, module: str, line: str, contract: str
) -> None:
    path = tree / module
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text((before or "") + f"\n{line}\n", encoding="utf-8")
    try:
        status, output = lint_imports(tree)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
    assert status != 0
    assert f"{contract} BROKEN" in output
