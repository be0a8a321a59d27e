"""Stages that are made once and never wrongly reused, files that appear whole, and the whole line on drawn photos."""

import json
import random
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from drawn import files_below, make_catalog

from capture_lib import paths, profiles, runs, stages
from capture_lib.batches import BatchSettings
from capture_lib.detector import DetectorSettings
from capture_lib.encoder import EncoderSettings
from capture_lib.faults import InputError
from capture_lib.model import CaptureSettings
from capture_lib.pretrain import PretrainSettings
from capture_lib.profiles import Profile
from capture_lib.regions import RegionSettings
from capture_lib.runs import Run
from capture_lib.synthesis import SynthesisSettings

TINY = Profile(
    "tiny", None, SynthesisSettings(photos=24, foreground_size=48, composites=40, size=48, most_products=3, workers=1),
    DetectorSettings(backbone="test_resnet", size=48, channels=16, anchors=(12, 24, 36), steps=6, batch=4),
    EncoderSettings(backbone="test_resnet", crop=16, channels=4, steps=4, batch=6),
    RegionSettings(most=3, photo_size=48, batch=16, workers=0), BatchSettings(text_length=12),
    CaptureSettings(text_length=12, max_positions=32, width=16, text_layers=1, text_heads=2, text_ffn=32,
                    visual_layers=1, visual_heads=2, visual_ffn=32, cross_layers=1, cross_heads=2, cross_width=16,
                    joint_layers=1, joint_heads=2, output=16),
    PretrainSettings(epochs=2, batch=16))


@dataclass(frozen=True)
class Settings:
    """The settings of a stage that only exists here."""

    size: int = 3
    sides: tuple[int, ...] = (1, 2)


def module_of(folder: Path, code: str, name: str = "package.toy") -> ModuleType:
    """A module whose code is this text."""
    module = ModuleType(name)
    module.__file__ = str(folder / f"{name}.py")
    Path(module.__file__).write_text(code)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(TINY, make_catalog(tmp_path / "catalog", 2, 1, 1, 1), tmp_path / "report", seed=0)


class Maker:
    """A `make` that counts its calls, writes a random number, and may be told to stop half way."""

    def __init__(self) -> None:
        self.calls, self.stop, self.found = 0, False, []

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        self.found.append(sorted(files_below(folder)))
        (folder / "half.txt").write_text("half")
        if self.stop:
            raise KeyboardInterrupt
        (folder / "whole.txt").write_text(f"{random.random()} {np.random.random()} {torch.rand(1).item()}")


# ------------------------------------------------------------------------------------------------- stages


def test_a_stage_is_made_once_and_found_again(run, tmp_path):
    make, module = Maker(), module_of(tmp_path, "x = 1")
    first = run.stage([module], Settings(), [], make)
    before = files_below(first)
    assert first == run.catalog.folder / "stages" / "tiny-seed0" / "toy"
    assert run.stage([module], Settings(), [], make) == first and make.calls == 1
    assert files_below(first) == before and sorted(before) == ["half.txt", "stage.json", "whole.txt"]
    assert not first.with_name(".toy.unfinished").exists()


@pytest.mark.parametrize("what", ["settings", "catalog", "code", "upstream"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_stage_whose_inputs_changed_is_never_reused(run, tmp_path, capsys, what, finished):
    make, module, settings, upstream = Maker(), module_of(tmp_path, "x = 1"), Settings(), tmp_path / "up"
    upstream.mkdir()
    (upstream / "stage.json").write_text('{"seed": 6}')
    make.stop = not finished
    with nullcontext() if finished else pytest.raises(KeyboardInterrupt):
        run.stage([module], settings, [upstream], make)
    if what == "settings":
        settings = Settings(size=4)
    elif what == "code":
        module = module_of(tmp_path, "x = 2", "other.toy")
    elif what == "upstream":
        (upstream / "stage.json").write_text('{"seed": 7}')
    else:
        photo = run.catalog.photos["train-1"]
        photo.write_bytes(photo.read_bytes() + b"\0")
    make.stop = False
    fresh = Run(run.profile, runs.read_catalog(run.catalog.folder), run.out, run.seed)
    folder = fresh.stage([module], settings, [upstream], make)
    assert make.found == [["stage.json"], ["stage.json"]] and (folder / "whole.txt").is_file()  # it starts from nothing
    if finished:
        assert f"toy: made anew, because {what} changed" in capsys.readouterr().out


def test_another_seed_is_another_folder(run, tmp_path):
    module, make = module_of(tmp_path, ""), Maker()
    one, other = (replace(run, seed=seed).stage([module], Settings(), [], make) for seed in (0, 1))
    assert one != other and (one / "whole.txt").read_text() != (other / "whole.txt").read_text()


def test_an_interrupted_stage_finds_its_unfinished_folder_and_leaves_no_finished_one(run, tmp_path):
    make, module = Maker(), module_of(tmp_path, "")
    make.stop = True
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.stage([module], Settings(), [], make)
        assert not (run.stages / "toy").exists()
    make.stop = False
    run.stage([module], Settings(), [], make)
    assert make.found == [["stage.json"], ["half.txt", "stage.json"], ["half.txt", "stage.json"]]


def test_the_old_stage_stays_until_the_new_one_is_whole(run, tmp_path):
    make, module = Maker(), module_of(tmp_path, "")
    before = files_below(run.stage([module], Settings(), [], make))
    make.stop = True
    with pytest.raises(KeyboardInterrupt):
        run.stage([module], Settings(size=9), [], make)
    assert files_below(run.stages / "toy") == before
    assert run.stage([module], Settings(), [], make) == run.stages / "toy" and make.calls == 2


def test_a_stage_is_seeded_whatever_ran_before(run, tmp_path):
    written = []
    for name in ("a", "b"):
        torch.rand(len(written) + 3), np.random.random(), random.random()
        folder = run.stage([module_of(tmp_path, "", f"package.{name}")], Settings(), [], Maker())
        written.append((folder / "whole.txt").read_text())
    assert written[0] == written[1]


def test_comments_and_layout_are_no_code(tmp_path):
    digests = [runs.code_digest(module_of(tmp_path, code)) for code in (
        "x = [1, 2]\n", "# why\nx = [1,\n     2]  # so\n", "x = [1, 3]\n")]
    assert digests[0] == digests[1] != digests[2]


def test_differences_name_what_changed(tmp_path):
    file = tmp_path / "stage.json"
    assert runs.differences(file, {"a": 1}) == ["nothing stored"]
    file.write_text('{"a": 1, "b": [1, 2]}')
    assert runs.differences(file, {"a": 1, "b": [1, 2]}) is None
    assert runs.differences(file, {"a": 2, "b": [1, 2], "c": 0}) == ["a", "c"]


# ------------------------------------------------------------------------------------------- opening, records


def test_a_run_needs_a_profile_and_a_catalog_that_exist(tmp_path):
    for arguments, expected in [(("huge",), "profile 'huge' is unknown; use one of smoke, cpu, gpu, product1m"),
                                (("product1m",), "name a catalog with --catalog DIR"),
                                (("smoke", str(tmp_path)), "no catalog.parquet here")]:
        with pytest.raises(InputError) as error:
            runs.open_run(*arguments)
        assert expected in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_run_on_a_catalog_of_your_own_is_named_after_both(run, tmp_path):
    opened = runs.open_run("smoke", str(run.catalog.folder), seed=4)
    assert opened.out == paths.REPORTS / "smoke-catalog" and opened.seed == 4
    assert opened.stages == run.catalog.folder / "stages" / "smoke-seed4"
    assert runs.open_run("smoke", str(run.catalog.folder), str(tmp_path / "here")).out == tmp_path / "here"


def test_a_record_holds_its_figures_and_where_they_come_from(run):
    written = json.loads(run.record("05_retrieval", methods={"a": 0.5}).read_text())
    assert run.out / "metrics" / "05_retrieval.json" and written["methods"] == {"a": 0.5}
    origin = written["provenance"]
    assert (origin["stem"], origin["profile"], origin["seed"]) == ("05_retrieval", "tiny", 0)
    assert origin["catalog_fingerprint"] == run.catalog.fingerprint()
    assert origin["parameters"]["detector"]["steps"] == 6
    assert torch.__version__.startswith(origin["versions"]["torch"])
    assert origin["wall_time_s"] >= 0 and origin["hardware"]["cores"] >= 1 and origin["commit"]


def test_a_figure_that_is_not_a_number_is_refused_and_the_old_file_stays(run):
    file = run.record("x", figure=0.25)
    with pytest.raises(ValueError):
        run.record("x", figure=float("nan"))
    assert json.loads(file.read_text())["figure"] == 0.25
    assert [path.name for path in file.parent.iterdir()] == ["x.json"]


def test_every_profile_is_complete():
    for name, profile in profiles.PROFILES.items():
        assert profiles.get(name) is profile and profile.name == name
        longest = profile.batches.text_length + 1 + profile.regions.most
        assert longest <= profile.capture.max_positions and profile.capture.text_length == profile.batches.text_length


# ------------------------------------------------------------------------------------------------ files


def test_a_file_and_a_folder_appear_whole_or_not_at_all(tmp_path):
    for name in ("deep/file.txt", "folder"):
        target = tmp_path / name
        for content in ("first", "second"):
            with paths.write_atomically(target) as beside:
                assert beside.parent == target.parent and not beside.exists()
                if name == "folder":
                    beside.mkdir()
                (beside / "in.txt" if name == "folder" else beside).write_text(content)
                assert content == "second" or not target.exists()
        with pytest.raises(KeyboardInterrupt), paths.write_atomically(target) as beside:
            if name == "folder":
                beside.mkdir()
            (beside / "in.txt" if name == "folder" else beside).write_text("half")
            raise KeyboardInterrupt
    assert files_below(tmp_path) == {"deep/file.txt": b"second", "folder/in.txt": b"second"}


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / ".a.txt.part").mkdir()
    (tmp_path / ".a.txt.part" / "old").write_text("old")
    with paths.write_atomically(tmp_path / "a.txt") as beside:
        beside.write_text("new")
    assert files_below(tmp_path) == {"a.txt": b"new"}


# ------------------------------------------------------------------------------------------- the whole line


@pytest.fixture
def lender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small catalog in place of the rendered world that lends its foregrounds."""
    other = make_catalog(tmp_path / "lender", 24, 0, 0, 0)
    monkeypatch.setattr(stages, "lender", lambda: other)


def line(folder: Path, seed: int = 0, profile: Profile = TINY, **catalog) -> tuple[Run, dict, dict, dict]:
    """The line from photos to chosen readings on a drawn catalog."""
    found = runs.read_catalog(folder) if folder.exists() else make_catalog(folder, **catalog)
    run = Run(profile, found, folder / "report", seed)
    sides = stages.embedded(run)
    return run, sides, *stages.choices(run, sides)


def vectors(sides: dict) -> dict[str, np.ndarray]:
    """Every block of every side."""
    return {f"{name} {form} {block}": array for name, side in sides.items()
            for form, blocks in (("image", side.image), ("instance", side.instance)) for block, array in blocks.items()}


def test_the_whole_line_on_sixteen_photos_says_what_it_lacks(tmp_path, lender, capsys):
    make_catalog(tmp_path / "small").photos["test-1"].unlink()  # and one of them is not on disk
    run, sides, chosen, tried = line(tmp_path / "small")
    told = capsys.readouterr().out
    assert "8 usable foregrounds in 8 photos are too few; composites are made of the products of lender instead" in told
    assert {name: len(side.ids) for name, side in sides.items()} == {"val": 4, "test": 3, "gallery": 4}
    assert stages.pretrained(run).model is None  # 4 pairs cannot train it
    assert set(chosen) == set(tried) == {"image-only"} and len(tried["image-only"]) == 2
    assert json.loads((run.stages / "choices.json").read_text())["image-only"]["reading"] == "regions"
    report = json.loads((run.stages / "synthesis" / "report.json").read_text())
    assert (report["source"], report["tried"]) == ("lender", 24)


def test_the_whole_line_with_the_same_seed_gives_the_same_figures(tmp_path, capsys):
    sizes = {"train": 40, "gallery": 16, "val": 8, "test": 8}
    (run, one, chosen, tried), (_, other, *same) = (line(tmp_path / name, **sizes) for name in ("one", "other"))
    assert {"capture/instance", "capture/image", "image-only", "text-only", "late-fusion"} <= set(chosen)
    assert [chosen, tried] == same
    first, second = vectors(one), vectors(other)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    again = vectors(line(tmp_path / "one")[1])
    assert capsys.readouterr().out == ""  # everything was found, nothing made
    assert all(np.array_equal(first[name], again[name]) for name in first)
    different = vectors(line(tmp_path / "one", seed=1)[1])
    assert not np.array_equal(first["test instance region_pooled"], different["test instance region_pooled"])
    photo = run.catalog.photos["test-0"]
    photo.write_bytes(photo.read_bytes() + b"\0")  # one photo changes: no stored region may be used again
    line(tmp_path / "one")
    assert "regions: made anew, because catalog" in capsys.readouterr().out


def test_the_whole_line_without_captions_predicts_regions_alone(tmp_path):
    run, sides, chosen, _ = line(tmp_path / "mute", train=40, gallery=8, val=4, test=4, captions=False)
    trained = stages.pretrained(run)
    assert trained.tasks == ("mrp",) and trained.model is not None
    assert "words" not in sides["test"].image and "text-only" not in chosen and "capture/instance" in chosen
    assert all(np.isfinite(array).all() for array in vectors(sides).values())


def test_a_catalog_without_photos_is_named(tmp_path):
    made = make_catalog(tmp_path / "bare")
    for photo in made.photos.values():
        photo.unlink()
    with pytest.raises(InputError, match="none of its photos is on disk; run `capture download` first"):
        stages.embedded(Run(TINY, runs.read_catalog(tmp_path / "bare"), tmp_path, 0))
