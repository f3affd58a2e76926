"""Writes snapshots of a durable node."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from pelago.durable import record
from pelago.durable.record import Header, Kind
from pelago.net import disk
from pelago.net.durability.file_header import packed_header
from pelago.net.durability.state_files import PART
from pelago.net.durability.state_folder import StateFolder
from pelago.net.files import open_over, sync_folder
from pelago.tensor.payload import ChunkBuffer


def snapshot_records(
    header: Header,
    number: int,
    now: int,
    image: bytes,
    layout: bytes | None,
    chunks: Iterable[ChunkBuffer],
) -> Iterator[tuple[bytes, Any]]:
    """The records of a snapshot, each as head and body. ``number``: of the last event inside; ``now``: the machine's
    clock at it, in picoseconds; ``image``: the machine's state; ``layout``: which of ``chunks`` make which tensors
    (None: the node has no tensors yet)."""
    packed, salt = record.pack_header(header), header.salt
    yield record.head(Kind.HEADER, number, packed), packed
    yield record.head(Kind.STATE, number, image, number, now, salt=salt), image
    if layout is not None:
        yield record.head(Kind.LAYOUT, number, layout, salt=salt), layout
    for place, chunk in enumerate(chunks):
        body = chunk.buffer()
        yield record.head(Kind.CHUNK, number, body, 0, place, chunk.checksum(), salt), body
    yield record.head(Kind.END, number, b"", salt=salt), b""


def write_snapshot(
    store: StateFolder, index: int, records: Iterator[tuple[bytes, Any]], needs: int
) -> int:
    """Write a snapshot beside its place, sync it, then rename it: one that exists is whole, also after a loss of
    power. Returns its size in bytes. Raises `OSError`.

    ``needs``: the snapshot has at least so many bytes. If there is no room for them, nothing is written, since
    that would take the journal's room for a while.
    """
    path = store.snapshot(index)
    part = path.with_name(path.name + PART)
    size = 0
    try:
        store.spare(part)
        store.require_room(needs, part)
        descriptor = open_over(part)
        try:
            for head, body in records:
                for piece in (head, body):
                    view = memoryview(piece).cast("B")
                    while view.nbytes:
                        taken = os.write(descriptor, view)
                        size += taken
                        view = view[taken:]
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        # A snapshot whose name may not be on the disk is not used: the one before it stays the newest.
        part.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if disk.is_full(error):
            store.give_up_spares()  # For the next attempt, and for the journal.
        raise
    return size


def begin_with(
    store: StateFolder,
    header: Header,
    number: int,
    now: int,
    image: bytes,
    layout: bytes,
    chunks: Iterable[ChunkBuffer],
    history: bytes,
) -> None:
    """Begin an empty folder with a snapshot, of the record ``number``, instead of with a first event; all of
    it is on the disk then. Raises `OSError`."""
    for path, content in (
        (store.history, history),
        (store.journal(0), packed_header(header, number + 1)),
    ):
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    records = snapshot_records(header, number, now, image, layout, chunks)
    write_snapshot(store, 0, records, needs=0)
