"""The limit on versions that are on their way to readers at once."""

from hypothesis import given
from hypothesis import strategies as st

from pelago.core.names import Version
from pelago.protocol.versions_in_flight import VersionsInFlight


def version(counter: int) -> Version:
    return Version(1, counter)


def test_readers_of_one_version_share_its_room() -> None:
    versions = VersionsInFlight(1)
    for blob in range(10):
        assert versions.has_room(f"w{blob}", version(3))
        versions.begin(f"w{blob}", blob, version(3))
    assert not versions.has_room("w10", version(4))


def test_there_is_room_again_when_the_last_reader_of_a_version_has_it() -> None:
    versions = VersionsInFlight(1)
    versions.begin("w0", 1, version(3))
    versions.begin("w1", 2, version(3))
    assert versions.end("w0", 1)
    assert not versions.has_room("w0", version(4))
    assert versions.end("w1", 2)
    assert versions.has_room("w0", version(4))


def test_a_later_version_to_a_peer_takes_the_place_of_an_earlier_one() -> None:
    versions = VersionsInFlight(1)
    versions.begin("w0", 1, version(3))
    assert versions.has_room("w0", version(4))
    versions.begin("w0", 2, version(4))
    assert not versions.end("w0", 1)  # of the one that it replaced
    assert not versions.has_room("w1", version(5))
    assert versions.end("w0")


def test_nobody_waits_for_a_reader_that_is_gone() -> None:
    versions = VersionsInFlight(1)
    versions.begin("w0", 1, version(3))
    assert not versions.keep(lambda peer: peer == "w0")
    assert versions.keep(lambda peer: peer != "w0")
    assert versions.has_room("w1", version(4))


def test_the_mean_is_another_tensor_than_the_model() -> None:
    versions = VersionsInFlight(1)
    versions.begin("lps", 1, version(3))
    assert not versions.has_room("judge", version(3), average=True)


def test_without_a_limit_there_is_always_room_and_nothing_is_noted() -> None:
    versions = VersionsInFlight(0)
    for counter in range(100):
        versions.begin(f"w{counter}", counter, version(counter))
    assert versions.has_room("w", version(100))
    assert not versions.end("w0", 0)


@given(
    limit=st.integers(1, 3),
    steps=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["ask", "ask", "step", "arrive", "lost"])),
        max_size=60,
    ),
)
def test_never_are_more_versions_on_their_way_than_the_limit_says(
    limit: int, steps: list[tuple[int, str]]
) -> None:
    versions, counter, sent = VersionsInFlight(limit), 0, {}
    for blob, (peer, what) in enumerate(steps):
        name = f"w{peer}"
        match what:
            case "step":
                counter += 1
            case "ask" if versions.has_room(name, version(counter)):
                versions.begin(name, blob, version(counter))
                sent[name] = blob, counter
            case "arrive" if name in sent:
                assert versions.end(name, sent.pop(name)[0])
            case "lost":
                assert versions.end(name) == (sent.pop(name, None) is not None)
        versions.check()
        assert len({each for _, each in sent.values()}) <= limit
    for name in list(sent):
        versions.end(name)
    assert versions.has_room("any", version(counter + 1))
