"""The record with which every file of a durable node begins: which process wrote it, and when."""

import secrets
import time
from pathlib import Path
from typing import Final

from pelago.durable import record
from pelago.durable.record import Header, Kind

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """A name for the time since this machine was started; empty where the system has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def new_header(
    run: str, node: str, process: str, incarnation: int, salt: int | None = None
) -> Header:
    """The header of the files that this process writes. ``salt``: of the incarnation that goes on; None: a new one."""
    wall_ms = time.time_ns() // 10**6
    known = secrets.randbits(64) if salt is None else salt
    return Header(record.FORMAT, run, node, process, incarnation, boot_id(), wall_ms, known)


def packed_header(header: Header, number: int) -> bytes:
    """The record with which a journal begins whose next record has this number."""
    body = record.pack_header(header)
    return record.head(Kind.HEADER, number - 1, body) + body
