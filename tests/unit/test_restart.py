"""A training that is stopped in every way there is: it goes on from its last state, and ends with the same bytes."""

import multiprocessing
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import TOY, TOY_BATCHES, files_below, refused, sixteen_pairs
from launched import processes

from capture_lib.training import pretrain
from capture_lib.training.batches import Pairs
from capture_lib.training.pretrain import PretrainSettings

SETTINGS = PretrainSettings(epochs=4, batch=6, learning_rate=3e-3, keep_every=2)  # 16 pairs: 8 steps


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return sixteen_pairs(tmp_path_factory.mktemp("tokenizer"))


def run(pairs: Pairs, folder: Path, seed: int = 0, **changes: object) -> None:
    """A training in a process whose random numbers say nothing."""
    folder.mkdir(exist_ok=True)
    torch.seed()
    model = pretrain.build_model(TOY, pairs, seed)
    pretrain.train(model, pairs, TOY_BATCHES, replace(SETTINGS, **changes), folder, seed)


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run(pairs, folder)
    return files_below(folder)


def states_of(folder: Path) -> list[Path]:
    """The states that are there, oldest first."""
    return sorted(folder.glob("state-*"))


def after(steps: int, act, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have `act` called in place of the step that follows `steps` others; return a list that grows with each step."""
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


def stopped(pairs: Pairs, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int = 5, **changes: object
            ) -> list[Path]:
    """The states of a run that was stopped after some steps."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        after(steps, interrupt, patched)
        run(pairs, folder, **changes)
    return states_of(folder)


# ---- going on


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_interrupted_run_goes_on_from_its_last_state_and_ends_with_the_same_bytes(pairs, whole, tmp_path,
                                                                                     monkeypatch, steps):
    kept = stopped(pairs, tmp_path, monkeypatch, steps)
    assert [int(state.name[-8:]) for state in kept] == list(range(2, steps + 1, 2))[-2:]
    taken = after(8, interrupt, monkeypatch)
    run(pairs, tmp_path)
    assert len(taken) == 8 - steps // 2 * 2
    assert files_below(tmp_path) == whole


def test_how_often_the_state_is_kept_changes_no_bit(pairs, whole, tmp_path):
    run(pairs, tmp_path / "often", keep_every=1)
    run(pairs, tmp_path / "never", keep_every=100)
    assert files_below(tmp_path / "often") == files_below(tmp_path / "never") == whole


def training(pairs: Pairs, folder: Path, begun: object) -> None:
    """What a process runs that is killed from outside."""
    begun.set()
    run(pairs, folder, keep_every=1, epochs=12)


def test_killed_at_any_moment_it_ends_with_the_same_bytes(pairs, tmp_path):
    """kill -9, between steps, within one and within writing; started from a process that has imported all."""
    run(pairs, tmp_path / "whole", epochs=12)  # 24 steps
    lots, folder, kept = random.Random(0), tmp_path / "killed", set()
    folder.mkdir()
    for number in range(4):
        before = states_of(folder)
        begun = processes().Event()
        process: multiprocessing.Process = processes().Process(target=training, args=(pairs, folder, begun))
        process.start()
        assert begun.wait(60)
        while number % 2 and process.is_alive() and states_of(folder) == before:
            time.sleep(0.005)  # every other one gets on, however slow the machine; the rest die as they begin
        time.sleep(lots.uniform(0, 0.25))
        process.kill()
        process.join()
        kept.add(str(states_of(folder)))
    assert len(kept) > 1  # it was killed all along the way
    run(pairs, folder, epochs=12)
    assert files_below(folder) == files_below(tmp_path / "whole")


# ---- states that are of no use


def test_a_half_written_state_is_removed(pairs, whole, tmp_path, monkeypatch):
    last = stopped(pairs, tmp_path, monkeypatch)[-1]
    last.rename(tmp_path / ".state")
    taken = after(8, interrupt, monkeypatch)
    run(pairs, tmp_path)
    assert len(taken) == 8 - 2 and files_below(tmp_path) == whole


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "history.json"])
def test_a_state_that_was_cut_is_skipped_with_a_line_that_names_it(pairs, whole, tmp_path, monkeypatch, capsys, file):
    last = stopped(pairs, tmp_path, monkeypatch)[-1]
    content = (last / file).read_bytes()
    (last / file).write_bytes(content[:len(content) // 2])
    taken = after(8, interrupt, monkeypatch)
    run(pairs, tmp_path)
    assert capsys.readouterr().out.count(f"warning: {last}: removed, cannot be read") == 1
    assert len(taken) == 8 - 2 and files_below(tmp_path) == whole


def test_without_a_whole_state_the_next_start_begins_anew(pairs, whole, tmp_path, monkeypatch):
    for state in stopped(pairs, tmp_path, monkeypatch):
        (state / "optimizer.bin").write_bytes(b"")
    refused(lambda: run(pairs, tmp_path), str(tmp_path), "no state could be read", "start again")
    taken = after(8, interrupt, monkeypatch)
    run(pairs, tmp_path)
    assert len(taken) == 8 and files_below(tmp_path) == whole


class Mischief:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["MISCHIEF"],)


def test_a_state_is_read_and_never_run(pairs, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MISCHIEF", str(tmp_path / "done"))
    last = stopped(pairs, tmp_path / "run", monkeypatch)[-1]
    torch.save(Mischief(), last / "optimizer.bin")
    run(pairs, tmp_path / "run")
    assert f"warning: {last}: removed" in capsys.readouterr().out
    assert files_below(tmp_path / "run") == whole and not (tmp_path / "done").exists()


# ---- faults on the way


def test_a_loss_that_is_not_finite_stops_and_the_last_state_stays(pairs, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(FloatingPointError) as error:
        after(5, lambda losses: losses | {"mrp": torch.tensor(float("nan"))}, patched)
        run(pairs, tmp_path)
    assert "step 6 has a loss that is not finite" in str(error.value) and "mrp nan, contrastive" in str(error.value)
    run(pairs, tmp_path)
    assert files_below(tmp_path) == whole


def test_a_feature_that_is_not_finite_is_told_at_the_first_step(pairs, tmp_path):
    broken = replace(pairs, store=replace(pairs.store, features=np.full_like(pairs.store.features, np.nan)))
    with pytest.raises(FloatingPointError, match="step 1 has a loss that is not finite"):
        run(broken, tmp_path)
    assert files_below(tmp_path) == {}
