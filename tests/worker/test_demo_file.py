"""The run file of the demo fits the budget that it promises."""

from pathlib import Path

from pelago.config.run_file import RunFile
from pelago.config.run_toml import load
from worker.schedule import local_steps

DEMO = Path(__file__).parents[2] / "demo.toml"


def speeds(run: RunFile) -> list[float]:
    return [
        run.relative_speed(index, group)
        for index, region in enumerate(run.region)
        for group in range(len(region.worker_speeds))
    ]


def test_the_demo_is_two_regions_of_two_workers_of_different_speeds() -> None:
    run = load(DEMO)
    assert [len(region.worker_speeds) for region in run.region] == [2, 2]
    assert len(set(speeds(run))) == 4


def test_the_demo_ends_its_schedule_with_its_budget() -> None:
    run = load(DEMO)
    samples = run.run.budget_local_steps * run.worker.batch_size
    assert samples == run.worker.total_iterations * run.worker.global_batch_size


def test_the_demo_trains_for_less_than_three_minutes() -> None:
    run = load(DEMO)
    seconds = run.run.budget_local_steps * run.local.step_ms / 1e3 / sum(speeds(run))
    assert 100 < seconds < 60 * run.run.budget_minutes < 180


def test_a_validation_of_the_demo_comes_often_enough_for_a_curve() -> None:
    run = load(DEMO)
    assert run.run.budget_local_steps // run.gps.validation_interval_steps >= 15


def test_every_worker_of_the_demo_has_rounds_of_about_a_second() -> None:
    run = load(DEMO)
    for speed in speeds(run):
        steps = local_steps(run.worker.local_steps, speed, run.worker.rescale)
        assert 0.5 < steps * run.local.step_ms / 1e3 / speed < 1.5
