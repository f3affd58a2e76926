"""The phases of an LPS, and the moves between them."""

from typing import Final, Literal, TypeAlias

from pelago.core.transitions import Transition, TransitionTable

LpsPhase: TypeAlias = Literal["joining", "loading", "serving", "draining", "leaving", "gone"]

LPS_PHASES: Final = TransitionTable(
    "LPS",
    "joining",
    (
        Transition(
            "joining", "serving", "welcome", "the GPS knows it, and the driver loaded the model"
        ),
        Transition("joining", "loading", "welcome", "the GPS knows it, and is asked for the model"),
        Transition("loading", "serving", "loaded", "the global model came"),
        Transition("serving", "joining", "begin_anew", "the GPS does not know it any more"),
        Transition("loading", "draining", "drain", "the run is over, or a stop is asked for"),
        Transition(
            "serving",
            "draining",
            "drain",
            "the run is over, a stop is asked for, or no update is good",
        ),
        Transition("draining", "leaving", "leave", "all workers have left"),
        Transition(
            "leaving", "gone", "finish", "the GPS answered the Leave, or does not know it any more"
        ),
        Transition(
            "joining", "gone", "give_up_joining", "a stop is asked for before the GPS answered"
        ),
        Transition(
            "loading", "gone", "give_up_joining", "a stop is asked for while the GPS is away"
        ),
        Transition("joining", "gone", "refused", "the GPS refuses it"),
        Transition("loading", "gone", "refused", "the GPS refuses it"),
        Transition("serving", "gone", "refused", "the GPS refuses it"),
        Transition("draining", "gone", "refused", "the GPS refuses it"),
        Transition("leaving", "gone", "refused", "the GPS refuses it"),
        Transition("gone", "joining", "come_back", "it is started again after a stop or a refusal"),
    ),
)
