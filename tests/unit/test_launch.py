"""The line in one process and in two: the same stages, where the notebooks look for them, made once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from drawn import TINY, files_below, make_catalog
from launched import launch

from capture_lib import profiles
from capture_lib.catalog.table import read_catalog
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.utils import InputError

PROFILE = replace(TINY, capture=replace(TINY.capture, dropout=0.0))
MADE = {"composites", "detector", "region_encoder", "region_store", "pretrain"}


def line(folder: Path, *options: str) -> int:
    """The command on a catalog; how many pretraining steps this process took."""
    profiles.PROFILES["tiny"] = PROFILE
    taken, real = [], stages.pretrain.step
    stages.pretrain.step = lambda *arguments: (taken.append(1), real(*arguments))[1]
    try:
        assert stages.main(["--profile", "tiny", "--catalog", str(folder), *options]) == 0
        return len(taken)
    finally:
        stages.pretrain.step = real
        del profiles.PROFILES["tiny"]


def made_in(folder: Path) -> dict[str, dict[str, bytes]]:
    return {path.name: files_below(path) for path in sorted((folder / "stages" / "tiny-seed0").iterdir())}


def test_two_processes_make_the_stages_of_one_and_find_them_again(tmp_path, capsys):
    alone, shared = (make_catalog(tmp_path / name / "shop", 40, 16, 4, 4).folder for name in ("alone", "shared"))
    assert line(alone) == 4 and launch(line, shared) == [4, 4]
    one, two = made_in(alone), made_in(shared)
    assert one.keys() == two.keys() == MADE
    for name in MADE - {"pretrain"}:
        assert two[name] == one[name], name
    assert two["pretrain"].keys() == one["pretrain"].keys()
    assert two["pretrain"]["vocab.txt"] == one["pretrain"]["vocab.txt"]
    first, other = (json.loads(made["pretrain"]["history.json"]) for made in (one, two))
    assert [step.keys() for step in first] == [step.keys() for step in other]
    assert sum(first[0].values()) == pytest.approx(sum(other[0].values()), rel=0.02)  # bfloat16, the same masks
    run = Run(PROFILE, read_catalog(shared), tmp_path, 0)
    capsys.readouterr()
    assert stages.pretrained(run).model is not None and capsys.readouterr().out == ""  # found, nothing made anew
    assert launch(line, shared) == [0, 0]


def test_the_line_may_end_early_goes_on_and_says_what_changed(tmp_path, capsys):
    make_catalog(tmp_path / "one", 40, 16, 4, 4)
    assert line(tmp_path / "one", "--until", "detector") == 0
    assert made_in(tmp_path / "one").keys() == {"composites", "detector"}
    assert line(tmp_path / "one") == 4
    assert made_in(tmp_path / "one").keys() == MADE
    assert line(tmp_path / "one") == 0
    run = Run(PROFILE, read_catalog(tmp_path / "one"), tmp_path, 0)
    capsys.readouterr()
    for change, message in (({"keep_every": 1}, ""), ({"epochs": 1, "learning_rate": 2e-3}, (
            "pretrain: made anew, because settings.pretrain.epochs (2 → 1), "
            "settings.pretrain.learning_rate (0.001 → 0.002) changed\n"))):
        changed = replace(PROFILE, pretrain=replace(PROFILE.pretrain, **change))
        stages.pretrained(replace(run, profile=changed))
        assert capsys.readouterr().out.splitlines(keepends=True)[:1] == [message] * bool(message)


@pytest.mark.parametrize(("error", "code", "said"), [
    (FloatingPointError("the loss mlm is nan"), 2, "the loss mlm is nan"),
    (InputError("no room"), 2, "no room"),
    (KeyboardInterrupt("interrupted at step 3"), 130, "interrupted at step 3"),
    (KeyboardInterrupt(), 130, "interrupted; what was done is kept; the same command goes on (`run` with --resume)"),
    (OSError(28, "No space left on device", "store"), 2, "store: No space left on device")])
def test_what_stops_it_is_one_line(tmp_path, monkeypatch, capsys, error, code, said):
    def stop(run: Run) -> None:
        raise error

    make_catalog(tmp_path / "one")
    monkeypatch.setitem(stages.UNTIL, "pretrain", stop)
    assert stages.main(["--profile", "smoke", "--catalog", str(tmp_path / "one")]) == code
    assert capsys.readouterr().err == f"capture_lib.experiments.stages: {said}\n"


def test_an_unknown_profile_is_one_line(capsys):
    assert stages.main(["--profile", "huge"]) == 2
    assert "profile 'huge' is unknown" in capsys.readouterr().err
