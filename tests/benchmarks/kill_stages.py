"""Kill a process that makes a stage, a thousand times at random moments: the stage is whole or absent, never broken.

    python tests/benchmarks/kill_stages.py [COUNT]

Each try is a fork of this process. Once a stage is whole its settings change, so that it is to be replaced. It is made
in steps that are kept, as a training is. Prints what was found after the kills.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pandas as pd

from capture_lib import utils
from capture_lib.catalog.table import Catalog
from capture_lib.experiments.run import RECORD, Run, files_below, read_record
from capture_lib.profiles import Profile

STEPS = 12
SIZE = 20_000  # numbers in a file


def content(setting: int, step: int) -> np.ndarray:
    """Return what a step leaves, which tells the setting and the step."""
    return np.full(SIZE, 100 * setting + step)


def make(folder: Path) -> None:
    """Make the stage: a state after each step, of which the last is taken up, then what the stage is made for."""
    setting = read_record(folder)[0]["settings"]
    states = sorted(folder.glob("state-*"))
    first = int(states[-1].name[-2:]) + 1 if states else 0
    utils.remove(folder / ".state")
    for step in range(first, STEPS):
        (folder / ".state").mkdir()
        np.save(folder / ".state" / "weights.npy", content(setting, step))
        (folder / ".state").rename(folder / f"state-{step:02d}")
        for old in sorted(folder.glob("state-*"))[:-2]:
            utils.remove(old.rename(folder / ".state"))
    (folder / "sub").mkdir(exist_ok=True)
    for number in range(3):
        with utils.write_atomically(folder / "sub" / f"{number}.npy") as beside:
            np.save(beside, content(setting, number))
    utils.write_json(folder / "history.json", list(range(STEPS)))
    for state in folder.glob("state-*"):
        utils.remove(state)


def state_of(stage: Path) -> str:
    """Return "absent" or "whole"; AssertionError where the stage is broken."""
    if not stage.exists():
        return "absent"
    record, files = read_record(stage)
    assert files == ["history.json", "stage.json", "sub/0.npy", "sub/1.npy", "sub/2.npy"], files
    assert files_below(stage) == files, files_below(stage)
    for number in range(3):
        assert (np.load(stage / "sub" / f"{number}.npy") == content(record["settings"], number)).all()
    return "whole"


def main(count: int) -> None:
    with TemporaryDirectory() as place:
        module = ModuleType("package.toy")
        module.__file__ = str(Path(place) / "toy.py")
        Path(module.__file__).write_text("")
        run = Run(Profile("tiny"), Catalog(Path(place), pd.DataFrame()), Path(place) / "report", 0)
        stage = run.stages / "toy"

        def attempt(setting: int) -> int:
            """Start making the stage in a process; return its number."""
            child = os.fork()
            if not child:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                run.stage(module, setting, [], None, make)
                os._exit(0)
            return child

        run.stage(module, -1, [], None, make)  # reads the code once for all forks
        times = []
        for setting in range(10):
            started = time.perf_counter()
            os.waitpid(attempt(setting), 0)
            times.append(time.perf_counter() - started)
        whole = min(times)
        rng = random.Random(0)
        found: Counter[str] = Counter()
        while found["killed"] < count:
            setting += read_record(stage)[0].get("settings") == setting
            child = attempt(setting)
            time.sleep(rng.uniform(0, 1.2 * whole))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) or status == 0, "the process failed by itself"
            found[state_of(stage)] += 1
            found["killed" if os.WIFSIGNALED(status) else "had ended"] += 1
            found["unfinished beside it"] += stage.with_name(".toy.unfinished").exists()
            found["old one still aside"] += stage.with_name(".toy.outdated").exists()
        run.stage(module, -1, [], None, make)
        assert state_of(stage) == "whole" and [path.name for path in run.stages.iterdir()] == ["toy"]
        assert (stage / RECORD).is_file()
        print(f"{count:,} kills on {setting:,} stages, of which one takes {whole:.3f} s")
        print(", ".join(f"{name} {times:,}" for name, times in sorted(found.items())) + ", broken 0")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
