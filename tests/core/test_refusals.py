"""Which clients have no update accepted any more, and whether others do better."""

from pelago.core.refusals import Client, Refusals, hopeless, update_fault
from pelago.core.tensor_effects import Measured
from pelago.durable import image

BOTH: list[Client] = [0, 1]


def test_one_that_fails_while_another_does_not_is_found() -> None:
    """1. Group 0 fails twice in a row; three times are allowed. 2. Group 1 has had an update accepted since it
    failed, so it is group 0 alone. 3. The count goes on when another process takes the place of group 0."""
    refusals = Refusals(3)
    assert [refusals.refused(0, BOTH) for _ in range(2)] == ["go on", "go on"]
    assert refusals.refused(1, BOTH) == "go on"
    refusals.accepted(1)
    assert refusals.refused(0, BOTH) == "it"
    assert refusals.refused(0, BOTH) == "it"
    assert refusals.total == 5


def test_when_all_fail_the_verdict_is_about_all() -> None:
    refusals = Refusals(3)
    verdicts = [refusals.refused(group, BOTH) for group in (0, 0, 1, 0)]
    assert verdicts == ["go on", "go on", "go on", "all"]


def test_one_about_which_nothing_is_known_might_do_better() -> None:
    """Until it fails too."""
    refusals = Refusals(2)
    assert [refusals.refused(0, BOTH) for _ in range(2)] == ["go on", "it"]
    assert refusals.refused(1, [1]) == "go on"
    assert refusals.refused(1, [1]) == "all"


def test_an_accepted_update_begins_the_count_again() -> None:
    refusals = Refusals(2)
    for _ in range(5):
        assert refusals.refused(0, [0]) == "go on"
        refusals.accepted(0)
    assert refusals.in_a_row == {}


def test_a_client_that_gave_up_by_itself_counts_as_failing() -> None:
    refusals = Refusals(4)
    assert refusals.given_up("eu", ["eu", "us"]) == "it"
    assert refusals.given_up("us", ["eu", "us"]) == "all"
    refusals.clear()
    assert refusals.verdict("us", ["us"]) == "go on"


def test_the_count_is_part_of_the_state() -> None:
    refusals, again = Refusals(2), Refusals(2)
    refusals.refused("eu", ["eu"])
    image.restore(again, image.take(refusals))
    assert again.refused("eu", ["eu"]) == "all"


def test_the_message_to_the_user_names_the_keys() -> None:
    fault = update_fault(Measured(1, 2e7, finite=True), 1e6, "lps.update_norm_max")
    assert fault == "norm 2e+07 above lps.update_norm_max = 1e+06"
    assert update_fault(Measured(1, 1e6, finite=True), 1e6, "x") == ""
    assert update_fault(Measured(1, 1.0, finite=False), 1e6, "x") == "not finite"
    text = hopeless("worker eu/0", 16, fault, 1e4, 1e6, "lps.update_norm_max")
    for part in ("worker eu/0", "last 16", fault, "worker.max_lr = 10000", "bfloat16"):
        assert part in text
