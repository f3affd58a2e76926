"""Resolves a study: every run that it stands for, validated before any of them starts."""

import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from experiments import catalogue
from experiments.study import overrides
from experiments.study.study_file import RUNS_MAX, Confirm, Search, Space, Study, Variant, is_study
from pelago.config import run_toml, toml_writer
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError

Stage = Literal["run", "search", "confirm"]
SIGNIFICANT_DIGITS: Final = 4
"""Significant digits of a drawn number: more would only make settings hard to read."""


@dataclass(frozen=True, slots=True)
class Case:
    """A variant at a point of the axes: the unit that a study compares."""

    variant: str
    point: tuple[int, ...] = ()
    """The index of the value of each axis, in the order of the axes."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A run of a study, resolved."""

    index: int
    stage: Stage
    case: Case
    trial: int | None
    """Number of the search's trial whose settings these are."""
    drawn: Mapping[str, Any]
    """The settings that the search drew."""
    set: str
    """Name of the confirm set; empty: the study's own setting."""
    seed: int
    text: str
    """The resolved run file."""

    @property
    def folder(self) -> str:
        """Its name below runs/: equal for equal runs at equal places only."""
        return f"{self.index:04d}-{self.digest}"

    @property
    def digest(self) -> str:
        """Digest of the resolved run file."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


class StudyPlan:
    """All runs of a study. Raises `ConfigError` for the first that would be refused."""

    def __init__(self, study: Study, path: Path) -> None:
        """``path``: of the study file, in whose folder the base is looked for first."""
        self.path = path
        base = _base(study, path)
        self.study = study.model_copy(
            update={
                "seeds": study.seeds or (base.run.seed,),
                "variant": study.variant or (Variant(name=base.run.name),),
            }
        )
        self.base = base
        self._tables = base.model_dump(mode="json", exclude_none=True)
        self._variants = {each.name: each for each in self.study.variant}
        _refuse_too_many(self.study, path)
        _refuse_seen_seeds(self.study, path)
        self.runs = tuple(self._first())
        """The runs without those that wait for the search's best."""
        self.confirmations = self._check_confirmations()
        """The number of runs that wait for the search's best."""

    @property
    def cases(self) -> list[Case]:
        """Every variant at every point of the axes, variants outermost."""
        places = [range(len(axis.values)) for axis in self.study.axis]
        return [
            Case(variant.name, point)
            for variant in self.study.variant
            for point in itertools.product(*places)
        ]

    def drawn(self, case: Case, trial: int | None) -> dict[str, Any]:
        """The settings that the search draws for a trial."""
        if trial is None or self.study.search is None:
            return {}
        space = self.study.space(self._variants[case.variant])
        return {key: draw(each, self.study.search.seed, key, trial) for key, each in space.items()}

    def confirm(self, best: Mapping[Case, int]) -> list[Planned]:
        """The runs that confirm the best trial of each case, for the cases that have one."""
        found = []
        places = itertools.count(len(self.runs))
        for case in self.cases:
            # A case without a best trial keeps its places, so that the others' do not depend on it.
            for (name, settings), seed in self._confirm_settings():
                index = next(places)
                if case in best:
                    found.append(
                        self._planned(index, "confirm", case, best[case], seed, name, settings)
                    )
        return found

    def _first(self) -> Iterator[Planned]:
        places = itertools.count()
        search = self.study.search
        trials = range(search.trials) if search is not None else (None,)
        for case, trial, seed in itertools.product(self.cases, trials, self.study.seeds):
            stage: Stage = "run" if trial is None else "search"
            yield self._planned(next(places), stage, case, trial, seed)

    def _confirm_settings(self) -> list[tuple[tuple[str, Mapping[str, Any]], int]]:
        confirm = self.study.confirm
        if confirm is None:
            return []
        sets: list[tuple[str, Mapping[str, Any]]] = [("", {})]
        sets += [(each.name, each.set) for each in confirm.sets]
        return list(itertools.product(sets, confirm.seeds))

    def _check_confirmations(self) -> int:
        confirm, search = self.study.confirm, self.study.search
        if confirm is None or search is None:
            return 0
        for case, trial, each in itertools.product(self.cases, range(search.trials), confirm.sets):
            # Any trial may turn out best; one seed says whether its settings go with the set.
            self._planned(0, "confirm", case, trial, confirm.seeds[0], each.name, each.set)
        return len(self.cases) * len(self._confirm_settings())

    def _planned(
        self,
        index: int,
        stage: Stage,
        case: Case,
        trial: int | None,
        seed: int,
        name: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> Planned:
        drawn = self.drawn(case, trial)
        axes = {
            axis.key: axis.values[place]
            for axis, place in zip(self.study.axis, case.point, strict=True)
        }
        layers = (self.study.set, self._variants[case.variant].set, axes, drawn, settings or {})
        label = _label(self.path, self.study, case, trial, name)
        try:
            tables = overrides.apply(self._tables, overrides.merge(layers))
        except ConfigError as error:
            raise ConfigError(f"{label}: {error}") from None
        tables["run"]["seed"] = seed
        tables["run"]["out"] = ""
        text = run_toml.dump(_parse(tables, label))
        return Planned(index, stage, case, trial, drawn, name, seed, text)


def draw(space: Space, seed: int, key: str, trial: int) -> Any:
    """A value: the same for equal arguments, so that variants share the values of shared keys."""
    chance = random.Random(f"{seed}/{key}/{trial}").random()
    if space.choices:
        return space.choices[int(chance * len(space.choices))]
    assert space.low is not None
    assert space.high is not None
    # Each whole number has an interval of length 1 around it, so that both ends are as likely as the others.
    margin = 0.5 if space.integer else 0.0
    low, high = space.low - margin, space.high + margin
    if space.log:
        value = math.exp(math.log(low) + chance * (math.log(high) - math.log(low)))
    else:
        value = low + chance * (high - low)
    if space.integer:
        return min(max(round(value), int(space.low)), int(space.high))
    rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return min(max(rounded, float(space.low)), float(space.high))


def _base(study: Study, path: Path) -> RunFile:
    beside = path.parent / study.base
    try:
        found = beside if beside.is_file() else catalogue.find(study.base)
    except ConfigError as error:
        raise ConfigError(f"{path}: study.base = {error}") from None
    if is_study(found):
        raise ConfigError(
            f"{path}: study.base = {study.base!r}: is a study itself; name a run file"
        )
    return run_toml.load(found)


def _parse(tables: Mapping[str, Any], label: str) -> RunFile:
    run = run_toml.parse(toml_writer.text(tables), label)
    if run.simulation is None:
        raise ConfigError(f"{label}: simulation: this table is missing, so there is nothing to run")
    return run


def _label(path: Path, study: Study, case: Case, trial: int | None, name: str) -> str:
    parts = [f"{path}: variant {case.variant!r}"]
    parts += [
        f"{axis.key} = {axis.name(place)}"
        for axis, place in zip(study.axis, case.point, strict=True)
    ]
    parts += [f"trial {trial}"] if trial is not None else []
    parts += [f"set {name!r}"] if name else []
    return ", ".join(parts)


def _refuse_too_many(study: Study, path: Path) -> None:
    cases = len(study.variant) * math.prod(len(axis.values) for axis in study.axis)
    search: Search | None = study.search
    confirm: Confirm | None = study.confirm
    total = cases * (search.trials if search else 1) * len(study.seeds)
    if confirm is not None:
        total += cases * len(confirm.seeds) * (1 + len(confirm.sets))
    if total > RUNS_MAX:
        raise ConfigError(f"{path}: study: {total:,} runs, and at most {RUNS_MAX:,} are allowed")


def _refuse_seen_seeds(study: Study, path: Path) -> None:
    if study.confirm and (seen := sorted(set(study.confirm.seeds) & set(study.seeds))):
        raise ConfigError(
            f"{path}: study.confirm.seeds = {seen}: the search saw these, take fresh ones"
        )
