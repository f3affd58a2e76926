"""Which files a durable node's folder holds; see `pelago.net.durability.state_folder`."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pelago.core.errors import CheckpointError
from pelago.durable import record
from pelago.durable.record import Header
from pelago.durable.replay import at
from pelago.mapped_files import map_file
from pelago.runlog.history import HISTORY

PART: Final = ".part"
"""Ends the name of a snapshot that is not whole yet."""
CLEARING: Final = "clearing"
"""A file that is there while the old state is being removed. A process that finds it goes on removing."""
NAME: Final = re.compile(r"(journal|snapshot)-(\d{8})")


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The paths of a folder of state."""

    folder: Path

    def journal(self, index: int) -> Path:
        """Path of a journal."""
        return self.folder / f"journal-{index:08d}"

    def snapshot(self, index: int) -> Path:
        """Path of a snapshot."""
        return self.folder / f"snapshot-{index:08d}"

    @property
    def history(self) -> Path:
        """Path of the history."""
        return self.folder / HISTORY

    @property
    def clearing(self) -> Path:
        """Path of the mark `CLEARING`."""
        return self.folder / CLEARING

    def all(self) -> list[Path]:
        """Journals and snapshots that are there, also those that are not whole. Raises `OSError`."""
        return [path for path in sorted(self.folder.iterdir()) if NAME.match(path.name)]

    def numbers(self, kind: Literal["journal", "snapshot"]) -> list[int]:
        """The indices of the journals or snapshots that are there, in order. Raises `OSError`."""
        found = (NAME.fullmatch(path.name) for path in self.all())
        return sorted(int(each[2]) for each in found if each and each[1] == kind)

    def headers(self) -> list[Header]:
        """The headers of journals and snapshots, as far as they can be read."""
        found = []
        for path in self.all():
            with suppress(CheckpointError):
                first = at(map_file(path)[0], 0)
                if first is not None:
                    found.append(record.unpack_header(first.body))
        return found
