"""The run file: one TOML that says everything about a run, the same on every host.

Frozen models, unknown keys refused. Every error names the key, the value and what would be right.
Nothing here starts anything; `pelago check` looks at files, ports and shapes as well.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from pelago import address, reading
from pelago.config import models_held
from pelago.config.fields import SPEED_RATIO_MAX, Section
from pelago.config.servers import GpsSection, LpsSection
from pelago.config.simulation import SimulationSection
from pelago.config.topology import LocalSection, NetworkSection, RegionSection
from pelago.config.training import DataSection, ModelSection, RunSection, WorkerSection
from pelago.core.errors import ConfigError


class RunFile(Section):
    """A whole run file."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    worker: WorkerSection = WorkerSection()
    lps: LpsSection = LpsSection()
    gps: GpsSection = GpsSection()
    region: Annotated[
        tuple[RegionSection, ...],
        Field(
            min_length=1,
            max_length=64,
            description="there must be a table [[region]] for each region, with its name and worker_speeds",
        ),
    ]
    network: NetworkSection = NetworkSection()
    local: LocalSection = LocalSection()
    simulation: SimulationSection | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [region.name for region in self.region]
        if len(set(names)) != len(names):
            raise ValueError(f"region.name: names must differ, got {names}")
        if self.gps.region and self.gps.region not in names:
            raise ValueError(f"gps.region = {self.gps.region!r} is no region; there are {names}")
        speeds = [speed for region in self.region for speed in region.worker_speeds]
        if max(speeds) > SPEED_RATIO_MAX * min(speeds):
            raise ValueError(
                f"region.worker_speeds: the fastest, {max(speeds):g}, must not be more than {SPEED_RATIO_MAX:,} times"
                f" as fast as the slowest, {min(speeds):g}"
            )
        for key in ("bandwidth_gbps", "latency_ms"):
            matrix = getattr(self.network, key)
            sizes = [len(row) for row in matrix]
            if matrix and (len(sizes) != len(names) or set(sizes) != {len(names)}):
                raise ValueError(
                    f"network.{key} must be {len(names)} x {len(names)}, a row per region, got rows of {sizes}"
                )
        return self

    @model_validator(mode="after")
    def _servers_have_room_for_a_version(self) -> Self:
        regions = range(len(self.region))
        held = {"gps": [models_held.of_gps(self)]}
        held["lps"] = [models_held.of_lps(self, region) for region in regions]
        for key, server in (("gps", self.gps), ("lps", self.lps)):
            room = min(each.passing[models_held.REPLIES] for each in held[key])
            if server.models_max and room < 1:
                least = server.models_max + 1 - room
                raise ValueError(
                    f"{key}.models_max = {server.models_max}: must be 0, or at least {least}: {least - 1} models of"
                    " state, of updates that arrive and of a snapshot, and a version on its way to a reader; fewer"
                    f" arrive with a smaller {key}.staged_max"
                )
        return self

    @property
    def gps_region(self) -> str:
        """Name of the GPS's region."""
        return self.gps.region or self.region[0].name

    @property
    def slots(self) -> dict[str, int]:
        """The processes of `pelago local` that compute, numbered: workers first, then the evaluator."""
        workers = [
            f"worker-{region.name}-{group}"
            for region in self.region
            for group in range(len(region.worker_speeds))
        ]
        return {name: slot for slot, name in enumerate([*workers, "evaluator"])}

    @property
    def out(self) -> Path:
        """Folder of the results. Raises `ConfigError` for a ``~user`` that this host does not know."""
        return reading.require_expanded(self.run.out or f"runs/{self.run.name}", "run.out")

    @property
    def run_id(self) -> str:
        """Equal on all hosts of a run and on no other run: the name and a digest of what must agree.

        Addresses and paths may differ from host to host, so they are left out; the model fingerprint
        and the corpus digest stand for what lies at the paths.
        """
        same = self.model_dump(
            mode="json",
            exclude={
                "run": {"out", "export_minutes"},
                "model": {"preset"},
                "data": {"source", "tokenizer"},
                "lps": {"models_max"},
                "gps": {
                    "bind",
                    "connect",
                    "snapshots",
                    "snapshots_minutes",
                    "snapshots_kept",
                    "models_max",
                },
                "worker": {
                    "device",
                    "compile",
                    "micro_batch_size",
                    "checkpoint_activations",
                    "moments_dtype",
                    "keep_optimiser",
                },
                "local": True,
                "network": {
                    "bandwidth_gbps",
                    "latency_ms",
                    "share_links",
                    "give_up_after_ms",
                    "stripes",
                    "window_mib",
                },
            },
        )
        for region in same["region"]:
            region.pop("bind"), region.pop("connect")
        digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.run.name[:48]}-{digest}"

    def region_index(self, name: str) -> int:
        """Place of a region in the file. Raises `ConfigError` for a name that is not there."""
        names = [region.name for region in self.region]
        if name not in names:
            raise ConfigError(f"region {name!r} is not in the run file; there are {names}")
        return names.index(name)

    def relative_speed(self, region: int, group: int) -> float:
        """Speed of a worker, the fastest of the file being 1. A worker beyond the list counts as 1."""
        speeds = self.region[region].worker_speeds
        if not 0 <= group < len(speeds):
            return 1.0
        return speeds[group] / max(speed for each in self.region for speed in each.worker_speeds)

    def gps_bind(self) -> tuple[str, int]:
        """Host and control port that the GPS binds."""
        return address.split(self.gps.bind, listens=True)

    def gps_connect(self) -> tuple[str, int]:
        """Host and control port where the regions find the GPS."""
        return _connect(self.gps.connect, self.gps_bind())

    def lps_bind(self, region: int) -> tuple[str, int]:
        """Host and control port that a region's LPS binds."""
        bind = self.region[region].bind or f"0.0.0.0:{7710 + 10 * region}"
        return address.split(bind, listens=True)

    def lps_connect(self, region: int) -> tuple[str, int]:
        """Host and control port where a region's workers find their LPS."""
        return _connect(self.region[region].connect, self.lps_bind(region))


def _connect(connect: str, bind: tuple[str, int]) -> tuple[str, int]:
    host, port = bind
    return address.split(connect) if connect else (address.reached_at(host), port)
