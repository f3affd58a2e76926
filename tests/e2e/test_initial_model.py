"""The initial model, from the process that draws it to the GPS."""

import json
import os

import pytest
import torch

from gps import initial
from pelago.config import run_toml
from pelago.core.errors import CheckpointError, ConfigError
from worker.evaluator.held_out_loss import HeldOutLoss

TEXT = '[run]\nseed = 5\n[[region]]\nname = "eu"\nworker_speeds = [1.0]\n'


@pytest.mark.timeout(180)
def test_the_gps_gets_the_parameters_that_a_worker_process_draws() -> None:
    """To the bit those that this process draws, with the corpus and where they are from."""
    run = run_toml.parse(TEXT)
    found = initial.build(run)
    here = HeldOutLoss(run)
    assert found.manifest.specs == here.manifest()
    assert torch.equal(found.flat, here.initial())
    assert (found.corpus, found.origin) == (here.corpus.digest, "random, drawn from seed 5")


@pytest.mark.timeout(180)
def test_what_the_worker_says_of_a_wrong_model_is_the_error() -> None:
    run = run_toml.parse(TEXT + '[model]\npreset = "llama3-tinny"\n')
    with pytest.raises(ConfigError, match=r"model\.preset = 'llama3-tinny'.*did you mean"):
        initial.build(run)


def test_parameters_that_do_not_fit_their_description_are_refused() -> None:
    memory = os.memfd_create("test")
    try:
        os.truncate(memory, 20)
        facts = {"specs": [["w", [3, 2]]], "corpus": "c", "origin": "o"}
        with pytest.raises(CheckpointError, match="has 20 bytes, not 24"):
            initial.read(memory, json.dumps(facts))
        with pytest.raises(CheckpointError, match="says of the initial model: 'nothing'"):
            initial.read(memory, "nothing")
        os.truncate(memory, 24)
        assert initial.read(memory, json.dumps(facts)).flat.tolist() == [0.0] * 6
    finally:
        os.close(memory)
