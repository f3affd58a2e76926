"""What became of the sizes of a run's processes and folders: whether they are flat, and by what measure."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

MEASURES: Final = ("rss_mb", "anonymous_mb", "descriptors", "threads")
DISK_MEASURES: Final = ("state_mb", "journal_mb", "snapshot_mb", "spare_mb", "unlinked_mb", "files")
AGES_S: Final = {"young": (40.0, 60.0), "grown": (180.0, 300.0)}
LONG_LIFE_S: Final = 600.0
SETTLED_S: Final = 300.0
"""What a long life is looked at after."""
PAIR_S: Final = 60.0
"""Samples nearer than this say nothing about a slope."""
GROWTH_MAX: Final = 1.05
MORE_MAX: Final = 2
"""Flat: the last quarter's median is at most so many times the first's, or for what is counted in pieces
at most so many more."""
STATE_GROWTH_MAX: Final = 1.25
STATE_MAX_MB: Final = 294.0
"""Journals and snapshots go up and down, and how many spares lie about is chance: their median may be so
much more, if they keep the bound of docs/OPERATIONS.md: 128 MiB of journals and eight models, twice."""
MB: Final = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """A node at one time. Sizes in MB; those of the folder of state are of blocks on disk."""

    at_s: float
    node: str
    kind: str
    life: int
    age_s: float
    rss_mb: float
    anonymous_mb: float
    """Of it, what is not a file's: the rest are libraries, and files of state that a restart has read."""
    descriptors: int
    threads: int
    cpu_s: float
    unlinked_mb: float
    """Files of state that were removed, and still occupy the disk while they are mapped."""
    state_mb: float
    """Journals, snapshots and spares: what has to be bounded."""
    journal_mb: float
    snapshot_mb: float
    spare_mb: float
    files: int
    history_mb: float
    logs_mb: float


def slope(groups: Iterable[Sequence[tuple[float, float]]]) -> float | None:
    """Per hour: the median over all pairs of (second, value) that are in one group and not near each other."""
    found = [
        (later - earlier) / (stop - start) * 3600
        for group in groups
        for place, (start, earlier) in enumerate(group)
        for stop, later in group[place + 1 :]
        if stop - start >= PAIR_S
    ]
    return round(statistics.median(found), 3) if found else None


def _grouped(
    samples: Iterable[Sample], key: Callable[[Sample], Any], measure: str
) -> list[list[tuple[float, float]]]:
    found: dict[Any, list[tuple[float, float]]] = {}
    for each in samples:
        found.setdefault(key(each), []).append((each.at_s, getattr(each, measure)))
    return list(found.values())


def _quarters(samples: Iterable[Sample], measure: str, end_s: float) -> dict[str, float | None]:
    """Median and maximum of the first and the last quarter of the run."""
    found: dict[str, float | None] = {}
    kept = list(samples)
    for name, start, stop in (("first", 0.0, 0.25), ("last", 0.75, 1.01)):
        values = [getattr(e, measure) for e in kept if start * end_s <= e.at_s < stop * end_s]
        found[name] = round(statistics.median(values), 2) if values else None
        found[f"{name}_max"] = round(max(values), 2) if values else None
        found[f"{name}_samples"] = len(values)
    return found


def sizes(samples: Sequence[Sample], kind: str, end_s: float) -> dict[str, Any]:
    """What became of the processes of one kind."""
    of_kind = [each for each in samples if each.kind == kind]
    ends = {(each.node, each.life): each.age_s for each in of_kind}
    long_lives = [
        each
        for each in of_kind
        if ends[each.node, each.life] >= LONG_LIFE_S and each.age_s >= SETTLED_S
    ]
    found: dict[str, Any] = {}
    for measure in MEASURES:
        at_age = {}
        for name, (low, high) in AGES_S.items():
            those = [each for each in of_kind if each.life and low <= each.age_s <= high]
            at_age[name] = _quarters(those, measure, end_s) | {
                "per_hour": slope(_grouped(those, lambda e: e.node, measure))
            }
        within = _grouped(long_lives, lambda e: (e.node, e.life), measure)
        found[measure] = at_age | {
            "long_lives": len(within),
            "longest_s": round(max((e.age_s for e in long_lives), default=0.0)),
            "median": statistics.median(v for each in within for _, v in each) if within else None,
            "per_hour_within_a_life": slope(within),
        }
    return found


def disk(samples: Sequence[Sample], kind: str, end_s: float) -> dict[str, Any]:
    """What became of the folders of state of one kind."""
    of_kind = [each for each in samples if each.kind == kind]
    found: dict[str, Any] = {}
    for measure in DISK_MEASURES:
        found[measure] = _quarters(of_kind, measure, end_s) | {
            "per_hour": slope(_grouped(of_kind, lambda e: e.node, measure))
        }
    return found


def flat(kinds: dict[str, Any], disks: dict[str, Any]) -> dict[str, bool | None]:
    """The verdict by measure; None: too short to tell."""

    def within(found: dict[str, Any], growth: float, more: float) -> bool | None:
        first, last = found["first"], found["last"]
        if first is None or last is None:
            return None
        return bool(last <= first * growth + more)

    def all_of(verdicts: list[bool | None]) -> bool | None:
        known = [each for each in verdicts if each is not None]
        return all(known) if known else None

    # Not all that is resident: which files of state a restart maps is chance.
    limits = {
        "anonymous_mb": (GROWTH_MAX, 0),
        "descriptors": (1, MORE_MAX),
        "threads": (1, MORE_MAX),
    }
    found = {
        measure: all_of(
            [within(each[measure][age], *limit) for each in kinds.values() for age in AGES_S]
        )
        for measure, limit in limits.items()
    }
    within_a_life = [
        each[measure]["per_hour_within_a_life"] <= (growth - 1) * each[measure]["median"] + more
        for each in kinds.values()
        for measure, (growth, more) in limits.items()
        if each[measure]["per_hour_within_a_life"] is not None
    ]
    return found | {
        "within_a_life": all_of(within_a_life),
        "state": all_of([within(each["state_mb"], STATE_GROWTH_MAX, 0) for each in disks.values()]),
        "state_bound": all_of(
            [
                most <= STATE_MAX_MB
                for each in disks.values()
                if (most := each["state_mb"]["last_max"]) is not None
            ]
        ),
    }
