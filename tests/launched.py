"""Processes for the tests: some that may be killed, and some that work together as `accelerate launch` starts them.

They are forked from a process that has imported what they need, so that starting one takes no time.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path

IMPORTED = ["capture_lib.experiments.stages", "accelerate", "torch.nn.parallel", "test_restart", "test_distributed",
            "test_schedule"]


def processes() -> ForkServerContext:
    """Where to start a process from."""
    context = multiprocessing.get_context("forkserver")
    before = os.environ.get("PYTHONPATH")
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (here.parent, here, here / "unit")))
    context.set_forkserver_preload(IMPORTED)
    ensure_running()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return context


def launch(function: Callable, *arguments: object, count: int = 2) -> list:
    """What a function of a test module returns in each of `count` processes that do one run together on the CPU.

    Raises:
        AssertionError: with the traceback of the first that raised.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = processes()
    answers = context.Queue()
    started = [context.Process(target=_run, args=(answers, number, count, port, function, arguments), daemon=True)
               for number in range(count)]
    for process in started:
        process.start()
    found = {}
    try:
        for _ in started:
            number, answer, fault = answers.get(timeout=600)
            assert not fault, f"process {number}:\n{fault}"
            found[number] = answer
    finally:
        for process in started:
            process.join(10 if len(found) == count else 0)
            process.kill()
    return [found[number] for number in range(count)]


def _run(answers: multiprocessing.Queue, number: int, count: int, port: int, function: Callable, arguments: tuple
         ) -> None:
    os.environ.update(WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), RANK=str(number), LOCAL_RANK=str(number),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="yes", GLOO_SOCKET_IFNAME="lo")
    try:
        answers.put((number, function(*arguments), ""))
    except BaseException:  # a KeyboardInterrupt too is an answer
        answers.put((number, None, traceback.format_exc()))
