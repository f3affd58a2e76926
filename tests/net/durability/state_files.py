"""The files of a durable node, as a test writes them byte by byte, and what is in them."""

from pathlib import Path

from pelago.core.machine import PeerLost
from pelago.durable import record
from pelago.durable.record import Header, Kind
from pelago.net.durability import file_header
from pelago.net.durability.state_folder import StateFolder
from pelago.net.durability.state_reader import RecoveredState
from pelago.wire.messages import Event

RUN = "run-0123456789ab"
NODE = "gps"


def a_store(folder: Path, run: str = RUN, node: str = NODE) -> StateFolder:
    return StateFolder(folder, run, node)


def a_header(run: str = RUN, node: str = NODE) -> Header:
    return file_header.new_header(run, node, f"{node}@here:1:abc", 7)


HEADER = a_header()


def an_event(number: int) -> Event:
    return PeerLost("lps-1", f"for reason {number}")


def a_piece(
    kind: Kind, number: int, body: bytes | memoryview, first: int = 0, second: int = 0
) -> bytes:
    salt = 0 if kind is Kind.HEADER else HEADER.salt
    return record.head(kind, number, body, first, second, salt=salt) + bytes(body)


def header_piece(number: int = 0, header: Header | None = None) -> bytes:
    return a_piece(Kind.HEADER, number, record.pack_header(header or HEADER))


def event_piece(number: int) -> bytes:
    return a_piece(Kind.EVENT, number, record.pack_event(RUN, an_event(number)), 0, 1000 + number)


def journal_pieces(first: int, last: int) -> list[bytes]:
    """A journal with events of these numbers, its header first."""
    return [header_piece(first - 1), *map(event_piece, range(first, last + 1))]


def snapshot_pieces(number: int, chunks: int = 2) -> list[bytes]:
    """A snapshot of the state after an event."""
    return [
        header_piece(number),
        a_piece(Kind.STATE, number, record.pack(["image", number]), number, 1000 + number),
        a_piece(Kind.LAYOUT, number, record.pack({"payloads": []})),
        *(a_piece(Kind.CHUNK, number, bytes([index]) * 8, 0, index) for index in range(chunks)),
        a_piece(Kind.END, number, b""),
    ]


def recovered_state(store: StateFolder) -> RecoveredState:
    recovered = store.recovered()
    assert recovered is not None
    return recovered


def numbers(recovered: RecoveredState) -> list[int]:
    return [each.head.number for each in recovered.records]


def assert_reads(recovered: RecoveredState, last: int, first: int = 1) -> None:
    """All events of these numbers are there, as they were written, and nothing else is."""
    assert numbers(recovered) == list(range(first, last + 1))
    for each in recovered.records:
        assert each.head.kind is Kind.EVENT
        assert record.unpack_event(RUN, each.body) == an_event(each.head.number)
        assert each.head.second == 1000 + each.head.number
    assert recovered.next_number == last + 1


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
