"""The results of a run that is over, written before its evaluators are waited for."""

import asyncio
from pathlib import Path

from gps import files
from gps.result import result
from gps.state import Gps
from pelago.config.run_file import RunFile
from pelago.core.notes.gps import Settled
from pelago.core.notes.note import Note
from pelago.net.node import Node
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import ResultsWritten
from pelago.tensor.snapshot import PlaneSnapshot


class EarlyResults:
    """Writes them once the machine notes that all regions have left: evaluators may take their time, or
    never come to an end, and change nothing but the list of validations."""

    def __init__(self) -> None:
        self._settled = asyncio.Event()
        self._has_begun = False
        self.lock = asyncio.Lock()
        """Held while the model is written, so that an export of an older version cannot come last."""

    def on_note(self, note: Note) -> None:
        """Hears the notes of the GPS's machine."""
        if isinstance(note, Settled):
            self._settled.set()

    async def write(self, node: Node, gps: Gps, run: RunFile, out: Path, log: Telemetry) -> bool:
        """Returns whether all could be written."""
        await self._settled.wait()
        async with self.lock:
            return await self._write(node, gps, run, out, log)

    async def _write(self, node: Node, gps: Gps, run: RunFile, out: Path, log: Telemetry) -> bool:
        future: asyncio.Future[PlaneSnapshot] = asyncio.get_running_loop().create_future()
        node.tensors.snapshot((), future.set_result)
        taken = await future
        self._has_begun = True
        found = result(gps, run, clock="real", model_parameters=taken.manifest.numel)

        def write() -> list[str]:
            model, average = taken.tensor("model"), taken.tensor("average")
            return files.write(out, found, taken.manifest, model, average)

        failures = await asyncio.to_thread(write)
        log.event(ResultsWritten(tuple(failures)))
        return not failures

    async def has_written(self, writing: "asyncio.Task[bool]") -> bool:
        """When the node is done: whether the model is written. What has not begun by now is left."""
        if self._has_begun:
            return await writing
        writing.cancel()
        return False
