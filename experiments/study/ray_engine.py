"""Where the runs of a study run: a Ray cluster, for sweeps that outgrow one machine.

Ray is an optional dependency (docs/decisions/0005-ray-for-sweeps.md). RAY_ADDRESS names a cluster, as
Ray's own documentation says; without it Ray starts on this machine for as long as the study runs.
"""

import os
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, Final

from experiments.study.engines import Engine, Finished, Task, execute
from pelago.core.errors import ConfigError

IN_FLIGHT: Final = 4
"""Tasks per core that Ray knows of at once: enough to keep it busy, few enough to stop soon."""
OBJECT_STORE_BYTES: Final = 128 * 2**20
"""Object store of a Ray on this machine: results are some hundred kB each."""


def engine(jobs: int) -> Engine:
    """An engine on Ray; ``jobs``: cores of a Ray that starts here. Raises `ConfigError` without Ray."""
    # Ray reports its use over the network unless that is switched off before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--engine ray: Ray is not installed here; pip install -c constraints.txt 'pelago[ray]',"
            " or from a checkout pip install -c constraints.txt -e '.[ray]'"
        ) from None

    def run(tasks: Sequence[Task]) -> Generator[Finished, None, None]:
        _start(ray, jobs)
        try:
            yield from _all(ray, tasks)
        finally:
            ray.shutdown()

    return run


def _start(ray: Any, jobs: int) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        settings |= {
            "num_cpus": jobs,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        # Ray puts the working folder first on its workers' path, and what lies in a user's must not be
        # executed; the one of our packages may.
        with chdir(Path(__file__).parents[2]):
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"--engine ray: RAY_ADDRESS = {address!r}: {said}") from None


def _all(ray: Any, tasks: Sequence[Task]) -> Generator[Finished, None, None]:
    # No retries: a run that kills its process does so every time.
    remote = ray.remote(num_cpus=1, max_retries=0)(execute)
    waiting = deque(tasks)
    names: dict[Any, str] = {}
    most = IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while waiting or names:
        while waiting and len(names) < most:
            task = waiting.popleft()
            names[remote.remote(task)] = task.name
        (ready, *_), _ = ray.wait(list(names), num_returns=1)
        name = names.pop(ready)
        try:
            yield ray.get(ready)
        except ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[0]
            yield Finished(name, error=f"Ray lost the run: {type(error).__name__}: {said}")
