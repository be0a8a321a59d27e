"""Tasks side by side: in the order of what they need, ended by the first error, a killed process or an interrupt."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from launched import processes

from capture_lib.experiments.plan import Task
from capture_lib.report import schedule
from capture_lib.report.schedule import ProcessKilled, run_tasks
from capture_lib.utils import ROOT, InputError


@pytest.fixture(autouse=True)
def quick_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are forked from one that has imported all."""
    monkeypatch.setattr(schedule, "get_context", lambda method: processes())


def note(folder: Path, name: str) -> None:
    """Work that leaves its name in a list."""
    with (folder / "done").open("a") as file:
        file.write(f"{name} ")


def wait_for(file: Path) -> None:
    """Return when there is a file."""
    limit = time.monotonic() + 300
    while not file.exists():
        assert time.monotonic() < limit, f"{file} did not come"
        time.sleep(0.01)


def meet(folder: Path, name: str, other: str) -> None:
    """Work that ends when another has begun."""
    (folder / name).touch()
    wait_for(folder / other)
    note(folder, name)


def outlast(folder: Path, name: str, other: str) -> None:
    """Work that ends well after another has begun and failed."""
    meet(folder, "begun", other)
    time.sleep(2)
    note(folder, name)


def fail(folder: Path, name: str, other: str) -> None:
    """Fail when another has begun, and let it end."""
    wait_for(folder / other)
    (folder / name).touch()
    raise InputError("no room\nfor it")


def be_killed(folder: Path, other: str) -> None:
    wait_for(folder / other)
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(folder: Path, process: int, other: str) -> None:
    """Interrupt the process that waits, as one is from a terminal."""
    wait_for(folder / other)
    os.kill(process, signal.SIGINT)


def last_long(folder: Path, name: str) -> None:
    """Work that ends when it is interrupted, and cleans up whatever signals come then."""
    (folder / name).touch()
    try:
        wait_for(folder / "never")
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGINT)
        note(folder, name)
        raise


def tasks_in(folder: Path, **work: tuple[Callable, ...]) -> dict[str, Task]:
    """Tasks that need nothing, and one that is left for the end."""
    begun = {name: Task((), partial(call[0], folder, *call[1:])) for name, call in work.items()}
    return begun | {"last": Task((), partial(note, folder, "last"))}


def done_in(folder: Path) -> list[str]:
    file = folder / "done"
    return file.read_text().split() if file.exists() else []


def test_each_begins_when_what_it_needs_is_done_and_is_told_with_what_is_left(tmp_path: Path, capsys):
    needs = {"tree": (), "walls": (), "doors": ("walls",), "roof": ("walls", "doors")}
    tasks = {name: Task(before, partial(note, tmp_path, name)) for name, before in needs.items()}
    found = dict(run_tasks(tasks, 1, {"roof": 600, "walls": 100}))
    assert done_in(tmp_path) == list(found) == ["walls", "doors", "roof", "tree"]
    assert all(seconds >= 0 for seconds in found.values())
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["[1/4] walls", "[2/4] doors", "[3/4] roof", "[4/4] tree"]
    assert all(" gone" in line for line in lines) and ", about " in lines[0] and ", about " not in lines[3]


def test_what_is_left_is_estimated_by_the_speed_so_far():
    past = {"a": 10, "b": 30, "c": 5}
    assert schedule.seconds_left(["b", "c", "new"], {"a": 5.0}, past) == 17.5
    assert schedule.seconds_left(["b"], {"new": 5.0}, past) == 30 and schedule.seconds_left(["new"], {}, past) == 0


def test_a_task_is_as_urgent_as_the_longest_chain_behind_it():
    needs = {"tree": (), "walls": (), "doors": ("walls",), "bell": ("doors",), "roof": ("walls",)}
    tasks = {name: Task(before, print) for name, before in needs.items()}
    past = {"tree": 8, "walls": 2, "doors": 3, "roof": 5}
    chains = {"tree": 8, "walls": 2 + 5, "doors": 3 + 1, "bell": 1, "roof": 5}
    assert schedule.seconds_to_the_end(tasks, past) == chains


def test_two_that_do_not_need_each_other_run_side_by_side(tmp_path: Path):
    tasks = tasks_in(tmp_path, one=(meet, "one", "other"), other=(meet, "other", "one"))
    assert {name for name, _ in run_tasks(tasks, 2, {})} == {"one", "other", "last"}


def test_the_first_error_ends_all_when_what_runs_has_ended(tmp_path: Path, capsys):
    tasks = tasks_in(tmp_path, bad=(fail, "bad", "begun"), beside=(outlast, "beside", "bad"))
    with pytest.raises(InputError, match="^no room\nfor it$"):
        list(run_tasks(tasks, 2, {}))
    assert done_in(tmp_path) == ["begun", "beside"]  # and not the last
    assert capsys.readouterr().out == "bad: failed; waiting for beside\n"


def test_a_killed_process_ends_all_with_one_line_that_names_what_ran(tmp_path: Path):
    tasks = tasks_in(tmp_path, killed=(be_killed, "beside"), beside=(last_long, "beside"))
    with pytest.raises(ProcessKilled) as error:
        list(run_tasks(tasks, 2, {}))
    assert "\n" not in str(error.value) and "--resume" in str(error.value)
    assert any(f"killed while {both} ran" in str(error.value) for both in ("killed and beside", "beside and killed"))
    assert done_in(tmp_path) == []


@pytest.fixture
def heeded() -> Iterator[None]:
    """An interrupt is one, whoever started this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_handed_on_once_and_nothing_begins(tmp_path: Path, heeded, capfd):
    tasks = tasks_in(tmp_path, interrupt=(interrupt, os.getpid(), "long"), long=(last_long, "long"))
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(tasks, 2, {}))
    assert done_in(tmp_path) == ["long"]
    assert capfd.readouterr().err == ""  # no traceback of a process


@pytest.mark.skipif(sys.platform != "linux", reason="other systems leave the processes")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path):
    """It is killed, and can tell them nothing."""
    note = tmp_path / "process"
    work = f"import os, time; open({str(note)!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(600)"
    code = ("from functools import partial; from capture_lib.experiments.plan import Task; "
            "from capture_lib.report.schedule import run_tasks; "
            f"list(run_tasks({{'long': Task((), partial(exec, {work!r}))}}, 1, {{}}))")
    started = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    limit = time.monotonic() + 300
    while not (note.exists() and note.read_text().endswith(" ")):
        assert time.monotonic() < limit and started.poll() is None
        time.sleep(0.05)
    worker = note.read_text().strip()
    assert works(worker)
    started.kill()
    started.wait()
    while works(worker):
        assert time.monotonic() < limit
        time.sleep(0.05)


def works(process: str) -> bool:
    """Whether there is such a process, and not only its entry for a parent that never asks."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", process], capture_output=True, text=True).stdout.strip()
    return bool(shown) and not shown.startswith("Z")
