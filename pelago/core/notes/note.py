"""The union of all notes.

A note is a line of a machine's log, and changes nothing. It is written to ``events.jsonl``, and some notes
to a server's history as well, as its ``kind`` and a dictionary of its fields. Both are durable data: a kind
and the names of its fields never change. Several classes have the same kind if their fields have different
names.
"""

from typing import Final, TypeAlias, get_args

from pelago.core.notes.common import (
    Draining,
    GivingUp,
    GoingOn,
    LeftUnanswered,
    ServerRestarted,
    Stuck,
    UnexpectedMessage,
    Waiting,
)
from pelago.core.notes.gps import (
    EvaluatorLeft,
    ExchangeArrived,
    ExchangeRejected,
    RegionFailed,
    RegionJoined,
    RegionLeft,
    RunStatus,
    Serving,
    Settled,
    UnexpectedOfRegion,
    ValidationReported,
)
from pelago.core.notes.lps import (
    ExchangeAnswered,
    ExchangeBegun,
    GlobalMerged,
    LpsJoined,
    Rejoining,
    RoundRejected,
    UnexpectedPull,
    UpdateApplied,
    WorkerJoined,
    WorkerLeft,
    WorkerRefused,
)
from pelago.core.notes.vocabulary import Vocabulary
from pelago.core.notes.worker import (
    Exported,
    ExportFailed,
    RoundFailed,
    RoundTrained,
    UpdateFenced,
    UpdateRejected,
    ValidationMeasured,
    WorkerAdmitted,
)

Note: TypeAlias = (
    Waiting
    | GoingOn
    | LeftUnanswered
    | ServerRestarted
    | Draining
    | GivingUp
    | UnexpectedMessage
    | Stuck
    | LpsJoined
    | Rejoining
    | WorkerRefused
    | WorkerJoined
    | WorkerLeft
    | UnexpectedPull
    | UpdateApplied
    | RoundRejected
    | ExchangeBegun
    | ExchangeAnswered
    | GlobalMerged
    | Serving
    | RegionJoined
    | RegionLeft
    | RegionFailed
    | UnexpectedOfRegion
    | ExchangeArrived
    | ExchangeRejected
    | EvaluatorLeft
    | ValidationReported
    | RunStatus
    | Settled
    | WorkerAdmitted
    | RoundTrained
    | RoundFailed
    | UpdateRejected
    | UpdateFenced
    | ValidationMeasured
    | Exported
    | ExportFailed
)
NOTES: Final[tuple[type[Note], ...]] = get_args(Note)
"""The classes of all notes."""

VOCABULARY: Final[Vocabulary[Note]] = Vocabulary(NOTES)
"""Writes and reads notes."""
