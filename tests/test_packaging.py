"""What is installed is what was meant: six generic package names, all of them ours, and no other.

pip does not notice when two distributions own a package of one name, so these tests do.
"""

import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pelago", "gps", "lps", "worker", "convergence", "experiments")
COMMANDS = ("pelago", "gps", "lps", "worker", "experiments")


def modules(folder: Path) -> set[str]:
    """Paths of the Python files of the six packages below a folder."""
    return {
        path.relative_to(folder).as_posix()
        for package in PACKAGES
        for path in (folder / package).rglob("*.py")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the tree so that nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in (*PACKAGES, "tests", "bench"):
        if (ROOT / name).exists():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def test_a_wheel_holds_every_module_of_the_six_packages_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name for name in names if name.endswith(".py")} == modules(ROOT)
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_a_wheel_states_its_licence_and_cannot_be_uploaded_by_mistake(
    wheel: zipfile.ZipFile,
) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().splitlines()
    assert "License-Expression: Apache-2.0" in lines
    assert "Classifier: Private :: Do Not Upload" in lines
    assert any(each.endswith("licenses/LICENSE") for each in wheel.namelist())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_of_this_name_is_ours_and_only_ours(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")
    owners = set(metadata.packages_distributions().get(package, []))
    assert owners == {"pelago"}


def test_every_constraint_admits_what_setup_cfg_asks_for_and_is_what_is_installed() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned = {
        canonicalize_name(requirement.name): requirement.specifier
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
        for requirement in [Requirement(line)]
    }
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    asked = [Requirement(line) for line in lists.splitlines() if line]
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} has no line in constraints.txt"
        (version,) = (each.version for each in pinned[name])
        assert requirement.specifier.contains(version), f"{requirement} does not admit {version}"
        assert pinned[name].contains(metadata.version(name)), f"{name} is installed otherwise"


def test_pyproject_holds_the_build_system_and_nothing_that_would_hide_setup_cfg() -> None:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert list(tables) == ["build-system"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself_and_exits_with_zero(command: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / command), "--help"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command}")
