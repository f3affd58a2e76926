"""The paper's environment, and settings of the reference as run files."""

from pathlib import Path
from typing import Any

from pelago.config import run_toml
from pelago.config.run_file import RunFile
from tests.convergence.reference_simulator import Setting

SHIPPED = Path(__file__).parents[2] / "experiments"

SPEEDS = (
    (0.232, 0.907, 0.828, 0.347),
    (0.574, 0.531, 0.722, 0.194),
    (0.852, 0.132, 0.896, 0.107),
    (0.827, 0.515, 0.527, 0.788),
)
BANDWIDTH_GBPS = (
    (100.0, 0.537, 0.935, 0.202),
    (0.537, 100.0, 0.386, 0.117),
    (0.935, 0.386, 100.0, 0.127),
    (0.202, 0.117, 0.127, 100.0),
)
PAPER = Setting(SPEEDS, BANDWIDTH_GBPS)


def run_file(setting: Setting, problem: str = "scalar", **run: Any) -> RunFile:
    """The run file of a setting of the reference."""

    def server(settings: tuple[float, float, int]) -> dict[str, Any]:
        eta, momentum, delay = settings
        return {"lr": eta, "momentum": momentum, "momentum_delay": delay}

    return RunFile.model_validate(
        {
            "run": {"budget_local_steps": setting.budget, **run},
            "worker": {"local_steps": setting.local_steps, "rescale": setting.rescale},
            "lps": {
                **server(setting.lps),
                "updates_per_exchange": setting.every,
                "merge_weight": setting.alpha,
                "in_flight": "carry" if setting.carry else "drop",
            },
            "gps": {**server(setting.gps), "region": f"r{setting.gps_region}"},
            "region": [
                {"name": f"r{index}", "worker_speeds": speeds}
                for index, speeds in enumerate(setting.speeds)
            ],
            "network": {"bandwidth_gbps": setting.bandwidth_gbps},
            "simulation": {
                "problem": problem,
                "model_bytes": setting.model_bytes,
                "step_ms": setting.step_ms,
            },
        }
    )


def shipped(name: str) -> RunFile:
    """A run file of the experiments folder."""
    return run_toml.load(SHIPPED / f"{name}.toml")
