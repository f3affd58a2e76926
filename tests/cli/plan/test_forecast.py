"""Bytes, seconds and memory of a run, against figures worked out by hand."""

import json
from dataclasses import replace

import pytest

from pelago.cli.plan import links, processes
from pelago.cli.plan.facts import gpu_named
from pelago.cli.plan.forecast import Assumptions, forecast
from pelago.cli.plan.links import encodings, payload_bytes
from pelago.config import models_held
from pelago.core.errors import ConfigError
from pelago.tensor.encodings.encoding import chunk_sizes
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec
from tests.cli.plan.runs import FACTS, run_with

MODEL = 4 * 973_670_400
STATED = Assumptions(step_seconds=0.125)


def test_an_exchange_takes_its_bytes_its_latencies_and_the_grant() -> None:
    """1 Gbps carries 125 MB a second; Offer and Grant go there and back before the update is sent."""
    eu, us = forecast(run_with(), FACTS, STATED).regions
    far = us.exchange[0]
    assert far.up_s == pytest.approx(2 * 0.04 + MODEL / 125e6 + 0.04)
    assert far.down_s == pytest.approx(MODEL / 125e6 + 0.04)
    assert us.pace.seconds == far.up_s + far.down_s
    # 8 Gbps inside a region, without latency.
    assert eu.exchange[0].up_s == eu.push_pull[0].up_s == pytest.approx(MODEL / 1e9)


def test_a_link_faster_than_its_nodes_is_used_at_the_pace_of_their_durability() -> None:
    wide = {"bandwidth_gbps": [[1000.0, 1000.0], [1000.0, 1000.0]], "latency_ms": []}
    for network in (wide, {"bandwidth_gbps": [], "latency_ms": []}):
        for durability, rate in links.NODE_BYTES_PER_S.items():
            run = run_with(network=network, lps={"durability": durability})
            region = forecast(run, FACTS, STATED).regions[1]
            assert region.push_pull[0].up_s == pytest.approx(MODEL / rate)
            # What comes to the GPS waits for the GPS's journal, and the answer for the LPS's.
            assert region.exchange[0].up_s == pytest.approx(
                MODEL / links.NODE_BYTES_PER_S["process"]
            )
            assert region.exchange[0].down_s == pytest.approx(MODEL / rate)


def test_a_round_is_its_steps_and_its_transfers() -> None:
    """48 steps of 0.125 s, and half as many of twice the time for the worker of half the speed."""
    us = forecast(run_with(), FACTS, STATED).regions[1]
    fast, slow = us.rounds.values()
    assert fast.train_s == pytest.approx(6.0)
    assert slow.train_s == pytest.approx(24 * 0.25)
    waits = 2 * MODEL / 1e9
    assert fast.seconds == pytest.approx(6.0 + waits)
    assert fast.busy == pytest.approx(6.0 / (6.0 + waits))
    # Two workers make K = 1 update in half a round; all other updates are made in flight.
    assert us.pace.updates_s == pytest.approx(fast.seconds / 2)
    assert us.pace.in_flight == pytest.approx(
        us.pace.seconds / (us.pace.seconds + fast.seconds / 2)
    )


def test_the_time_of_a_step_is_stated_or_paced_or_that_of_a_gpu_or_unknown() -> None:
    def seconds(assumed: Assumptions, **tables: dict[str, object]) -> float | None:
        step = forecast(run_with(**tables), FACTS, assumed).step
        return None if step is None else step.seconds

    h100 = gpu_named("h100")
    operations = FACTS.step_operations(8192, 1024)
    assert seconds(Assumptions()) is None
    assert seconds(Assumptions(gpu=h100)) == pytest.approx(operations / (0.4 * 989e12))
    assert seconds(Assumptions(gpu=h100, mfu=0.5)) == pytest.approx(operations / (0.5 * 989e12))
    assert seconds(Assumptions(), local={"step_ms": 250.0}) == 0.25
    assert seconds(Assumptions(step_seconds=0.125), local={"step_ms": 250.0}) == 0.125
    unknown_peak = replace(h100, operations=0.0)
    assert seconds(Assumptions(gpu=unknown_peak)) is None


def test_a_step_of_unknown_time_leaves_rounds_out_and_transfers_in() -> None:
    us = forecast(run_with(), FACTS, Assumptions()).regions[1]
    assert not us.rounds
    assert us.pace.updates_s is us.pace.in_flight is None
    assert us.pace.seconds > 60


def test_every_encoding_is_in_the_table_with_its_bytes_of_a_real_model() -> None:
    """A model of one tensor is cut as the plan cuts it."""
    manifest = Manifest((TensorSpec("w", (1000, 1001)),))
    found = forecast(run_with(), FACTS, STATED).regions[0].exchange
    assert [each.encoding for each in found] == [each.name for each in encodings()]
    for encoding in encodings():
        assert payload_bytes(encoding, manifest.numel) == sum(chunk_sizes(encoding, manifest))


def test_servers_hold_the_models_of_their_settings() -> None:
    held = models_held.of_lps(run_with(), 1)
    # Model, last exchange, momentum, accumulator, exchange, global model; two workers' updates. Beside them a reply
    # of an older version, and the arenas that a snapshot still writes when they are replaced.
    assert (held.durable, held.memory) == (8, 8 + 1 + 3)
    undurable = models_held.of_lps(run_with(lps={"durability": "none"}), 1)
    assert undurable.memory == 8 + 1
    plain = run_with(lps={"momentum": 0.0, "in_flight": "carry"})
    assert models_held.of_lps(plain, 1).durable == 7
    assert models_held.of_gps(run_with()).durable == 5
    assert models_held.of_gps(run_with(gps={"average": 0.9})).durable == 6
    found = {each.name: each for each in forecast(run_with(), FACTS, STATED).processes}
    base = processes.SERVER_BYTES + processes.TRANSFER_BYTES
    assert found["lps-us"].host_bytes == base + 12 * MODEL


def test_a_worker_on_a_gpu_has_its_models_there() -> None:
    """Parameters, gradient, two moments and the start of the round in fp32, the matrices in bf16, activations."""
    assumed = Assumptions(gpu=gpu_named("H100"))
    found = {each.name: each for each in forecast(run_with(), FACTS, assumed).processes}
    worker = found["worker-eu-0"]
    logits = (2 * 2 + 3 * 4) * 256
    activations = 8 * 1024 * (16 * processes.layer_bytes(FACTS) + logits)
    models = 5 * MODEL + 2 * FACTS.matrix_parameters
    assert worker.gpu_bytes == processes.GPU_CONTEXT_BYTES + models + activations
    assert found["lps-eu"].gpu_bytes == 0
    short = run_with(worker={"moments_dtype": "bfloat16"})
    [found_short] = [
        each for each in forecast(short, FACTS, assumed).processes if each.name == "worker-eu-0"
    ]
    assert worker.gpu_bytes - found_short.gpu_bytes == MODEL
    smaller = run_with(worker={"micro_batch_size": 2})
    found = {each.name: each for each in forecast(smaller, FACTS, assumed).processes}
    assert worker.gpu_bytes - found["worker-eu-0"].gpu_bytes == activations * 6 // 8


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    tokens, layer = 8 * 1024, processes.layer_bytes(FACTS)
    checkpointed = run_with(worker={"checkpoint_activations": True})
    saved = processes.gpu_worker_bytes(run_with(), FACTS, 8) - processes.gpu_worker_bytes(
        checkpointed, FACTS, 8
    )
    assert saved == tokens * (15 * layer - 16 * 4 * 2048)


def test_auto_takes_as_many_sequences_as_fit() -> None:
    run = run_with(worker={"micro_batch_size": "auto"})
    four = processes.gpu_worker_bytes(run, FACTS, 4)
    assert processes.sequences_at_once(run, FACTS, four) == 4
    assert processes.sequences_at_once(run, FACTS, four - 1) == 2
    assert processes.sequences_at_once(run, FACTS, 2 * four) == 8
    assert processes.sequences_at_once(run_with(), FACTS, four) == 8


def test_long_vocabularies_are_not_in_fp32_at_once() -> None:
    wide = replace(FACTS, vocabulary=128_256)
    more = processes.gpu_worker_bytes(run_with(), wide, 8)
    more -= processes.gpu_worker_bytes(run_with(), replace(FACTS, vocabulary=0), 8)
    assert more == 4 * 8 * 1024 * 128_256 + 3 * 4 * (1 << 26)


def test_processes_take_the_gpus_of_their_host_in_turn() -> None:
    """Three workers and the evaluator, on this host, share two GPUs."""
    both = forecast(run_with(), FACTS, Assumptions(gpu=gpu_named("H100"), gpus=2))
    assert [key for key in both.gpus] == [("this host", 0), ("this host", 1)]
    four = forecast(run_with(), FACTS, Assumptions(gpu=gpu_named("H100")))
    assert len(four.gpus) == 4
    assert sum(both.gpus.values()) == sum(four.gpus.values())


def test_hosts_are_told_apart_by_their_addresses() -> None:
    run = run_with(gps={"connect": "gps.example:7700"})
    found = forecast(run, FACTS, STATED)
    on_other = {each.name for each in found.processes if each.place == "gps.example"}
    assert on_other == {"gps", "evaluator"}
    assert sum(found.hosts.values()) == sum(each.host_bytes for each in found.processes)


def test_the_figures_are_json() -> None:
    figures = forecast(run_with(), FACTS, STATED).figures()
    read = json.loads(json.dumps(figures))
    assert read["model"]["bytes"] == MODEL
    assert read["regions"]["us"]["rounds"]["worker-us-1"]["busy"] < 1
    assert read["processes"]["gps"]["host_models"] > 6
    assert sum(read["processes"]["gps"]["models"].values()) == 9


def test_an_unknown_gpu_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--gpu h1000: not known; there are .*h100"):
        gpu_named("h1000")
