"""A training that is stopped in every way there is: it goes on where it was kept, and ends with the same bytes."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import TOY, TOY_BATCHES, files_below, refused, sixteen_pairs
from launched import processes

from capture_lib.training import pretrain, state
from capture_lib.training.batches import Pairs
from capture_lib.training.pretrain import PretrainSettings

SETTINGS = PretrainSettings(epochs=3, batch=6, learning_rate=3e-3, keep_every=2)  # 9 steps


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return sixteen_pairs(tmp_path_factory.mktemp("tokenizer"))


def run(pairs: Pairs, folder: Path, **changes: object) -> None:
    """A training in a process whose random numbers say nothing."""
    folder.mkdir(exist_ok=True)
    torch.seed()
    model = pretrain.build_model(TOY, pairs, 0)
    pretrain.train(model, pairs, TOY_BATCHES, replace(SETTINGS, **changes), folder, 0)


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run(pairs, folder)
    return files_below(folder)


def after(steps: int, act, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has `act` called in place of the step that follows `steps` others; returns a list that grows with each step."""
    taken, real = [], pretrain.step

    def step(*arguments):
        if len(taken) == steps:
            return act(real(*arguments))
        taken.append(1)
        return real(*arguments)

    monkeypatch.setattr(pretrain, "step", step)
    return taken


def interrupt(losses: dict) -> None:
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 8])
def test_an_interrupted_run_goes_on_from_its_last_state_and_ends_with_the_same_bytes(pairs, whole, tmp_path,
                                                                                     monkeypatch, steps):
    kept = [f"state-{n:08d}.pt" for n in range(2, steps + 1, 2)][-2:]
    told = f"interrupted at step {steps} of 9; the next start goes on .*{kept[-1] if kept else 'no state'}"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt, match=told):
        after(steps, interrupt, patched)
        run(pairs, tmp_path)
    assert list(files_below(tmp_path)) == kept
    taken = after(9, interrupt, monkeypatch)
    run(pairs, tmp_path)
    assert len(taken) == 9 - steps // 2 * 2
    assert files_below(tmp_path) == whole


def test_how_often_the_state_is_kept_changes_no_bit(pairs, whole, tmp_path):
    run(pairs, tmp_path / "often", keep_every=1)
    run(pairs, tmp_path / "never", keep_every=100)
    assert files_below(tmp_path / "often") == files_below(tmp_path / "never") == whole


@pytest.fixture(scope="module")
def longer(pairs, tmp_path_factory) -> dict[str, bytes]:
    """The files of an undisturbed run of 75 steps."""
    folder = tmp_path_factory.mktemp("longer")
    run(pairs, folder, epochs=25)
    return files_below(folder)


def training(pairs: Pairs, folder: Path, begun: object, told: multiprocessing.Queue) -> None:
    """What a process runs that is stopped from outside."""
    begun.set()
    try:
        run(pairs, folder, epochs=25, keep_every=1)
    except KeyboardInterrupt as interrupt:
        told.put(str(interrupt))


def start(pairs: Pairs, folder: Path) -> tuple[multiprocessing.Process, multiprocessing.Queue]:
    """A process that trains, with what it says of an interruption; returns when it begins."""
    begun, told = processes().Event(), processes().Queue()
    process = processes().Process(target=training, args=(pairs, folder, begun, told))
    process.start()
    assert begun.wait(60)
    return process, told


def test_killed_twenty_times_at_any_moment_it_ends_with_the_same_bytes(pairs, longer, tmp_path):
    """kill -9, between steps, within one and within writing; started from a process that has imported all."""
    lots, kept, left = random.Random(0), set(), 20
    while left:
        before = state.last_kept(tmp_path)
        process, _ = start(pairs, tmp_path)
        while left % 2 and process.is_alive() and state.last_kept(tmp_path) == before:
            time.sleep(0.005)  # every other one gets on, however slow the machine; the rest die as they begin
        time.sleep(lots.uniform(0, 0.25))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            left -= 1
        process.join()
        if process.exitcode == 0:
            assert files_below(tmp_path) == longer
        kept.add(state.last_kept(tmp_path))
    run(pairs, tmp_path, epochs=25)
    assert files_below(tmp_path) == longer
    assert len(kept) > 5  # it was killed all along the way


def test_control_c_is_one_line_and_the_next_start_goes_on(pairs, longer, tmp_path):
    process, told = start(pairs, tmp_path)
    while process.is_alive() and not state.kept_states(tmp_path):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    said = told.get(timeout=60)
    process.join()
    assert said.startswith("pretraining: interrupted at step ") and "state-000000" in said and "\n" not in said
    run(pairs, tmp_path, epochs=25)
    assert files_below(tmp_path) == longer


def test_what_is_logged_for_tensorboard_are_the_losses_and_the_log_changes_no_bit(pairs, whole, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        after(5, interrupt, patched)
        run(pairs, tmp_path / "run", log=str(tmp_path / "log"))
    run(pairs, tmp_path / "run", log=str(tmp_path / "log"))  # goes on from step 4
    assert files_below(tmp_path / "run") == whole
    found = EventAccumulator(str(tmp_path / "log" / "pretraining")).Reload()
    assert set(found.Tags()["scalars"]) == {*pretrain.TASKS, "learning_rate"}
    history = json.loads(whole["history.json"])
    for task in pretrain.TASKS:
        assert [event.step for event in found.Scalars(task)] == list(range(1, 10))
        assert [event.value for event in found.Scalars(task)] == pytest.approx([step[task] for step in history])


def test_without_tensorboard_a_log_is_refused_in_one_line(pairs, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(lambda: run(pairs, tmp_path, log=str(tmp_path / "log")), "log needs TensorBoard", "pip install tensorboard")


# ------------------------------------------------------------------------------------------------ broken states


def stopped(pairs: Pairs, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int = 5) -> list[Path]:
    """The states of a run that was stopped after some steps."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        after(steps, interrupt, patched)
        run(pairs, folder)
    return state.kept_states(folder)


def with_zeros(content: bytes) -> bytes:
    return content[:4096] + bytes(512) + content[4608:]


@pytest.mark.parametrize("spoil", [lambda content: content[:len(content) // 2], lambda content: content[:-10],
                                   lambda content: b"", lambda content: bytes(len(content)), with_zeros,
                                   lambda content: b"something else", lambda content: b"PK\x05\x06" + bytes(18)])
def test_a_broken_state_is_skipped_with_a_line_that_names_it(pairs, whole, tmp_path, monkeypatch, capsys, spoil):
    older, last = stopped(pairs, tmp_path, monkeypatch)
    last.write_bytes(spoil(last.read_bytes()))
    taken = after(9, interrupt, monkeypatch)
    run(pairs, tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"warning: {last}: skipped" in said
    assert len(taken) == 9 - 2 and files_below(tmp_path) == whole


def test_without_a_whole_state_it_begins_anew(pairs, whole, tmp_path, monkeypatch, capsys):
    for file in stopped(pairs, tmp_path, monkeypatch):
        file.write_bytes(b"")
    taken = after(9, interrupt, monkeypatch)
    run(pairs, tmp_path)
    assert capsys.readouterr().err.count("warning:") == 2 and len(taken) == 9 and files_below(tmp_path) == whole


def test_states_that_were_skipped_do_not_push_out_new_ones(tmp_path):
    for step in (900, 1000):
        (tmp_path / f"state-{step:08d}.pt").write_bytes(b"broken")
    for step, names in ((100, [100]), (200, [100, 200]), (300, [200, 300])):
        state.keep(tmp_path, step, {"step": step})
        assert [file.name for file in state.kept_states(tmp_path)] == [f"state-{number:08d}.pt" for number in names]


class Mischief:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["MISCHIEF"],)


def other_weights(kept: dict) -> dict:
    return {**kept, "model": {name: value[..., :1] for name, value in kept["model"].items()}}


@pytest.mark.parametrize("foreign", [lambda kept: kept["model"], lambda kept: [1, 2], other_weights,
                                     lambda kept: {**kept, "name": "another"}, lambda kept: Mischief()])
def test_a_state_of_something_else_is_skipped_and_never_run(pairs, whole, tmp_path, monkeypatch, capsys, foreign):
    monkeypatch.setenv("MISCHIEF", str(tmp_path / "done"))
    older, last = stopped(pairs, tmp_path / "run", monkeypatch)
    torch.save(foreign(torch.load(last, weights_only=True)), last)
    run(pairs, tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"warning: {last}: skipped" in said
    assert files_below(tmp_path / "run") == whole and not (tmp_path / "done").exists()


def test_a_state_of_other_settings_is_not_taken_up(pairs, tmp_path, monkeypatch, capsys):
    stopped(pairs, tmp_path / "one", monkeypatch)
    run(pairs, tmp_path / "one", learning_rate=1e-3)
    run(pairs, tmp_path / "other", learning_rate=1e-3)
    assert "it is of another training" in capsys.readouterr().err
    assert files_below(tmp_path / "one") == files_below(tmp_path / "other")


# ------------------------------------------------------------------------------------------------ faults on the way


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow larger: writing then fails in the middle of it, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_one_line_and_the_last_state_stays(pairs, whole, tmp_path, monkeypatch):
    states = stopped(pairs, tmp_path, monkeypatch)
    with room_for(states[-1].stat().st_size // 2):
        refused(lambda: run(pairs, tmp_path), "the state after step 6 needs", "MB and cannot be written",
                "(File too large); make room and start again", states[-1].name)
    assert state.kept_states(tmp_path) == states and len(files_below(tmp_path)) == 2
    run(pairs, tmp_path)
    assert files_below(tmp_path) == whole


def test_a_disk_that_has_no_room_for_the_model_keeps_the_state(pairs, whole, tmp_path, monkeypatch):
    states = stopped(pairs, tmp_path, monkeypatch)
    with room_for(len(whole["model.safetensors"]) // 2):
        refused(lambda: run(pairs, tmp_path, keep_every=100), "the trained model cannot be written", "make room",
                states[-1].name)
    assert "model.safetensors" not in files_below(tmp_path)
    run(pairs, tmp_path)
    assert files_below(tmp_path) == whole


def test_a_disk_that_is_full_at_the_last_moment_leaves_no_half_a_file(pairs, tmp_path, monkeypatch):
    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    refused(lambda: run(pairs, tmp_path), "the state after step 2", "No space left on device", "no state was kept yet")
    assert files_below(tmp_path) == {}


def test_a_loss_that_is_not_finite_stops_and_the_last_state_is_kept(pairs, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(FloatingPointError) as error:
        after(5, lambda losses: losses | {"mrp": torch.tensor(float("nan"))}, patched)
        run(pairs, tmp_path)
    assert "the loss mrp is nan at step 6 of 9; lower learning_rate" in str(error.value)
    assert "state-00000004.pt" in str(error.value) and "\n" not in str(error.value)
    assert list(files_below(tmp_path)) == ["state-00000002.pt", "state-00000004.pt"]
    run(pairs, tmp_path)
    assert files_below(tmp_path) == whole


def test_weights_that_are_not_finite_are_not_kept(pairs, tmp_path, monkeypatch):
    real = pretrain.step

    def step(model, *rest):
        losses = real(model, *rest)
        if len(state.kept_states(tmp_path)) == 1:
            torch.nn.init.constant_(model.joint_positions.weight, float("inf"))
        return losses

    monkeypatch.setattr(pretrain, "step", step)
    with pytest.raises(FloatingPointError):
        run(pairs, tmp_path, keep_every=1)
    assert list(files_below(tmp_path)) == ["state-00000001.pt"]


def test_a_feature_that_is_not_finite_is_told_at_the_first_step(pairs, tmp_path):
    broken = replace(pairs, store=replace(pairs.store, features=np.full_like(pairs.store.features, np.nan)))
    with pytest.raises(FloatingPointError, match=r"the loss \w+ is nan at step 1 of 9; lower learning_rate"):
        run(broken, tmp_path)
    assert files_below(tmp_path) == {}
