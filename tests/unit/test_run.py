"""Stages that are made once, kept when the catalog grows and never wrongly reused; files that appear whole."""

import json
import random
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from drawn import files_below, grow_catalog, make_catalog

from capture_lib import profiles
from capture_lib import utils as paths
from capture_lib.catalog.table import write_catalog
from capture_lib.experiments import run as runs
from capture_lib.experiments.run import Origin, Run
from capture_lib.profiles import Profile
from capture_lib.proposals import composites as synthesis
from capture_lib.proposals import detector
from capture_lib.proposals import region_encoder as encoder
from capture_lib.proposals import region_store as regions
from capture_lib.training import pretrain
from capture_lib.utils import InputError


@dataclass(frozen=True)
class Settings:
    """The settings of a stage that only exists here."""

    size: int = 3
    sides: tuple[int, ...] = (1, 2)


RECORD = ["rows.npy", "stage.json"]


def toy(run: Run, module: ModuleType, make: Callable, settings: object = Settings(), upstream: Sequence[Path] = (),
        extend: Callable | None = None) -> Path:
    """A stage that reads two columns of the catalog."""
    return run.stage(module, settings, list(upstream), run.catalog.table[["sample_id", "image"]], make, extend)


def module_of(folder: Path, code: str, name: str = "package.toy") -> ModuleType:
    """A module whose code is this text."""
    module = ModuleType(name)
    module.__file__ = str(folder / f"{name}.py")
    Path(module.__file__).write_text(code)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Profile("tiny", None), make_catalog(tmp_path / "catalog", 2, 1, 1, 1), tmp_path / "report", seed=0)


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
    first = toy(run, module, make)
    before = files_below(first)
    assert first == run.catalog.folder / "stages" / "tiny-seed0" / "toy"
    assert toy(run, module, make) == first and make.calls == 1
    assert files_below(first) == before and sorted(before) == ["half.txt", "rows.npy", "stage.json", "whole.txt"]
    assert not first.with_name(".toy.unfinished").exists()


@pytest.mark.parametrize("what", ["settings", "catalog", "code", "upstream"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_stage_whose_inputs_changed_is_never_reused(run, tmp_path, capsys, what, finished):
    make, module, settings, upstream = Maker(), module_of(tmp_path, "x = 1"), Settings(), tmp_path / "up"
    upstream.mkdir()
    (upstream / "stage.json").write_text('{"seed": 6}')
    make.stop = not finished
    with nullcontext() if finished else pytest.raises(KeyboardInterrupt):
        toy(run, module, make, settings, [upstream])
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
    folder = toy(fresh, module, make, settings, [upstream])
    assert make.found == [RECORD, RECORD] and (folder / "whole.txt").is_file()  # it starts from nothing
    if finished:
        assert f"toy: made anew, because {what} changed" in capsys.readouterr().out


def test_another_seed_is_another_folder(run, tmp_path):
    module, make = module_of(tmp_path, ""), Maker()
    one, other = (toy(replace(run, seed=seed), module, make) for seed in (0, 1))
    assert one != other and (one / "whole.txt").read_text() != (other / "whole.txt").read_text()


def test_an_interrupted_stage_finds_its_unfinished_folder_and_leaves_no_finished_one(run, tmp_path):
    make, module = Maker(), module_of(tmp_path, "")
    make.stop = True
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            toy(run, module, make)
        assert not (run.stages / "toy").exists()
    make.stop = False
    toy(run, module, make)
    assert make.found == [RECORD, ["half.txt", *RECORD], ["half.txt", *RECORD]]


def test_the_old_stage_stays_until_the_new_one_is_whole(run, tmp_path):
    make, module = Maker(), module_of(tmp_path, "")
    before = files_below(toy(run, module, make))
    make.stop = True
    with pytest.raises(KeyboardInterrupt):
        toy(run, module, make, Settings(size=9))
    assert files_below(run.stages / "toy") == before
    assert toy(run, module, make) == run.stages / "toy" and make.calls == 2


def test_a_stage_is_seeded_whatever_ran_before(run, tmp_path):
    written = []
    for name in ("a", "b"):
        torch.rand(len(written) + 3), np.random.random(), random.random()
        folder = toy(run, module_of(tmp_path, "", f"package.{name}"), Maker())
        written.append((folder / "whole.txt").read_text())
    assert written[0] == written[1]


def test_comments_and_layout_are_no_code(tmp_path):
    digests = [runs.code_digest(module_of(tmp_path, code)) for code in (
        "x = [1, 2]\n", "# why\nx = [1,\n     2]  # so\n", "x = [1, 3]\n")]
    assert digests[0] == digests[1] != digests[2]


def test_what_a_stage_rests_on_is_its_own_code_and_that_of_the_modules_it_imports():
    helpers = {
        synthesis: {"foregrounds", "photos"}, detector: set(), encoder: {"detector", "losses", "ranks"},
        regions: {"detector", "photos", "ranks"},
        pretrain: {"batches", "bert", "beyond", "checkpoint", "detector", "losses", "model", "photos", "ranks",
                   "regions", "released"}}
    for module, expected in helpers.items():
        assert set(runs.code_of(Path(module.__file__))) == expected | {""}
    for file in (paths.ROOT / "capture_lib").glob("*.py"):  # the one form of import that is looked for
        assert not re.search(r"^(import capture_lib|from \.)", file.read_text(), re.MULTILINE), file


def test_the_code_of_an_imported_module_counts(tmp_path, monkeypatch):
    helper = tmp_path / "helper.py"
    monkeypatch.setattr(runs, "find_spec", lambda name: SimpleNamespace(origin={"capture_lib.helper": helper}[name]))
    code = "from capture_lib import paths\nfrom capture_lib.helper import x\n"
    digests = []
    for text in ("x = 1  # one", "x = 1", "x = 2", "from capture_lib.helper import x\nx = 2"):
        helper.write_text(text)
        digests.append(runs.code_digest(module_of(tmp_path, code)))
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_differences_name_what_changed(tmp_path):
    def differences(rows: list[int], **inputs: object) -> list[str]:
        return Origin(inputs, np.array(rows, np.uint64)).differences(tmp_path)

    assert differences([4, 2], a=1) == ["nothing stored"]
    Origin({"a": 1, "b": [1, 2]}, np.array([4, 2], np.uint64)).write(tmp_path)
    assert differences([4, 2], a=1, b=[1, 2]) == []
    assert differences([4, 2], a=2, b=[1, 2], c=0) == ["a", "c"]
    assert differences([4, 2, 3], a=1) == differences([2, 4], a=1) == ["additions"]
    assert differences([4, 3], a=1) == differences([4], a=1) == differences([], a=1) == ["catalog"]
    assert differences([4, 2, 3], a=2) == ["a"]
    (tmp_path / "rows.npy").write_bytes((tmp_path / "rows.npy").read_bytes()[:-3])
    assert differences([4, 2], a=1, b=[1, 2]) == ["a damaged record"]


# ------------------------------------------------------------------------------------------- a growing catalog


@pytest.mark.parametrize("how", ["rows", "late photos"])
def test_a_stage_stays_when_its_catalog_grows_and_a_line_says_so(run, tmp_path, capsys, how):
    make, module = Maker(), module_of(tmp_path, "")
    late = run.catalog.photos["test-0"]
    if how == "late photos":
        hidden = late.rename(tmp_path / "hidden.png")
        run = replace(run, catalog=runs.read_catalog(run.catalog.folder))
    read = run.catalog.table[run.catalog.table["sample_id"].isin(run.catalog.photos)][["sample_id", "image"]]
    folder = run.stage(module, Settings(), [], read, make)
    before = files_below(folder)
    if how == "late photos":
        hidden.rename(late)
    else:
        grow_catalog(run.catalog, {"train": range(2, 5), "gallery": range(1, 2)})
    grown = replace(run, catalog=runs.read_catalog(run.catalog.folder))
    for _ in range(2):
        assert toy(grown, module, make) == folder
    assert make.calls == 1 and files_below(folder) == before
    added = "1 of the 5" if how == "late photos" else "4 of the 9"
    assert capsys.readouterr().out == (f"toy: made before {added} samples that it reads were added; "
                                       f"delete {folder} to make it anew, and what is made of it\n")


@pytest.mark.parametrize("what", ["caption", "image", "gone"])
def test_only_a_row_that_was_read_makes_a_stage_anew(run, tmp_path, capsys, what):
    make, module, table = Maker(), module_of(tmp_path, ""), run.catalog.table.copy()
    toy(run, module, make)
    if what == "gone":
        table = table.iloc[1:]
    else:
        table.loc[1, what] = "images/test-0.png"
    write_catalog(table, run.catalog.folder)
    grown = grow_catalog(runs.read_catalog(run.catalog.folder), {"val": range(5, 7)})
    toy(replace(run, catalog=grown), module, make)
    assert make.calls == (1 if what == "caption" else 2)
    said = capsys.readouterr().out
    assert ("made before 2 of the 7" if what == "caption" else "toy: made anew, because catalog changed") in said


def test_what_is_built_on_a_stage_that_was_made_anew_of_more_rows_is_made_anew(run, tmp_path, capsys):
    make, lower, upper = Maker(), module_of(tmp_path, "", "x.lower"), module_of(tmp_path, "", "x.upper")

    def both(run: Run) -> None:
        run.stage(upper, Settings(), [toy(run, lower, make)], None, make)

    both(run)
    grown = replace(run, catalog=grow_catalog(run.catalog, {"train": range(2, 4)}))
    both(grown)
    assert make.calls == 2
    paths.remove(run.stages / "lower")
    both(grown)
    assert make.calls == 4 and "upper: made anew, because upstream changed" in capsys.readouterr().out


def test_a_stage_that_can_is_extended_and_an_interrupted_extension_goes_on(run, tmp_path, capsys):
    def extend(folder: Path, old: Path, places: np.ndarray) -> None:
        calls.append((places.tolist(), (folder / "half.txt").exists(), (old / "whole.txt").is_file()))
        make(folder)

    make, module, calls = Maker(), module_of(tmp_path, ""), []
    folder = toy(run, module, make, extend=extend)
    above = run.origin(module, Settings(), [folder], None).inputs
    table = run.catalog.table.iloc[[1, 2, 0, 4]]  # one goes, the order is another, and one comes
    write_catalog(table, run.catalog.folder)
    changed = replace(run, catalog=grow_catalog(runs.read_catalog(run.catalog.folder), {"val": range(5, 6)}))
    make.stop = True
    with pytest.raises(KeyboardInterrupt):
        toy(changed, module, make, extend=extend)
    make.stop = False
    for _ in range(2):
        toy(changed, module, make, extend=extend)
    assert calls == [([1, 2, 0, 4, -1], False, True), ([1, 2, 0, 4, -1], True, True)]
    assert "toy: 4 of 5 rows are kept, the others made" in capsys.readouterr().out
    assert changed.origin(module, Settings(), [folder], None).inputs == above  # what is built on it asks its own rows
    toy(changed, module, make, Settings(size=4), extend=extend)
    assert len(calls) == 2  # other settings: nothing of the old one is of use


# ------------------------------------------------------------------------------------------- opening, records


def test_a_run_needs_a_profile_and_a_catalog_that_exist(tmp_path):
    for arguments, expected in [(("huge",), "profile 'huge' is unknown; use one of smoke, cpu, thorough, gpu"),
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
    assert origin["parameters"]["detector"]["steps"] == run.profile.detector.steps
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
        longest = profile.batches.text_length + 1 + profile.regions.max_regions
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
