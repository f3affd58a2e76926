"""The same updates in the same order give the same bits, in two runs and compared with the golden file."""

import json
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("name", ["optim", "replay"])
def test_the_servers_numbers_are_the_golden_ones(name: str) -> None:
    """On an instruction set that is not in the file, only two runs are compared."""
    entry = runpy.run_path(str(FOLDER / "regenerate.py"))["entry"]
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    [(capability, found)] = entry(name).items()
    if capability not in golden:
        print(
            f"no golden values for {capability}: python tests/golden/regenerate.py {name} adds them"
        )
    again = entry(name)[capability]
    assert found == golden.get(capability, again)


def test_the_golden_file_knows_the_common_instruction_sets():
    golden = json.loads((FOLDER / "optim.json").read_text(encoding="utf-8"))
    assert {"DEFAULT", "AVX2", "AVX512"} <= set(golden)
    assert golden["AVX2"]["drop-0"]["lps"] == golden["AVX512"]["drop-0"]["lps"]
