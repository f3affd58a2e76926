"""The run file of a billion parameters is sound, and its plan has nothing against it but small machines."""

from experiments.catalogue import FOLDER
from pelago.cli.plan.facts import gpu_named
from pelago.cli.plan.forecast import Assumptions, forecast
from pelago.cli.plan.model import model_facts
from pelago.cli.plan.verdicts import verdicts
from pelago.config import run_toml


def test_the_run_of_a_billion_parameters_fits_a_host_with_two_gpus_of_80_gb() -> None:
    """The evaluator shares a GPU with a worker."""
    run = run_toml.load(FOLDER / "gpu_1b.toml")
    assert run.data.sequence_length * run.worker.batch_size == 8192
    facts = model_facts(run)
    assert facts.parameters == 973_670_400
    assumed = Assumptions(gpu=gpu_named("H100"), gpus=2, host_bytes=256 * 10**9)
    found = forecast(run, facts, assumed)
    assert len(found.gpus) == 2
    assert not [each for each in verdicts(run, found) if each.fatal]


def test_the_links_that_it_proposes_keep_up() -> None:
    """At 10 Gbps an exchange is over before the next update is made."""
    text = (FOLDER / "gpu_1b.toml").read_text(encoding="utf-8")
    for key in ("[network]", "bandwidth_gbps", "latency_ms"):
        assert f"# {key}" in text
        text = text.replace(f"# {key}", key)
    run = run_toml.parse(text)
    assert run.network.bandwidth_gbps[0][1] == 10.0
    found = forecast(run, model_facts(run), Assumptions(gpu=gpu_named("H100"), gpus=2))
    for region in found.regions:
        assert region.pace.updates_s is not None
        assert region.pace.seconds < region.pace.updates_s
    assert not [each for each in verdicts(run, found) if each.fatal]
