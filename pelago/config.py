"""The run file: one TOML that says everything about a run, the same on every host.

Frozen models, unknown keys refused. Every message of this module names the key, the value and what
would be right. Nothing here starts anything; `pelago check` looks at files, ports and shapes as well.
"""

import hashlib
import json
import string
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pelago import address, reading
from pelago.core.errors import ConfigError

NAME_LENGTH_MAX: Final = 64
_NAME_BEGINS: Final = frozenset(string.ascii_letters + string.digits)
_NAME_HAS: Final = _NAME_BEGINS | frozenset("_.-")


def _name(value: str) -> str:
    """A name that can be a folder's, and part of what processes call one another."""
    if (
        0 < len(value) <= NAME_LENGTH_MAX
        and value[0] in _NAME_BEGINS
        and _NAME_HAS.issuperset(value)
    ):
        return value
    plain = (
        unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode().replace(" ", "-")
    )
    near = "".join(each for each in plain if each in _NAME_HAS).lstrip("_.-")[:NAME_LENGTH_MAX]
    raise ValueError(
        "a name has letters from a to z and A to Z, digits, '.', '_' and '-', begins with a letter or digit, and"
        f" has 1 to {NAME_LENGTH_MAX} of them" + (f", as {near!r} does" if near else "")
    )


def _connects(value: str) -> str:
    return address.join(*address.split(value)) if value else ""


def _listens(value: str) -> str:
    return address.join(*address.split(value, listens=True)) if value else ""


def _some_address(value: str) -> str:
    return _listens(value or ":")


COUNT_MAX: Final = 1 << 48
"""Of whatever is counted; the protocol has the same limit."""
ROUND_SAMPLES_MAX: Final = 1 << 32
"""Of a worker's round; the protocol lends no more at once."""
SECONDS_MAX: Final = 100 * 365 * 24 * 3600
"""A hundred years: a longer time is a mistake, and clocks and timers have no room for it."""
FLOAT_MAX: Final = 1e38
"""What fits into fp32, as models and updates are."""
SPEED_RATIO_MAX: Final = 10**6
STEP_MS_MAX: Final = 3_600_000
"""Of a paced step of the fastest worker: one of the slowest then takes about `SECONDS_MAX`."""

Positive = Annotated[int, Field(ge=1, le=COUNT_MAX)]
Natural = Annotated[int, Field(ge=0, le=COUNT_MAX)]
Seed = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
PositiveFloat = Annotated[float, Field(gt=0, le=FLOAT_MAX, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=FLOAT_MAX, allow_inf_nan=False)]
Minutes = Annotated[float, Field(ge=0, le=SECONDS_MAX / 60, allow_inf_nan=False)]
PositiveMinutes = Annotated[float, Field(gt=0, le=SECONDS_MAX / 60, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=SECONDS_MAX, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, le=SECONDS_MAX * 1000, allow_inf_nan=False)]
PositiveMilliseconds = Annotated[float, Field(gt=0, le=SECONDS_MAX * 1000, allow_inf_nan=False)]
WholeMilliseconds = Annotated[int, Field(ge=1, le=SECONDS_MAX * 1000)]
Gbps = Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Name = Annotated[str, AfterValidator(_name)]
InFlight = Literal["drop", "carry", "replay"]
Durability = Literal["none", "process", "host"]
Connects = Annotated[str, AfterValidator(_connects)]
"""HOST:PORT, or nothing."""
Listens = Annotated[str, AfterValidator(_listens)]
"""The same, where * is all addresses."""
UserPath = Annotated[str, AfterValidator(reading.expanded)]
"""A path on the host that reads the file: ~ is the folder of the user there."""


class Section(BaseModel):
    """A table of the run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """What is trained for how long, and where the results go."""

    name: Name = "run"
    seed: Seed = 0
    budget_local_steps: Positive = 98_304
    """Local steps counted at the GPS after which the run ends."""
    budget_minutes: Minutes = 0.0
    """Minutes after the first lease at which the run ends, those not counted in which there was no GPS;
    0: no limit."""
    export_minutes: Minutes = 0.0
    """Minutes between exports of the global model while the run goes on; 0: at its end only."""
    out: UserPath = ""
    """Folder of the results; empty: runs/NAME."""


class ModelSection(Section):
    """The model, as Hugging Face `transformers` builds it."""

    preset: UserPath = "llama3-tiny"
    """A preset's name, or the path of a Hugging Face config or checkpoint folder."""
    overrides: dict[str, int | float | bool | str] = {}
    """Keys of the architecture's config to change, e.g. hidden_size."""


class DataSection(Section):
    """The corpus: one global order that every worker reconstructs from the seed."""

    source: str = "stdlib"
    """stdlib | text:DIR | tokens:FILE (ids and nothing else, .npy, llm.c's, or Megatron's .bin with .idx)"""
    sequence_length: Positive = 128
    tokenizer: UserPath = "bytes"
    """bytes, or the path of a Hugging Face tokenizer (source text:DIR)."""
    token_dtype: Literal["uint16", "uint32", "uint64"] = "uint16"
    """Of the ids, little-endian, in a tokens:FILE that says nothing of it: no header and no .idx beside it."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    validation_samples: Positive = 128
    """Held-out sequences per validation."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        if value != "stdlib" and not value.startswith(("text:", "tokens:")):
            raise ValueError("must be 'stdlib', 'text:DIR' or 'tokens:FILE.bin'")
        kind, colon, place = value.partition(":")
        return kind + colon + reading.expanded(place)


class WorkerSection(Section):
    """The inner loop."""

    local_steps: Positive = 8
    """H: local steps of the fastest worker in a round."""
    rescale: bool = True
    """Give a worker of relative speed s max(1, ceil(H * s)) steps instead of H."""
    batch_size: Positive = 64
    """Sequences per local step."""
    micro_batch_size: Natural = 0
    """Sequences per forward pass; 0: the whole batch."""
    global_batch_size: Positive = 1024
    """Samples handed out per tick of the learning-rate clock."""
    max_lr: PositiveFloat = 1e-3
    min_lr: NonNegativeFloat = 1e-4
    warmup_iterations: Natural = 300
    total_iterations: Positive = 6144
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat = 1.0
    optimiser: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices inside the blocks, AdamW for embeddings, head and vectors."""
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    epsilon: PositiveFloat = 1e-8
    keep_optimiser: bool = True
    """Keep the optimiser's moments on the worker's disk, for the process that takes its place."""
    cold_start_steps: Natural = 40
    """Local steps over which a worker that begins without moments when the run is past its warm-up raises its
    learning rate to the run's; 0: at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = True
    """torch.compile, where CUDA is used."""
    stuck_minutes: PositiveMinutes = 10.0
    """A worker whose trainer finishes no micro-batch for so long, and for twenty times as long as its slowest
    one so far, ends with an error; so does an evaluator. The first one, and an export, may take six times as
    long."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_lr > self.max_lr:
            raise ValueError(f"min_lr = {self.min_lr} must not exceed max_lr = {self.max_lr}")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} must divide batch_size = {self.batch_size}"
            )
        if self.local_steps * self.batch_size > ROUND_SAMPLES_MAX:
            raise ValueError(
                f"local_steps = {self.local_steps} times batch_size = {self.batch_size} must not exceed"
                f" {ROUND_SAMPLES_MAX:,}: no more samples are lent for a round"
            )
        return self


class ServerSection(Section):
    """What both kinds of parameter server have: delayed Nesterov, DN(lr * delay, momentum, delay)."""

    lr: PositiveFloat
    """eta; the optimiser multiplies by the delay itself."""
    momentum: Momentum
    momentum_delay: Positive
    momentum_activation: Fraction = 0.0
    """c of delayed Nesterov."""
    update_norm_max: PositiveFloat = 1e6
    """An update with a larger norm, or one that is not finite, is rejected."""
    rejected_max: Positive = 16
    """Updates of one worker (at the GPS: of one region) in a row that may be rejected, or not come about since
    no gradient was finite. Then it is told to end; if no other does better, the run ends with an error."""
    staged_max: Positive = 2
    """Updates that may be staged or under way to this server at once. As many more may be late: who holds a
    place for much longer than others need gives it to one who waits, and goes on beside that."""
    durability: Durability = "process"
    """What this server survives without losing anything that it acknowledged: none (nothing is written),
    process (kill -9 of it), host (loss of power; every acknowledgement waits for the disk)."""

    @property
    def arriving_max(self) -> int:
        """Updates that may be arriving at once, the late ones included: memory for so many models."""
        return 2 * self.staged_max

    @model_validator(mode="after")
    def _momentum_is_no_more_than_whole(self) -> Self:
        if self.momentum_activation * self.momentum_delay > 1:
            raise ValueError(
                f"momentum_activation = {self.momentum_activation} must not exceed"
                f" 1 / momentum_delay = {1 / self.momentum_delay:.4g}"
            )
        return self


class LpsSection(ServerSection):
    """The local parameter servers."""

    lr: PositiveFloat = 0.2
    momentum: Momentum = 0.9
    momentum_delay: Positive = 16
    updates_per_exchange: Positive = 32
    """K: updates of workers between exchanges with the GPS."""
    merge_weight: Fraction = 0.25
    """alpha: weight of the global model when it is merged into the region's."""
    in_flight: InFlight = "drop"
    """What becomes of movement between the send and the merge: lost to the other regions (as in the
    released HALoS code), carried into the next exchange, or replayed on top of a merge made at the
    send point."""
    lease_seconds: Seconds = 75.0
    """Seconds for which a region keeps samples in hand, at the pace of its workers, beside a round for each of
    them: so long it trains on without the GPS. 0: none ahead of need."""


class GpsSection(ServerSection):
    """The global parameter server."""

    region: str = ""
    """The region where it stands; empty: the first one."""
    lr: PositiveFloat = 0.15
    momentum: Momentum = 0.5
    momentum_delay: Positive = 2
    rejected_max: Positive = 4
    bind: Annotated[str, AfterValidator(_some_address)] = "0.0.0.0:7700"
    """Control port; bulk data uses the next one. Host 0.0.0.0: all IPv4 addresses; *: those of IPv6 too."""
    connect: Connects = ""
    """HOST:PORT under which the regions reach it; empty: that of bind, 127.0.0.1 where that is all addresses."""
    staleness_power: NonNegativeFloat = 0.0
    """An update based on a version that is n versions old counts (1 + n)^-power times; 0: in full."""
    average: Momentum = 0.0
    """Decay per version of a running mean of the global model, which is what is evaluated and exported;
    0: the model itself is. Training goes on from the model itself."""
    validation_interval_steps: Positive = 2048
    """Counted local steps between validations of the global model."""
    snapshots: UserPath = ""
    """Where copies of the GPS's snapshots go, away from its host: a folder, or any URL that fsspec knows
    (s3://BUCKET/PATH, gs://..., file:///...). `gps --resume` goes on from them. Empty: nowhere."""
    snapshots_minutes: PositiveMinutes = 10.0
    """Minutes between them: what a GPS that is lost with its disk loses at most, and the time of a copy."""
    snapshots_kept: Positive = 3
    """The newest so many stay."""

    @model_validator(mode="after")
    def _snapshots_of_something(self) -> Self:
        if self.snapshots and self.durability == "none":
            raise ValueError(
                f"snapshots = {self.snapshots!r} needs durability = 'process' or 'host': a GPS with 'none' makes none"
            )
        return self


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


class SimulatedEvent(Section):
    """A node that is lost without a word, or comes back (or comes late), at a time of the run."""

    at_ms: Milliseconds
    node: str
    """REGION/GROUP, or lps/REGION."""
    kind: Literal["lose", "join"]


class SimulationSection(Section):
    """Read by `experiments` only."""

    method: Literal[
        "halos", "regional-groups", "async-local-sgd", "diloco", "synchronous", "ideal"
    ] = "halos"
    problem: Literal["timing", "scalar", "quadratic", "nonconvex", "lm"] = "timing"
    model_bytes: Positive = 281_706_496
    """Of a payload, as the links charge it; `lm` models may be smaller than what they stand for."""
    step_ms: PositiveMilliseconds = 238.391
    """One local step of ``worker.batch_size`` samples at relative speed 1."""
    step_jitter: NonNegativeFloat = 0.0
    """Relative standard deviation of a round's compute time (lognormal, drawn from the seed)."""
    group_batch: Natural = 0
    """Samples of a step of a synchronous group; 0: batch_size for each of its workers."""
    daemons: bool = False
    """Run the machines with the daemons' settings: heartbeats, retries, limited staging, samples
    leased ahead. Needed where nodes are lost."""
    dimension: Positive = 64
    """Parameters of `quadratic` and `nonconvex`."""
    noise: NonNegativeFloat = 1.0
    """Standard deviation of the norm of one sample's gradient noise, in `quadratic` and `nonconvex`."""
    heterogeneity: NonNegativeFloat = 0.0
    """How far the regions' data differ. `quadratic`: distance of their optima from the common one;
    `lm`: share (at most 1) of a region's samples that come from a part of the corpus of its own."""
    event: tuple[SimulatedEvent, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.problem == "lm" and self.heterogeneity > 1:
            raise ValueError(
                f"heterogeneity = {self.heterogeneity} must not exceed 1 for problem 'lm'"
            )
        if self.event and not self.daemons:
            raise ValueError("nodes can be lost with daemons = true only: others mind no silence")
        return self


class RunFile(Section):
    """A whole run file."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    worker: WorkerSection = WorkerSection()
    lps: LpsSection = LpsSection()
    gps: GpsSection = GpsSection()
    region: Annotated[tuple[RegionSection, ...], Field(min_length=1, max_length=64)]
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

    @property
    def gps_region(self) -> str:
        """Name of the region where the GPS stands."""
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
        """Folder of the results. Raises `ConfigError` for that of a user who is not known here."""
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
                "gps": {"bind", "connect", "snapshots", "snapshots_minutes", "snapshots_kept"},
                "worker": {"device", "compile", "micro_batch_size", "keep_optimiser"},
                "local": True,
                "network": {"bandwidth_gbps", "latency_ms", "share_links", "give_up_after_ms"},
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


def endpoint(text: str, key: str) -> tuple[str, int]:
    """Split HOST:PORT. Raises `ConfigError` naming the key; the next port must exist too (bulk data)."""
    try:
        return address.split(text, listens=key.endswith("bind"))
    except ValueError as error:
        raise ConfigError(f"{key} = {text!r}: {error}") from None


def _connect(connect: str, bind: tuple[str, int]) -> tuple[str, int]:
    host, port = bind
    return address.split(connect) if connect else (address.reached_at(host), port)


def parse(text: str, source: str = "run file") -> RunFile:
    """Read a run file's text. Raises `ConfigError`, one line a fault, each naming key and value."""
    tables = reading.tables(text, source)
    try:
        # Strict, so that "8" is no number; JSON, since there a list may stand for a tuple, 1 for 1.0.
        return RunFile.model_validate_json(json.dumps(tables, default=str), strict=True)
    except ValidationError as error:
        faults = "; ".join(_fault(each) for each in reading.faults(error))
        raise ConfigError(f"{source}: {faults}") from None


def load(path: str | Path) -> RunFile:
    """Read a run file. Raises `ConfigError`."""
    return parse(reading.text(Path(path), "the run file"), str(path))


def dump(run: RunFile) -> str:
    """A run file as TOML, every key spelled out; `parse` gives it back unchanged.

    Raises `ConfigError` for a path of a command line that is no UTF-8, which TOML cannot hold.
    """
    tables = run.model_dump(mode="json", exclude_none=True)
    regions = tables.pop("region")
    lines: list[str] = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items()), ""]
    for region in regions:
        lines += ["[[region]]", *(f"{key} = {_toml(value)}" for key, value in region.items()), ""]
    try:
        "\n".join(lines).encode()
    except UnicodeEncodeError as error:
        line = error.object[: error.start].count("\n")
        raise ConfigError(f"{lines[line]!a}: is no UTF-8; choose a name that is") from None
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    # A TOML string is a JSON string, but for one control character that JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _fault(fault: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"]) or "run file"
    if fault["type"] == "extra_forbidden":
        return f"{key} = {fault['input']!r}: no such key{_did_you_mean(fault['loc'])}"
    if fault["type"] == "missing" and fault["loc"] == ("region",):
        return "region: there must be a table [[region]] for each region, with its name and worker_speeds"
    if fault["type"] in ("missing", "value_error") and not isinstance(fault["input"], str):
        return f"{key}: {reading.said(fault)}"
    return f"{key} = {fault['input']!r}: {reading.said(fault)}"


def _did_you_mean(location: tuple[str | int, ...]) -> str:
    import difflib

    tables: dict[str, Any] = {
        "region": RegionSection,
        "simulation": SimulationSection,
        "event": SimulatedEvent,
    }
    model: Any = RunFile
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = tables.get(part, model.model_fields[part].annotation)
    near = difflib.get_close_matches(str(location[-1]), list(model.model_fields), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {sorted(model.model_fields)}"
