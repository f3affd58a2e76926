"""How many models each role holds: in memory, and, where it is durable, on its disk.

The one place of these figures: `pelago plan` and the comparison with free disks take them from here. One model is
all parameters in fp32. They are limits: not everything is there at every moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pelago.config.servers import ServerSection

if TYPE_CHECKING:
    from pelago.config.run_file import RunFile

REPLIES: Final = "replies of an older version"


@dataclass(frozen=True, slots=True)
class ModelsHeld:
    """Models by what they are. ``state``: kept from one event to the next, and what is on its way to be that.
    ``passing``: in memory alone, for a while: versions that a slow reader still gets, or that a snapshot still writes.
    """

    state: Mapping[str, int]
    passing: Mapping[str, int]

    @property
    def durable(self) -> int:
        """Models that a server's state on disk may have."""
        return sum(self.state.values())

    @property
    def memory(self) -> int:
        """Models that may be in memory."""
        return self.durable + sum(self.passing.values())


def of_gps(run: "RunFile") -> ModelsHeld:
    """The GPS."""
    gps = run.gps
    kept = {"model": 1, **_outer(gps)}
    if gps.average:
        kept["mean"] = 1
    arriving = {"updates that arrive": min(gps.arriving_max, len(run.region))}
    return _held(gps, {**kept, **arriving}, kept)


def of_lps(run: "RunFile", region: int) -> ModelsHeld:
    """The LPS of a region, by its place in the run file."""
    lps = run.lps
    changing = {"model": 1, **_outer(lps)}
    state = {**changing, "model of the last exchange": 1}
    if lps.in_flight != "drop":
        state["model as sent"] = 1
    workers = len(run.region[region].worker_speeds)
    state["exchange"] = 1
    state["global model that arrives"] = 1
    state["updates that arrive"] = min(lps.arriving_max, workers)
    return _held(lps, state, changing)


def versions_max(server: ServerSection, held: ModelsHeld) -> int:
    """How many versions may be on their way to readers at once; 0: any number."""
    return held.passing[REPLIES] if server.models_max else 0


def moments(run: "RunFile") -> int:
    """Models that the moments of a worker's optimiser are as large as, at most: AdamW's."""
    return 1 if run.worker.moments_dtype == "bfloat16" else 2


def of_worker_host(run: "RunFile", *, gpu: bool) -> Mapping[str, int]:
    """A worker's memory on its host, in models, by what they are. ``gpu``: it computes on one."""
    held = {"model that arrives": 1, "update": 1}
    return held if gpu else {**of_worker_device(run, gpu=False), **held}


def of_worker_device(run: "RunFile", *, gpu: bool) -> Mapping[str, int]:
    """What a worker computes on, in models. ``gpu``: the start of a round is kept on the GPU too."""
    held = {"parameters": 1, "gradient": 1, "moments": moments(run)}
    return {**held, "start of the round": 1} if gpu else held


def _outer(server: ServerSection) -> dict[str, int]:
    """Arenas of the outer optimiser."""
    if server.momentum == 0:
        return {}
    return {"momentum": 1} if server.momentum_delay == 1 else {"momentum": 1, "accumulator": 1}


def _held(
    server: ServerSection, state: Mapping[str, int], changing: Mapping[str, int]
) -> ModelsHeld:
    """``changing``: arenas that operations replace while a snapshot of them is written."""
    written = (
        {} if server.durability == "none" else {"snapshot that is written": sum(changing.values())}
    )
    others = sum(state.values()) + sum(written.values())
    # Without a limit one: readers of about the same speed share a version.
    replies = server.models_max - others if server.models_max else 1
    return ModelsHeld(state, {REPLIES: replies, **written})
