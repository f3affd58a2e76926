"""The shape of a model, from its configuration."""

import pytest

from pelago.cli.plan.model import model_facts
from pelago.config import run_toml
from tests.cli.plan.runs import FACTS, run_with


def test_the_facts_of_a_preset_over_bytes() -> None:
    assert model_facts(run_with()) == FACTS


def test_a_token_meets_one_expert_of_four() -> None:
    """llama4-tiny: four layers, in each of which three experts of 24,576 parameters stand idle."""
    run = run_toml.parse(
        '[model]\npreset = "llama4-tiny"\n[[region]]\nname = "eu"\nworker_speeds = [1]\n'
    )
    facts = model_facts(run)
    assert facts.parameters == 558_656
    assert facts.active == 558_656 - 4 * 3 * 24_576
    assert facts.intermediate == 2 * 128  # The chosen expert's, and the shared one's.


def test_a_step_of_a_billion_parameters_takes_its_operations() -> None:
    """6 a parameter and token, and causal attention: 6 * 16 layers * 2048 * 1024 tokens."""
    assert FACTS.step_operations(8192, 1024) == pytest.approx(
        8192 * (6 * 973_670_400 + 6 * 16 * 2048 * 1024)
    )
