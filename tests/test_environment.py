"""The settings of all tests: they run on the daemons' event loop, with one thread."""

import asyncio
import subprocess
import sys

import uvloop


async def test_asynchronous_tests_run_on_uvloop() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)


def test_torch_has_one_thread_here_and_in_the_processes_that_tests_start() -> None:
    ask = "import torch; print(torch.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == "1\n"
