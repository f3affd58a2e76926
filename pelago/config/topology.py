"""Tables of the run file about places and links: region, network, local."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from pelago.config.fields import (
    STEP_MS_MAX,
    Connects,
    Gbps,
    Listens,
    Milliseconds,
    Name,
    Natural,
    PositiveFloat,
    Section,
    WholeMilliseconds,
)

Auto = Literal["auto"]
STRIPES_CHOSEN_MAX: Final = 8
WINDOW_MIB_MIN: Final = 8
"""A receiver acknowledges as often as this window needs."""
WINDOW_MIB_MAX: Final = 1024


class RegionSection(Section):
    """One region."""

    name: Name
    worker_speeds: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Relative speed of each worker; only the ratios in the whole file matter."""
    bind: Listens = ""
    """Control port of its LPS; bulk data uses the next one. Empty: 0.0.0.0 and 7710, 7720, ..."""
    connect: Connects = ""
    """HOST:PORT under which its workers reach it; empty: that of bind, 127.0.0.1 where that is all addresses."""

    @field_validator("name")
    @classmethod
    def _not_a_role(cls, value: str) -> str:
        if value in ("gps", "evaluator"):
            raise ValueError("is the name of a role; call the region otherwise")
        return value


class NetworkSection(Section):
    """Links between regions: emulated by `pelago local`, obeyed by the virtual driver."""

    share_links: bool = False
    """Virtual driver: transfers that use a link between two regions at once share its bandwidth."""
    bandwidth_gbps: tuple[tuple[Gbps, ...], ...] = ()
    latency_ms: tuple[tuple[Milliseconds, ...], ...] = ()
    """One-way."""
    stripes: Auto | Annotated[int, Field(ge=1, le=STRIPES_CHOSEN_MAX)] = "auto"
    """Connections for bulk data that a node opens to each of its servers. "auto": more, while they add throughput. May
    differ from host to host."""
    window_mib: Auto | Annotated[float, Field(ge=WINDOW_MIB_MIN, le=WINDOW_MIB_MAX)] = "auto"
    """Of a payload, sent and not acknowledged. "auto": twice what was measured to fit the line. May differ from host
    to host."""
    heartbeat_ms: WholeMilliseconds = 500
    lost_after_ms: WholeMilliseconds = 5000
    """A peer silent for so long is lost; a worker's leases are then leased again."""
    region_lost_after_ms: WholeMilliseconds = 600_000
    """A region silent for so long forfeits its leases."""
    give_up_after_ms: WholeMilliseconds = 3_600_000
    """A node whose server was silent for so long ends with an error: the run may be over, or lost."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        if not self.heartbeat_ms * 2 <= self.lost_after_ms <= self.region_lost_after_ms:
            raise ValueError(
                f"must hold: 2 * heartbeat_ms ({self.heartbeat_ms}) <= lost_after_ms ({self.lost_after_ms})"
                f" <= region_lost_after_ms ({self.region_lost_after_ms})"
            )
        if self.give_up_after_ms < self.lost_after_ms:
            raise ValueError(
                f"give_up_after_ms = {self.give_up_after_ms} must not be below"
                f" lost_after_ms = {self.lost_after_ms}"
            )
        return self


class LocalSection(Section):
    """How `pelago local` emulates a topology on one machine."""

    step_ms: Annotated[float, Field(ge=0, le=STEP_MS_MAX, allow_inf_nan=False)] = 0.0
    """Paced time of a local step at relative speed 1; 0: the fastest worker runs unpaced, the others in
    proportion to their own compute time."""
    port: Natural = 0
    """First port to use; 0: free ones."""
