"""What a run makes before its notebooks show it: tasks, of which those that don't need each other run side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from capture_lib.experiments import comparison, evaluation, stages
from capture_lib.experiments.run import Run

CAPTIONS = " + captions"  # ends the names of tasks for which captions taught the region encoder
VECTORS = "image-text vectors"


@dataclass(frozen=True)
class Task:
    """A piece of work that one process does, when the tasks whose names it `needs` are done."""

    needs: tuple[str, ...]
    work: Callable[[], object]


def tasks_of(run: Run) -> dict[str, Task]:
    """Return all stages, trainings and evaluations of a run by name, each after those that it needs."""
    tasks = {
        "composites": Task((), partial(stages.composites, run)),
        "detector": Task(("composites",), partial(stages.detector_folder, run))}
    taught = run.taught()
    speak = stages.captions_speak(run)
    if speak:
        tasks["caption words"] = Task((), partial(stages.caption_words, run))
    add_stages(tasks, run, "")
    if speak:
        add_stages(tasks, taught, CAPTIONS)
        for name, frame in comparison.varied_captions(run).items():
            encoder = f"captions varied: encoder, {name}"
            tasks[encoder] = Task(("region encoder", "caption words"), partial(stages.encoder_folder, frame))
            regions = Task(("regions", encoder), partial(stages.region_store, frame))
            tasks[f"captions varied: regions, {name}"] = regions
    if comparison.comparable(run):
        add_methods(tasks, run, "")
        if speak:
            add_methods(tasks, taught, CAPTIONS)
    if comparison.comparable(run) and comparison.trainable(run):
        for name in comparison.models(run):
            add_finals(tasks, run, name, "")
        for number, job in enumerate(comparison.ablated(run)):
            work = partial(evaluate, comparison.ablated, run, number)
            tasks[f"{job.name}, seed {job.seed}"] = Task(("pretraining",), work)
        if speak:
            add_finals(tasks, taught, "capture", CAPTIONS)
    return tasks


def add_stages(tasks: dict[str, Task], run: Run, mark: str) -> None:
    """Add the stages from the region encoder to what CAPTURE and the image-text model embed."""
    words = ("caption words",) if "caption words" in tasks else ()
    sources = ("region encoder", *words) if mark else ("composites",)  # whose first steps are the same
    tasks[f"region encoder{mark}"] = Task(sources, partial(stages.encoder_folder, run))
    located = ("regions",) if mark else ("detector",)  # the boxes are the same
    tasks[f"regions{mark}"] = Task((*located, f"region encoder{mark}"), partial(stages.region_store, run))
    tasks[f"pretraining{mark}"] = Task((f"regions{mark}",), partial(stages.pretrained, run))
    if run.profile.retrieval.embedder and not mark:
        tasks[VECTORS] = Task(("regions",), partial(evaluation.foundation_folder, run))
    vectors = (VECTORS,) if VECTORS in tasks else ()
    tasks[f"embeddings{mark}"] = Task((f"pretraining{mark}", *words, *vectors), partial(evaluation.embedded, run))


def add_methods(tasks: dict[str, Task], run: Run, mark: str) -> None:
    """Add what notebook 05 reads: the evaluations of its CAPTURE, and of the methods that need no training."""
    vectors = (VECTORS,) if VECTORS in tasks else ()
    tasks[f"baselines{mark}"] = Task((f"pretraining{mark}", *vectors), partial(comparison.untrained, run))
    tasks[f"choices{mark}"] = Task((f"baselines{mark}", f"embeddings{mark}"), partial(comparison.choices, run))


def add_finals(tasks: dict[str, Task], run: Run, name: str, mark: str) -> None:
    """Add the trainings of a model: the short ones by which val chooses a rate, then one a seed."""
    before = [f"pretraining{mark}"]
    tried = comparison.searched(run, name)
    for number, job in enumerate(tried if len(tried) > 1 else ()):
        task = f"{name}{mark}, rate × {job.rate:g}"
        tasks[task] = Task((f"pretraining{mark}",), partial(evaluate, comparison.searched, run, number, name))
        before.append(task)
    for number in range(run.profile.comparison.seeds):
        work = partial(evaluate, comparison.finals, run, number, name)
        tasks[f"{name}{mark}, seed {run.seed + number}"] = Task(tuple(before), work)


def kind(name: str) -> str:
    """Return the name of a task without its seed, its rate, what is varied, and whether captions taught the regions."""
    return name.split(", ")[0].removesuffix(CAPTIONS)


def evaluate(jobs: Callable, run: Run, number: int, *of: str) -> None:
    """Train and evaluate one of some jobs."""
    comparison.evaluated(run, jobs(run, *of)[number])
