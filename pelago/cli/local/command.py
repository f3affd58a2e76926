"""`pelago local` and `pelago resume`, from checked flags to the exit code."""

from pathlib import Path

import uvloop

from pelago.cli.local import results_folder
from pelago.cli.local.results_folder import EarlierResults
from pelago.cli.local.supervisor import Supervisor
from pelago.cli.local.topology import LocalTopology
from pelago.config.run_file import RunFile


def local(run: RunFile, out: Path, *, overwrite: bool, live: bool) -> int:
    """Run the topology to its end. Returns the exit code. Raises `PelagoError`.

    ``live``: show a table on the terminal instead of printing lines.
    """
    results_folder.prepare(out, overwrite)
    return uvloop.run(Supervisor(LocalTopology(run, out), live).run())


def resume(run: RunFile, out: Path, source: str, *, live: bool) -> int:
    """As `local`, from where the GPS of an earlier incarnation left off.

    ``source``: a folder of results or of snapshots, see `gps --resume`. The earlier results are removed when the
    run goes on; where it cannot, they stay. Raises `PelagoError`.
    """
    results_folder.require_idle(out)
    earlier = EarlierResults(out)
    results_folder.prepare_again(out, earlier)
    try:
        return uvloop.run(Supervisor(LocalTopology(run, out, source), live, earlier).run())
    finally:
        earlier.put_back()
