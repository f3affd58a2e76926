"""The study file: many runs of one question, as variants, axes, seeds and a search.

    # One line that says what it shows.
    [study]
    base = "halos_paper.toml"        # beside this file, or the name of a shipped experiment
    seeds = [0, 1, 2]
    targets_from = "halos"           # time to the mean final loss of this variant; or target_loss = 2.25
    [study.set]                      # in every run
    "run.budget_local_steps" = 12288
    [[study.variant]]
    name = "halos"
    [[study.axis]]                   # the full product with the variants
    key = "lps.updates_per_exchange"
    label = "K"
    values = [4, 8, 16, 32]
    [study.search]                   # the same number of random trials for every variant and axis value
    trials = 60
    seed = 7
    [study.search.space]
    "worker.max_lr" = {low = 3e-4, high = 1e-2, log = true}
    [study.confirm]                  # each one's best settings, on seeds that the search never saw
    seeds = [10, 11, 12]
    sets = [{name = "other corpus", set = {"data.source" = "text:DIR"}}]

Settings apply in the order set, variant, axis, search, confirm; the later wins. overrides.py lists the
keys that are not plain ones of the run file. Frozen models; unknown keys are refused, and every
fault is one line with file, key and value.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from experiments.study import overrides
from pelago import reading
from pelago.config import toml_writer
from pelago.config.fields import Natural, Positive, Section, UserPath
from pelago.config.validation import validate
from pelago.core.errors import ConfigError

RUNS_MAX: Final = 20_000
"""The most runs of one study; more are refused, since they are more likely a mistake."""


def _label(value: str) -> str:
    if value != value.strip():
        raise ValueError("must not begin or end with a space")
    return value


Label = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_label)]
Seeds = Annotated[tuple[Natural, ...], Field(min_length=1)]


def _known_keys(settings: dict[str, Any]) -> dict[str, Any]:
    for key, value in settings.items():
        if fault := overrides.fault(key):
            raise ValueError(f"{key} = {toml_writer.value(value)}: {fault}")
    return settings


class Space(Section):
    """The values that a search draws from: a range or choices."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    """Draw evenly between the logarithms."""
    integer: bool = False
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        ranged = self.low is not None or self.high is not None
        if ranged == bool(self.choices):
            raise ValueError("must be {low, high} with log or integer, or {choices = [...]}")
        if self.choices:
            if self.log or self.integer:
                raise ValueError("choices take neither log nor integer")
            return self
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low} must be above 0 where log = true")
        if self.integer and (self.low % 1 or self.high % 1):
            raise ValueError(f"low = {self.low} and high = {self.high} must be whole for integer")
        return self


class _Settings(Section):
    """Anything that sets keys."""

    set: dict[str, Any] = Field(default={})

    @field_validator("set")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _known_keys(value)


def _known_space(space: dict[str, Space]) -> dict[str, Space]:
    _known_keys(dict.fromkeys(space, "{...}"))
    return space


Spaces = Annotated[dict[str, Space], AfterValidator(_known_space)]
"""The range or choices of a search, by key."""


class Variant(_Settings):
    """One line of the comparison."""

    name: Label
    space: Spaces = Field(default={})
    """Ranges and choices that are added to the search's space, or replace those of a key."""


class Axis(Section):
    """A key, and the values that it takes."""

    key: str
    values: Annotated[tuple[Any, ...], Field(min_length=1)]
    label: str = ""
    """The key's name in reports; empty: the key."""
    names: tuple[Label, ...] = ()
    """The values' names in reports; empty: the values."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if fault := overrides.fault(self.key):
            raise ValueError(f"key = {self.key!r}: {fault}")
        texts = [toml_writer.value(each) for each in self.values]
        if len(set(texts)) != len(texts):
            raise ValueError(f"values = {toml_writer.value(self.values)}: values must differ")
        if self.names and len(self.names) != len(self.values):
            raise ValueError(
                f"names = {list(self.names)}: must be {len(self.values)}, one for each value"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"names = {list(self.names)}: names must differ")
        return self

    @property
    def title(self) -> str:
        """The key's name in reports."""
        return self.label or self.key

    def name(self, place: int) -> str:
        """A value's name in reports."""
        if self.names:
            return self.names[place]
        value = self.values[place]
        return value if isinstance(value, str) else toml_writer.value(value)


class Search(Section):
    """Random search, the same number of trials for every variant at every axis value."""

    trials: Positive
    seed: Natural = 0
    space: Spaces = Field(default={})


class ConfirmSet(_Settings):
    """A changed setting in which the best of the search is tried too."""

    name: Label


class Confirm(Section):
    """Reruns of each one's best settings: as they are, and once more per set."""

    seeds: Seeds
    sets: tuple[ConfirmSet, ...] = ()


class Study(_Settings):
    """The [study] table."""

    base: UserPath
    name: str = ""
    """Its name in reports; empty: the file's name."""
    description: str = ""
    """Its description; empty: the file's first line, if that is a comment."""
    seeds: tuple[Natural, ...] = ()
    """Seeds of the runs; empty: the base's seed."""
    target_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Report the time at which the validation loss reaches this; 0: do not."""
    targets_from: str = ""
    """The variant whose mean final loss is the target, at each axis value."""
    x: Literal["time", "steps"] = "time"
    """The horizontal axis of the loss in reports."""
    variant: tuple[Variant, ...] = ()
    axis: tuple[Axis, ...] = ()
    search: Search | None = None
    confirm: Confirm | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _differ("seeds", self.seeds)
        _differ("variant.name", [each.name for each in self.variant])
        _differ("axis.key", [each.key for each in self.axis])
        names = [each.name for each in self.variant]
        if self.targets_from and self.targets_from not in names:
            raise ValueError(
                f"targets_from = {self.targets_from!r}: no such variant; there are {names}"
            )
        if self.targets_from and self.target_loss:
            raise ValueError(
                f"target_loss = {self.target_loss}: give this or targets_from, not both"
            )
        for axis in self.axis:
            spaces = [each.space for each in self.variant]
            spaces += [self.search.space] if self.search is not None else []
            if any(axis.key in space for space in spaces):
                raise ValueError(f"axis.key = {axis.key!r}: a search cannot draw what an axis sets")
            for variant in self.variant:
                if axis.key in variant.set:
                    raise ValueError(
                        f"axis.key = {axis.key!r}: variant {variant.name!r} sets it already"
                    )
        self._search_is_whole()
        return self

    def _search_is_whole(self) -> None:
        if self.search is None:
            if any(each.space for each in self.variant):
                raise ValueError("variant.space: there is no study.search that would draw from it")
            if self.confirm is not None:
                raise ValueError("confirm: there is no study.search whose best could be confirmed")
        if self.confirm is not None:
            _differ("confirm.seeds", self.confirm.seeds)
            _differ("confirm.sets.name", [each.name for each in self.confirm.sets])

    def space(self, variant: Variant) -> dict[str, Space]:
        """The search space of a variant."""
        shared = self.search.space if self.search is not None else {}
        return {**shared, **variant.space}


class _File(Section):
    study: Study


def is_study(path: Path) -> bool:
    """Whether a file is a study; one that cannot be read is not, and is refused as a run file."""
    try:
        return "study" in reading.tables(reading.text(path, "the file"), str(path))
    except ConfigError:
        return False


def load(path: Path) -> Study:
    """Read a study file, name and description filled in. Raises `ConfigError`."""
    text = reading.text(path, "the study")
    tables = reading.tables(text, str(path))
    study = validate(_File, tables, str(path), root="study").study
    first = text.partition("\n")[0]
    said = first.lstrip("#").strip() if first.startswith("#") else ""
    return study.model_copy(
        update={
            "name": study.name or path.stem,
            "description": study.description or said,
        }
    )


def dump(study: Study) -> str:
    """A study as TOML, every key spelled out but the empty ones."""
    tables = study.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    # The description is the first line as well, so that the file tells about itself wherever it lies.
    return f"# {study.description}\n\n" + toml_writer.text({"study": tables})


def _differ(key: str, values: Any) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"{key} = {list(values)}: must differ from each other")
