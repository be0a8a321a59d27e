"""Do the tasks of a run side by side, each when those that it needs are done, and say how long the rest will take."""

import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children, get_context
from unittest.mock import patch

from capture_lib.experiments.plan import Task
from capture_lib.utils import end_with_parent

INTERRUPT = {signal.SIGINT}


class ProcessKilled(RuntimeError):
    """A process that worked was killed from outside; the message names its tasks, and says how to go on."""


def default_jobs() -> int:
    """Return how many processes work side by side: one a core, four at most; on a GPU, one."""
    import torch
    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 4)


def run_tasks(tasks: dict[str, Task], jobs: int, past: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Do all tasks, each after those that it needs, in `jobs` processes; yield each with its seconds.

    The cores are shared out between the processes. `past`: the seconds that tasks took elsewhere, for the estimate and
    the order: of those that can begin, the first is the one with the longest chain of tasks behind it.
    The first error is raised when the tasks beside it have ended; no further one begins.
    """
    waiting, running, done = dict(tasks), {}, {}
    started = time.perf_counter()
    chains = seconds_to_the_end(tasks, past)
    threads = max((os.cpu_count() or 1) // jobs, 1)
    quiet = {"CAPTURE_REPORT": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # static output, no debugger's notes
             "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    with (patch.dict(os.environ, quiet),
          ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool):
        while waiting or running:
            # begin as many as there are processes
            ready = [name for name, task in waiting.items() if done.keys() >= set(task.needs)]
            ready.sort(key=chains.get, reverse=True)
            for name in ready[:jobs - len(running)]:
                running[begin(pool, waiting.pop(name).work)] = name
            # wait for one to end
            ended = wait_for_one(running)
            name = running.pop(ended)
            error = ended.exception()
            if isinstance(error, BrokenProcessPool):  # which ends all that ran
                raise ProcessKilled(f"a process was killed while {' and '.join([name, *running.values()])} ran, most "
                                    "often for want of memory; fewer --jobs or a smaller profile needs less; go on "
                                    "with `capture run --resume` and the same options") from None
            if error:
                if running:
                    print(f"{name}: failed; waiting for {', '.join(running.values())}", flush=True)
                raise error
            done[name] = ended.result()
            # tell
            gone = time.perf_counter() - started
            rest = seconds_left([*waiting, *running.values()], done, past) / jobs
            print(f"[{len(done)}/{len(tasks)}] {name}: {duration(done[name])}"
                  f"; {duration(gone)} gone" + f", about {duration(rest)} left" * bool(rest), flush=True)
            yield name, done[name]


def begin(pool: ProcessPoolExecutor, work: Callable[[], object]) -> Future:
    """Hand work to a process; one that starts now holds interrupts back until it works."""
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT)  # which processes inherit
    try:
        return pool.submit(timed, work)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)


def wait_for_one(running: dict[Future, str]) -> Future:
    """Return a future that has ended; an interrupt is handed on to the processes."""
    try:
        return next(iter(wait(running, return_when=FIRST_COMPLETED).done))
    except KeyboardInterrupt:
        for child in active_children():
            os.kill(child.pid, signal.SIGINT)
        raise


def timed(work: Callable[[], object]) -> float:
    """Do the work in this process, which heeds an interrupt meanwhile; return the seconds."""
    started = time.perf_counter()
    signal.signal(signal.SIGINT, interrupt_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)
    try:
        work()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT)
    gc.collect()  # a trained model and its optimiser refer to one another
    with suppress(AttributeError):  # glibc alone keeps what was freed, a gigabyte after a training
        ctypes.CDLL(None).malloc_trim(0)
    return time.perf_counter() - started


def interrupt_once(*_: object) -> None:
    """Raise KeyboardInterrupt, and no second one while the work cleans up: a terminal and `wait_for_one` send one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT)
    raise KeyboardInterrupt


def seconds_to_the_end(tasks: dict[str, Task], past: dict[str, float]) -> dict[str, float]:
    """Return for each task its seconds and those of the longest chain of tasks that wait for it; 1 s: not known.

    A task stands before those that need it.
    """
    chains = {}
    for name in reversed(tasks):
        behind = [chain for later, chain in chains.items() if name in tasks[later].needs]
        chains[name] = past.get(name, 1.0) + max(behind, default=0.0)
    return chains


def seconds_left(names: list[str], done: dict[str, float], past: dict[str, float]) -> float:
    """Return what tasks will take, from their past seconds and this machine's speed in what is done; 0: not known."""
    known = [name for name in done if name in past]
    before = sum(past[name] for name in known)
    speed = sum(done[name] for name in known) / before if before else 1
    return speed * sum(past.get(name, 0) for name in names)


def duration(seconds: float) -> str:
    """Return seconds for a reader: 8.2 s, 12 min."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
