"""The `pelago` command: check a run file, run a whole topology on this machine."""
