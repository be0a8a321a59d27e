"""What a run makes before its notebooks: all tasks of a catalog, and those that some notebooks need."""

from dataclasses import replace
from pathlib import Path

import pytest
from drawn import TINY, make_catalog

from capture_lib.catalog.table import read_catalog, write_catalog
from capture_lib.experiments.plan import tasks_of
from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import ComparisonSettings
from capture_lib.report import execute
from capture_lib.utils import NOTEBOOKS


@pytest.fixture(scope="module")
def shops(tmp_path_factory) -> dict[str, Run]:
    """Catalogs that lack something, or nothing."""
    place = tmp_path_factory.mktemp("shops")
    made = {"whole": make_catalog(place / "whole", 40, 4, 2, 2),
            "mute": make_catalog(place / "mute", 40, 4, 2, 2, captions=False),
            "without gallery": make_catalog(place / "without gallery", 40, 0, 2, 2),
            "without labels": make_catalog(place / "without labels", 40, 4, 2, 2)}
    made["without labels"].table["labels"] = [[] for _ in range(len(made["without labels"].table))]
    write_catalog(made["without labels"].table, made["without labels"].folder)
    return {name: Run(TINY, read_catalog(catalog.folder), place / "report", 3) for name, catalog in made.items()}


STAGES = {"composites", "detector", "region encoder", "regions", "pretraining"}
CAPTION_STAGES = {"caption words", "region encoder + captions", "regions + captions", "pretraining + captions"}
CHOSEN = {"embeddings", "baselines", "choices"}


@pytest.mark.parametrize("name, expected", [
    ("mute", CHOSEN), ("without gallery", CAPTION_STAGES | {"embeddings", "embeddings + captions"}),
    ("without labels", CAPTION_STAGES | {"embeddings", "embeddings + captions"})])
def test_a_catalog_that_lacks_something_has_only_the_tasks_that_it_can_do(shops, name, expected):
    assert tasks_of(shops[name]).keys() == STAGES | expected


def test_every_model_is_a_task_after_those_that_it_needs(shops):
    comparing = ComparisonSettings(seeds=2, rates=(0.5, 1.0), ablations=("recipe", "without mlm"))
    tasks = tasks_of(replace(shops["whole"], profile=replace(TINY, comparison=comparing)))
    done = set()
    for name, task in tasks.items():
        assert done.issuperset(task.needs), name
        done.add(name)
    models = {f"{model}, seed {seed}" for seed in (3, 4)
              for model in ("capture", "capture + captions", "two-stream", "one-stream", "dual-encoder")}
    assert {name for name in tasks if ", seed" in name} == models | {
        "ablation/recipe, seed 3", "ablation/without mlm, seed 3"}
    assert tasks["one-stream, seed 4"].needs == ("pretraining", "one-stream, rate × 0.5", "one-stream, rate × 1")
    assert tasks["regions + captions"].needs == ("regions", "region encoder + captions")


@pytest.mark.parametrize("name, only, stages", [
    ("whole", "01", set()), ("whole", "02", {"composites"}), ("mute", "03", STAGES - {"pretraining"}),
    ("mute", "04", STAGES), ("without gallery", "05", STAGES | CAPTION_STAGES), ("mute", "05", STAGES | CHOSEN)])
def test_only_what_a_notebook_needs_is_made_before_it(shops, monkeypatch, name, only, stages):
    monkeypatch.setattr(execute, "open_run", lambda *given: shops[name])
    (book,) = (file for file in NOTEBOOKS.glob(f"{only}_*.ipynb"))
    planned = execute.plan("tiny", "", 3, [book], Path("report"))
    assert planned.keys() == stages | {book.stem}
    assert execute.plan("tiny", "", 3, [], Path("report")) == {}


def test_all_notebooks_stand_behind_all_that_they_need(shops, monkeypatch):
    monkeypatch.setattr(execute, "open_run", lambda *given: shops["whole"])
    files = sorted(NOTEBOOKS.glob("0*.ipynb"))
    planned = execute.plan("tiny", "", 3, files, Path("report"))
    assert list(planned) == [*tasks_of(shops["whole"]), *(file.stem for file in files)]
