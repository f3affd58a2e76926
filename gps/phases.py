"""The phases of a GPS, and the moves between them."""

from typing import Final, Literal, TypeAlias

from pelago.core.transitions import Transition, TransitionTable

GpsPhase: TypeAlias = Literal["loading", "serving", "draining", "finished"]

GPS_PHASES: Final = TransitionTable(
    "GPS",
    "loading",
    (
        Transition("loading", "serving", "_on_loaded", "the initial model is loaded"),
        Transition("loading", "draining", "_end", "the run is stopped before it began"),
        Transition(
            "serving",
            "draining",
            "_end",
            "a budget is reached, a stop is asked for, or no update is good",
        ),
        Transition("loading", "serving", "reopen", "the run goes on as another incarnation"),
        Transition("draining", "serving", "reopen", "the run goes on as another incarnation"),
        Transition("finished", "serving", "reopen", "the run goes on as another incarnation"),
        Transition("draining", "finished", "_maybe_finish", "all regions and evaluators have left"),
    ),
)
