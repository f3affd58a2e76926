"""From the name of a problem in the run file to the problem."""

from typing import assert_never

from convergence.problems.problem import Problem
from pelago.config.run_file import RunFile


def build(run: RunFile, replicas: int) -> Problem:
    """The problem that a run file names, for a number of replicas. Raises `ConfigError`."""
    assert run.simulation is not None
    # torch takes seconds to import, longer than a whole run without tensors.
    match run.simulation.problem:
        case "timing":
            from convergence.problems.timing import Timing

            return Timing(run)
        case "scalar":
            from convergence.problems.scalar import Scalar

            return Scalar(run)
        case "quadratic":
            from convergence.problems.quadratic import Quadratic

            return Quadratic(run)
        case "nonconvex":
            from convergence.problems.nonconvex import Nonconvex

            return Nonconvex(run)
        case "lm":
            from convergence.lm.problem import LanguageModelling

            return LanguageModelling(run, replicas)
        case _:
            assert_never(run.simulation.problem)
