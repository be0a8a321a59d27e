"""Stages: made once, found again, taken up where interrupted, and never wrongly reused; records of figures."""

import json
import random
import re
import time
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from modulefinder import ModuleFinder
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from drawn import files_below, grow_catalog, make_catalog
from launched import processes

from capture_lib import profiles, utils, world
from capture_lib.catalog.table import read_catalog, write_catalog
from capture_lib.experiments import comparison, evaluation
from capture_lib.experiments import run as runs
from capture_lib.experiments.run import Run
from capture_lib.profiles import Profile
from capture_lib.proposals import composites, detector
from capture_lib.training import pretrain
from capture_lib.utils import InputError


@dataclass(frozen=True)
class Settings:
    """The settings of a stage that only exists here."""

    size: int = 3
    shape: tuple[int, ...] = (1, 2)


@dataclass
class Maker:
    """Makes a stage, counts the calls, and may be told to stop half way."""

    calls: int = 0
    stop: bool = False
    before: list = None

    def stage(self, run: Run, module: ModuleType, settings: object = Settings(), upstream: tuple = (),
              columns: tuple = ("sample_id", "image")) -> Path:
        def make(folder: Path) -> None:
            self.calls += 1
            self.before = sorted(path.name for path in folder.iterdir() if path.suffix == ".txt")
            (folder / "half.txt").write_text("half")
            if self.stop:
                raise KeyboardInterrupt
            (folder / "whole.txt").write_text(f"{random.random()} {np.random.random()} {torch.rand(1).item()}")

        return run.stage(module, settings, list(upstream), run.catalog.table[list(columns)], make)


def module_of(folder: Path, code: str, name: str = "package.toy") -> ModuleType:
    """A module whose code is this text."""
    module = ModuleType(name)
    module.__file__ = str(folder / f"{name}.py")
    Path(module.__file__).write_text(code)
    runs.plain_code.cache_clear()
    return module


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Profile("tiny", None), make_catalog(tmp_path / "catalog", 2, 1, 1, 1), tmp_path / "report", seed=0)


# ---- made once, or anew


def test_a_stage_is_made_once_and_found_again(run: Run, tmp_path: Path):
    maker, module = Maker(), module_of(tmp_path, "x = 1")
    folder = maker.stage(run, module)
    before = files_below(folder)
    assert folder == run.catalog.folder / "stages" / "tiny-seed0" / "toy"
    assert maker.stage(run, module) == folder and maker.calls == 1
    assert files_below(folder) == before and sorted(before) == ["half.txt", "stage.json", "whole.txt"]
    assert not folder.with_name(".toy.unfinished").exists()


@pytest.mark.parametrize(("change", "message"), [
    ("settings", "settings.size (3 → 4)"), ("code", "code"), ("upstream", "upstream.up"), ("catalog", "catalog"),
    ("record", "its record"), ("file", "its record")])
def test_a_changed_input_makes_a_stage_anew_and_is_named(run: Run, tmp_path: Path, capsys, change: str, message: str):
    maker, module, settings, upstream = Maker(), module_of(tmp_path, "x = 1"), Settings(), tmp_path / "up"
    upstream.mkdir()
    (upstream / "stage.json").write_text('{"seed": 6}')
    folder = maker.stage(run, module, settings, (upstream,))
    if change == "settings":
        settings = Settings(size=4)
    elif change == "code":
        module = module_of(tmp_path, "x = 2", "other.toy")
    elif change == "upstream":
        (upstream / "stage.json").write_text('{"seed": 7}')
    elif change == "file":  # one that the stage had is gone
        (folder / "whole.txt").unlink()
    elif change == "record":  # cut, as by a disk that was full
        (folder / "stage.json").write_text((folder / "stage.json").read_text()[:40])
    else:
        photo = run.catalog.photos["train-1"]
        photo.write_bytes(photo.read_bytes() + b"\0")
        run = replace(run, catalog=read_catalog(run.catalog.folder))
    maker.stage(run, module, settings, (upstream,))
    assert maker.calls == 2 and maker.before == []  # it starts from nothing
    assert f"toy: made anew, because {message} changed\n" in capsys.readouterr().out


def test_only_what_a_stage_reads_of_the_catalog_counts(run: Run, tmp_path: Path):
    maker, module, table = Maker(), module_of(tmp_path, ""), run.catalog.table.copy()
    maker.stage(run, module)
    table.loc[1, "caption"] = "other words"
    write_catalog(table, run.catalog.folder)
    run = replace(run, catalog=read_catalog(run.catalog.folder))
    maker.stage(run, module)
    assert maker.calls == 1
    maker.stage(replace(run, catalog=grow_catalog(run.catalog, {"val": range(5, 7)})), module)
    assert maker.calls == 2


def test_another_seed_is_another_folder(run: Run, tmp_path: Path):
    module = module_of(tmp_path, "")
    one, other = Maker().stage(run, module), Maker().stage(replace(run, seed=1), module)
    assert one != other and (one / "whole.txt").read_text() != (other / "whole.txt").read_text()


def test_a_stage_is_seeded_whatever_ran_before(run: Run, tmp_path: Path):
    written = []
    for name in ("a", "b"):
        torch.rand(len(written) + 3), np.random.random(), random.random()
        folder = Maker().stage(run, module_of(tmp_path, "", f"package.{name}"))
        written.append((folder / "whole.txt").read_text())
    assert written[0] == written[1]


def test_an_interrupted_stage_goes_on_and_the_old_one_stays_until_then(run: Run, tmp_path: Path):
    maker, module = Maker(), module_of(tmp_path, "")
    before = files_below(maker.stage(run, module))
    maker.stop = True
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            maker.stage(run, module, Settings(size=9))
        assert files_below(run.stages / "toy") == before
    assert maker.before == ["half.txt"]
    maker.stop = False
    folder = maker.stage(run, module, Settings(size=9))
    assert maker.before == ["half.txt"] and files_below(folder) != before
    maker.stop = True
    with pytest.raises(KeyboardInterrupt):
        maker.stage(run, module, Settings(size=5))
    maker.stop = False
    maker.stage(run, module, Settings(size=6))
    assert maker.before == []  # what was interrupted had other settings


# ---- nothing of a user's goes, nothing half made stays


def test_a_folder_that_no_run_made_is_refused_before_any_work(run: Run, tmp_path: Path):
    maker, module = Maker(), module_of(tmp_path, "")
    for number, name in enumerate(("notes.md", "sub/notes.md", ".git")):
        folder = run.stages / f"mine{number}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(InputError, match=f"mine{number}: is to be made anew, but holds {name}, which no run made"):
            maker.stage(run, module_of(tmp_path, "", f"package.mine{number}"))
        assert list(files_below(folder)) == [name]
    (run.stages / "toy").write_text("a file of mine")
    with pytest.raises(InputError, match="holds toy, which no run made; move it away"):
        maker.stage(run, module)
    assert (run.stages / "toy").read_text() == "a file of mine" and maker.calls == 0


def test_a_users_file_in_a_stage_stops_its_replacement_alone(run: Run, tmp_path: Path):
    maker, module = Maker(), module_of(tmp_path, "")
    folder = maker.stage(run, module)
    (folder / "notes.md").write_text("mine")
    assert maker.stage(run, module) == folder and maker.calls == 1
    with pytest.raises(InputError, match="toy: is to be made anew, but holds notes.md, which no run made"):
        maker.stage(run, module, Settings(size=9))
    assert (folder / "notes.md").read_text() == "mine" and maker.calls == 1
    (folder / "notes.md").unlink()
    maker.stage(run, module, Settings(size=9))
    assert maker.calls == 2


def test_what_a_linked_stage_leads_to_stays(run: Run, tmp_path: Path):
    maker, module = Maker(), module_of(tmp_path, "")
    folder = maker.stage(run, module)
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    before = files_below(elsewhere)
    maker.stage(run, module, Settings(size=9))
    assert maker.calls == 2 and files_below(elsewhere) == before and not folder.is_symlink()


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_swap_that_was_killed_half_way_is_healed(run: Run, tmp_path: Path, monkeypatch, killed_at: int):
    """Before and after the old folder goes aside, before and after the new one comes in."""
    maker, module = Maker(), module_of(tmp_path, "")
    old = files_below(maker.stage(run, module))
    count = []

    def dying(real):
        def act(*arguments):
            count.append(1)
            if len(count) == killed_at:
                raise KeyboardInterrupt
            return real(*arguments)
        return act

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", dying(Path.rename))
        patched.setattr(utils, "remove", lambda path, remove=utils.remove: (
            dying(remove)(path) if path.name.endswith("outdated") else remove(path)))
        maker.stage(run, module, Settings(size=9))
    assert killed_at == 3 or (run.stages / "toy" / "stage.json").is_file()  # in between, neither is there
    folder = maker.stage(run, module, Settings(size=9))
    assert maker.calls == 2  # what was whole is taken, not made again
    assert files_below(folder).keys() == old.keys() and files_below(folder) != old
    maker.stage(run, module, Settings(size=7))
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


def test_what_a_killed_process_was_writing_is_no_part_of_the_stage(run: Run, tmp_path: Path):
    maker, module = Maker(stop=True), module_of(tmp_path, "")
    with pytest.raises(KeyboardInterrupt):
        maker.stage(run, module)
    part = run.stages / ".toy.unfinished" / ".capture-x1"
    part.mkdir()
    (part / "model.safetensors").write_text("half")
    (part.parent / ".tmp0nr3ae").write_text("half")  # as safetensors names it
    maker.stop = False
    assert sorted(files_below(maker.stage(run, module))) == ["half.txt", "stage.json", "whole.txt"]


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device"), OSError("1000000 requested and 65504 written"),
    RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)")])
def test_a_full_disk_is_named_and_the_stage_goes_on_later(run: Run, tmp_path: Path, error: Exception):
    module, calls = module_of(tmp_path, ""), []

    def make(folder: Path) -> None:
        calls.append((folder / "half.txt").is_file())
        (folder / "half.txt").write_text("half")
        if len(calls) == 1:
            raise error

    with pytest.raises(OSError) as failure:
        run.stage(module, Settings(), [], None, make)
    line, code = utils.explain(failure.value)
    assert line.startswith(f"{run.stages / '.toy.unfinished'}: ") and "disk full" in line or "No space left" in line
    assert code == 2 and not (run.stages / "toy").exists()
    assert run.stage(module, Settings(), [], None, make).is_dir() and calls == [False, True]


# ---- two at once


def wait_for_words(said: Path) -> None:
    """Return when a second process has said that it waits."""
    limit = time.monotonic() + 300
    while "waiting for" not in (said.read_text() if said.exists() else ""):
        assert time.monotonic() < limit
        time.sleep(0.01)


def stage_slowly(folder: Path, code: Path, begun: object, endless: bool) -> None:
    """Make a stage in a process of its own, which says when it began; an endless one must be killed."""
    run = Run(Profile("tiny", None), read_catalog(folder), folder / "report", seed=0)

    def make(folder: Path) -> None:
        begun.set()
        with (folder / "calls.txt").open("a") as file:
            file.write("x")
        wait_for_words(code / "said")
        while endless:
            time.sleep(1)

    with (code / "said").open("a") as file, redirect_stderr(file):
        run.stage(module_of(code, ""), Settings(), [], None, make)


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_says_for_what_and_finds_the_stage(run: Run, tmp_path: Path, killed: bool):
    begun, second = processes().Event(), processes().Event()
    both = [processes().Process(target=stage_slowly, args=(run.catalog.folder, tmp_path, event, endless))
            for event, endless in ((begun, killed), (second, False))]
    both[0].start()
    assert begun.wait(60)
    both[1].start()
    if killed:
        wait_for_words(tmp_path / "said")
        both[0].kill()
    for process in both:
        process.join(60)
    assert both[1].exitcode == 0 and second.is_set() == killed
    assert (run.stages / "toy" / "calls.txt").read_text() == "xx"[:1 + killed]
    assert (tmp_path / "said").read_text() == f"waiting for another process that makes {run.stages / 'toy'} …\n"


# ---- the code that a stage rests on


def test_comments_and_layout_are_no_code(tmp_path: Path):
    codes = ("def f():\n    return [1, 2]\n", "def f():\n    return [1, 3]\n",
             "# how\ndef f():\n    return [1,\n        2]  # so\n")
    digests = [runs.code_digest(module_of(tmp_path, code)) for code in codes]
    assert digests[0] == digests[2] != digests[1]


def test_code_and_data_count_wherever_they_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function imports a module, which imports a room, whose data file is changed; and so on back."""
    room = tmp_path / "capture_lib" / "room"
    room.mkdir(parents=True)
    files = {"capture_lib/__init__.py": "", "capture_lib/room/__init__.py": "import json\n",
             "capture_lib/helper.py": "from capture_lib import room\nx = 1\n", "capture_lib/room/words.json": "[1]",
             "capture_lib/room/deep.py": "y = 1\n", "capture_lib/other.py": "z = 1\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    code = "def f():\n    from capture_lib.helper import x\n    import capture_lib.room.deep as deep\n"

    def digest() -> str:
        return runs.code_digest(module_of(tmp_path, code))

    before = digest()
    for name in files:
        if name.endswith("__init__.py"):
            continue
        (tmp_path / name).write_text("[2]" if name.endswith(".json") else f"{files[name]}more = 2\n")
        assert (digest() == before) == name.endswith("other.py"), name
        (tmp_path / name).write_text(files[name])
    assert digest() == before


def test_the_files_that_make_a_stage_are_its_code(run: Run):
    """Its own, and those of the modules that it names; what numpy does is not ours."""
    def make(folder: Path) -> None:
        np.zeros(3)
        evaluation.pairs_of(run, None)

    assert set(runs.files_named(make)) == {Path(__file__), Path(evaluation.__file__)}


def test_stages_rest_on_what_they_import():
    def rests_on(module: ModuleType) -> set[str]:
        finder = ModuleFinder(path=[str(utils.ROOT)])
        finder.run_script(module.__file__)
        return set(finder.modules)

    assert "capture_lib.proposals.foregrounds" in rests_on(composites)
    assert not {name for name in rests_on(detector) if "retrieval" in name or "composites" in name}
    assert {"capture_lib.model.losses", "capture_lib.training.batches"} <= rests_on(pretrain)
    assert {"capture_lib.world.captions", "capture_lib.retrieval.ranking"} <= rests_on(comparison)
    assert "capture_lib.world.drawing" in rests_on(world)


# ---- opening, records


def test_catalogs_of_one_name_have_reports_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(utils, "REPORTS", tmp_path / "reports")
    one, other = tmp_path / "a" / "shop", tmp_path / "b" / "shop"
    assert runs.default_report("cpu", one) == runs.default_report("cpu", other) == tmp_path / "reports" / "cpu-shop"
    runs.claim_folder(runs.default_report("cpu", one), one)
    assert runs.default_report("cpu", one).name == "cpu-shop"
    assert re.fullmatch("cpu-shop-[0-9a-f]{6}", runs.default_report("cpu", other).name)
    runs.claim_folder(runs.default_report("cpu", other), other)
    assert runs.default_report("cpu", other) != runs.default_report("cpu", one)
    assert runs.default_report("cpu", str(one)) == runs.default_report("cpu", one)
    assert runs.default_report("cpu").name == "cpu"


def test_figures_go_into_a_folder_of_ours_alone(run: Run):
    run.out.mkdir()
    (run.out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that no run made"):
        run.record("05_retrieval")
    with pytest.raises(InputError, match="holds files that no run made"):
        run.folder("rankings")
    assert [path.name for path in run.out.iterdir()] == ["mine.txt"]
    (run.out / "mine.txt").unlink()
    run.folder("rankings").mkdir()
    run.record("05_retrieval")
    assert (run.out / runs.MARK).read_text() == f"{run.catalog.folder}\n"


def test_a_run_needs_a_profile_and_a_catalog_that_exist(tmp_path: Path):
    for arguments, expected in [(("huge",), "profile 'huge' is unknown; use one of smoke, cpu, thorough, full, gpu"),
                                (("product1m",), "name a catalog with --catalog DIR"),
                                (("smoke", str(tmp_path)), "no catalog.parquet here")]:
        with pytest.raises(InputError) as error:
            runs.open_run(*arguments)
        assert expected in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_run_on_a_catalog_of_your_own_is_named_after_both(run: Run, tmp_path: Path):
    assert runs.open_run("", str(run.catalog.folder)).profile.name == "smoke"  # cpu was not run here
    (run.catalog.folder / "stages" / "cpu-seed0" / "pretrain").mkdir(parents=True)
    assert runs.open_run("", str(run.catalog.folder)).profile.name == "cpu"
    assert runs.open_run("", str(run.catalog.folder), seed=1).profile.name == "smoke"
    opened = runs.open_run("smoke", str(run.catalog.folder), seed=4)
    assert opened.out == utils.REPORTS / "smoke-catalog" and opened.seed == 4
    assert opened.stages == run.catalog.folder / "stages" / "smoke-seed4"
    assert runs.open_run("smoke", str(run.catalog.folder), str(tmp_path / "here")).out == tmp_path / "here"


def test_a_record_holds_its_figures_and_where_they_come_from(run: Run):
    bert = replace(run.profile.pretrain, bert="/home/someone/bert")
    run = replace(run, profile=replace(run.profile, pretrain=bert))
    written = json.loads(run.record("05_retrieval", methods={"a": 0.5}).read_text())
    origin = written["provenance"]
    assert written["methods"] == {"a": 0.5}
    assert (origin["stem"], origin["profile"], origin["seed"]) == ("05_retrieval", "tiny", 0)
    assert origin["catalog_fingerprint"] == run.catalog.fingerprint()
    assert origin["parameters"]["detector"]["steps"] == run.profile.detector.steps
    assert origin["parameters"]["pretrain"]["bert"] == "bert"  # which file, not where it lay
    assert torch.__version__.startswith(origin["versions"]["torch"])
    assert origin["wall_time_s"] >= 0 and origin["hardware"]["cores"] >= 1 and origin["commit"]


@pytest.mark.parametrize("kind", ["encoder", "proposals", "embedder"])
def test_a_wrong_part_is_refused_before_anything_is_made_and_a_record_tells_its_name_alone(tmp_path: Path, kind: str):
    catalog = make_catalog(tmp_path / "catalog", 2, 1, 1, 1)
    (tmp_path / "models" / "empty").mkdir(parents=True)
    profile = f"smoke|{kind}={tmp_path / 'models' / 'empty'}"
    with pytest.raises(InputError, match="models/empty") as error:
        runs.open_run(profile, str(catalog.folder))
    assert len(str(error.value).splitlines()) == 1 and not (catalog.folder / "stages").exists()
    made = Run(profiles.get(profile), catalog, tmp_path / "report", 0)
    made.stages.mkdir(parents=True)  # it was opened before: not once more
    assert runs.open_run(profile, str(catalog.folder)).stages == made.stages
    written = made.record("05_retrieval").read_text()
    assert f'"{kind}=empty"' in written and str(tmp_path / "models") not in written


def test_a_figure_that_is_not_a_number_is_refused_and_the_old_file_stays(run: Run):
    file = run.record("x", figure=0.25)
    with pytest.raises(ValueError):
        run.record("x", figure=float("nan"))
    assert json.loads(file.read_text())["figure"] == 0.25
    assert [path.name for path in file.parent.iterdir()] == ["x.json"]


def test_a_large_run_says_what_it_takes_of_the_disk_until_its_world_is_drawn(tmp_path: Path, capsys):
    folder = tmp_path / "data" / "world-full"
    runs.tell_disk(profiles.get("full"), folder)
    assert re.search(r"profile full .* about 5\.\d GB of disk, of which [\d.]+ GB are free\n$", capsys.readouterr().out)
    runs.tell_disk(profiles.get("smoke"), folder)
    folder.mkdir(parents=True)
    (folder / "catalog.parquet").touch()
    runs.tell_disk(profiles.get("full"), folder)
    assert capsys.readouterr().out == ""


def test_every_profile_is_complete():
    for name, profile in profiles.PROFILES.items():
        assert profiles.get(name) == profile and profile.name == name
        longest = profile.batches.text_length + 1 + profile.regions.max_regions
        assert longest <= profile.capture.max_positions
