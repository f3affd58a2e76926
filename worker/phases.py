"""The phases of a worker, and the moves between them."""

from typing import Final, Literal, TypeAlias

from pelago.core.transitions import Transition, TransitionTable

WorkerPhase: TypeAlias = Literal[
    "joining", "idle", "training", "waiting", "uploading", "failed", "leaving", "gone"
]
JOINED: Final = ("idle", "training", "waiting", "uploading", "failed")

WORKER_PHASES: Final = TransitionTable(
    "worker",
    "joining",
    (
        Transition("joining", "idle", "_on_welcome", "the LPS welcomed it"),
        Transition(
            "idle", "training", "_begin", "a model came with a lease, or a late lease ahead"
        ),
        Transition("uploading", "training", "_begin", "the next round overlaps with the upload"),
        Transition("training", "uploading", "_offer", "the lease is trained"),
        Transition("training", "waiting", "_on_trained", "the update before has not been answered"),
        Transition("waiting", "uploading", "_offer", "the update before is answered"),
        Transition("training", "failed", "_fail", "no gradient of the lease was finite"),
        Transition("uploading", "idle", "_decided", "the LPS answered the update"),
        *(
            Transition(source, "idle", "_restart", "the LPS rejected the update before")
            for source in ("training", "waiting")
        ),
        Transition("failed", "idle", "_on_taken_back", "the LPS took the lease back"),
        Transition("failed", "uploading", "_on_taken_back", "so it did, and has the update before"),
        *(
            Transition(source, "joining", "_rejoin", "it must join again")
            for source in ("joining", *JOINED)
        ),
        *(
            Transition(source, "gone", "_on_refuse", "the LPS refused it")
            for source in ("joining", *JOINED)
        ),
        *(
            Transition(source, "gone", "_on_tick", "the LPS was silent for too long")
            for source in ("joining", *JOINED)
        ),
        Transition("training", "gone", "_on_stuck", "the trainer is stuck"),
        Transition("joining", "gone", "_leave", "it was asked to stop"),
        *(
            Transition(source, "leaving", "_leave", "it was asked to stop, or the run ended")
            for source in JOINED
        ),
        Transition("leaving", "gone", "_on_goodbye", "the LPS said goodbye"),
    ),
)
