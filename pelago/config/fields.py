"""Kinds of values of a run file, their limits, and the base class of its tables."""

import string
import unicodedata
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pelago import address, reading

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


def _never_empty(value: str) -> str:
    return _listens(value or ":")


COUNT_MAX: Final = 1 << 48
"""The largest count; the protocol has the same limit."""
ROUND_SAMPLES_MAX: Final = 1 << 32
"""The most samples of a worker's round; the protocol lends no more at once."""
SECONDS_MAX: Final = 100 * 365 * 24 * 3600
"""A hundred years: a longer time is a mistake, and clocks and timers have no room for it."""
FLOAT_MAX: Final = 1e38
"""The largest fp32 number, since models and updates are fp32."""
SPEED_RATIO_MAX: Final = 10**6
STEP_MS_MAX: Final = 3_600_000
"""The longest paced step of the fastest worker: one of the slowest then takes about `SECONDS_MAX`."""

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
"""HOST:PORT, or nothing; a host * is all addresses."""
ListensRequired = Annotated[str, AfterValidator(_never_empty)]
"""HOST:PORT; a host * is all addresses."""
UserPath = Annotated[str, AfterValidator(reading.expanded)]
"""A path on the host that reads the file: ~ is the folder of the user there."""


class Section(BaseModel):
    """A table of the run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
