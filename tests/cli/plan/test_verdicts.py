"""What cannot work is said, and what is proposed instead does work."""

from dataclasses import replace

from pelago.cli.plan import processes
from pelago.cli.plan.facts import Gpu, gpu_named
from pelago.cli.plan.forecast import Assumptions, forecast
from pelago.cli.plan.verdicts import Judgement, verdicts
from pelago.config.run_file import RunFile
from tests.cli.plan.runs import FACTS, run_with

H100 = gpu_named("H100")
STATED = Assumptions(step_seconds=0.125)


def judged(run: RunFile, assumed: Assumptions) -> list[Judgement]:
    """All verdicts on a run file."""
    return verdicts(run, forecast(run, FACTS, assumed))


def replace_workers(run: RunFile, count: int) -> RunFile:
    """The run file with so many workers in each region."""
    keys = run.model_dump(mode="json")
    for region in keys["region"]:
        region["worker_speeds"] = [1.0] * count
    return RunFile.model_validate(keys)


def fatal(run: RunFile, assumed: Assumptions) -> list[Judgement]:
    """Those that make the run impossible."""
    return [each for each in judged(run, assumed) if each.fatal]


def test_a_link_that_cannot_keep_up_is_named_with_a_k_and_an_h_that_it_can() -> None:
    [found] = fatal(run_with(), STATED)
    assert found.what.startswith("link of us: an exchange takes 62.5 s, and K = 1 updates 6.89 s")
    assert "lost to the other regions" in found.what
    k, h = (int(part.rpartition(" = ")[2]) for part in found.remedy.split(" or "))
    assert not fatal(run_with(lps={"updates_per_exchange": k}), STATED)
    assert fatal(run_with(lps={"updates_per_exchange": k - 1}), STATED)
    assert not fatal(run_with(worker={"local_steps": h}), STATED)


def test_nothing_is_lost_in_flight_where_it_is_carried() -> None:
    [found] = fatal(run_with(lps={"in_flight": "carry"}), STATED)
    assert "lost" not in found.what


def test_a_gpu_that_is_too_small_is_named_with_a_micro_batch_that_fits() -> None:
    run = run_with(worker={"batch_size": 64, "local_steps": 480}, lps={"updates_per_exchange": 8})
    assumed = replace(STATED, gpu=Gpu("A100-40", 40 << 30, 312e12))
    first, *others = fatal(run, assumed)
    assert len(others) == 2  # Each of three workers has a GPU; the evaluator fits on its own.
    assert "cuda:0 of this host would hold" in first.what
    micro = int(first.remedy.rpartition(" = ")[2])
    assert 64 % micro == 0
    keys = {"batch_size": 64, "local_steps": 480}
    longer = {"updates_per_exchange": 8}
    assert not fatal(run_with(worker={**keys, "micro_batch_size": micro}, lps=longer), assumed)
    assert fatal(run_with(worker={**keys, "micro_batch_size": 2 * micro}, lps=longer), assumed)


def test_checkpointing_is_proposed_where_no_micro_batch_fits_without() -> None:
    one = processes.gpu_worker_bytes(run_with(), FACTS, 1)
    tight = replace(STATED, gpu=Gpu("tight", one - 1, 0.0))
    first, *_ = fatal(run_with(), tight)
    assert first.remedy == "worker.checkpoint_activations = true and worker.micro_batch_size = 4"
    proposed = run_with(worker={"checkpoint_activations": True, "micro_batch_size": 4})
    assert not any("GPU memory" in each.what for each in fatal(proposed, tight))


def test_short_moments_are_proposed_where_checkpointing_is_not_enough() -> None:
    checkpointed = run_with(worker={"checkpoint_activations": True})
    one = processes.gpu_worker_bytes(checkpointed, FACTS, 1)
    first, *_ = fatal(run_with(), replace(STATED, gpu=Gpu("tight", one - 1, 0.0)))
    assert first.remedy == (
        'worker.checkpoint_activations = true and worker.moments_dtype = "bfloat16" and'
        " worker.micro_batch_size = 8"
    )


def test_a_model_that_no_micro_batch_makes_fit_is_said_to_be_too_large() -> None:
    [first, *_] = fatal(run_with(), replace(STATED, gpu=Gpu("small", 8 << 30, 0.0)))
    assert "no micro-batch fits" in first.remedy


def test_a_host_that_is_too_small_is_told_what_saves_enough() -> None:
    run = run_with(lps={"updates_per_exchange": 50})
    needs = forecast(run, FACTS, STATED).hosts["this host"]
    assert not fatal(run, replace(STATED, host_bytes=needs))
    run = run_with(lps={"updates_per_exchange": 50, "staged_max": 1})
    assert forecast(run, FACTS, STATED).hosts["this host"] == needs  # Two may be late.
    [found] = fatal(run, replace(STATED, host_bytes=needs - 1))
    assert "another host" in found.remedy


def test_fewer_staged_updates_are_proposed_where_that_saves_enough() -> None:
    many = replace_workers(run_with(lps={"updates_per_exchange": 500}), 8)
    needs = forecast(many, FACTS, STATED).hosts["this host"]
    [found] = fatal(many, replace(STATED, host_bytes=needs - 1))
    assert found.remedy == "lps.staged_max = 1"
    fewer = many.model_copy(update={"lps": many.lps.model_copy(update={"staged_max": 1})})
    assert not fatal(fewer, replace(STATED, host_bytes=needs - 1))


def test_workers_that_mostly_wait_are_told_an_h_at_which_they_do_not() -> None:
    found = [each for each in judged(run_with(), STATED) if not each.fatal]
    assert len(found) == 2  # One of each region.
    assert found[0].what.startswith("worker-eu-0: computes 44% of the time")
    steps = int(found[0].remedy.split()[2])
    longer = run_with(worker={"local_steps": steps}, lps={"updates_per_exchange": 50})
    assert not judged(longer, STATED)


def test_nothing_is_judged_that_is_not_known() -> None:
    assert not judged(run_with(), Assumptions())
