"""CAPTURE, its baselines and its ablations: trained, then evaluated on test as val chose (notebook 06).

A model is a stage below `variants/`, its evaluation one below `comparison/`: after an interruption
the next start goes on with those that are left.
"""

import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import evaluation, stages, variants
from capture_lib.experiments.run import Run, digest
from capture_lib.experiments.variants import PROPOSALS, TRUE_BOXES, UNCHANGED, Variant
from capture_lib.model.capture import Capture
from capture_lib.proposals import region_store as storing
from capture_lib.retrieval import embedding, ranking
from capture_lib.retrieval.ranking import METHODS, Method
from capture_lib.training import pretrain
from capture_lib.utils import pick_device, process_map, progress

Scores = dict[str, list[pd.DataFrame]]  # by method, for each training the figures of every query


@dataclass(frozen=True)
class Job:
    """A model to train and evaluate."""

    name: str  # of the method
    variant: Variant
    epochs: int
    rate: float  # factor of the profile's learning rate
    seed: int

    @property
    def title(self) -> str:
        """The name of its evaluation's folder."""
        tasks = " ".join(self.variant.pretrain.get("tasks", ()))
        title = f"{self.name} {tasks} {self.epochs} epochs rate {self.rate:g} seed {self.seed}"
        return re.sub(r"[^a-z0-9.]+", "-", title.lower())


def settings_of(run: Run, job: Job) -> dict:
    """Return all that a job's model depends on: the profile's settings, but for the variant's."""
    profile = run.profile
    variant = job.variant
    base = replace(profile.pretrain, keep_every=0, log="")
    # the same number of steps, whatever the data and the batch
    epochs = job.epochs * variant.batch_factor * round(1 / variant.share)
    training = replace(base, batch=base.batch * variant.batch_factor, epochs=epochs,
                       learning_rate=base.learning_rate * job.rate, **variant.pretrain)
    return {"batches": replace(profile.batches, **variant.batches), "pretrain": training,
            "capture": replace(profile.capture, **variant.capture), "regions": variant.regions,
            "max_regions": variant.max_regions, "share": variant.share, "seed": job.seed}


# ---- training


def model_name(run: Run, job: Job) -> str:
    """Return the name of a model's stage: one for all jobs with the same settings."""
    settings = settings_of(run, job)
    capture = Job("capture", UNCHANGED, run.profile.pretrain.epochs, 1.0, run.seed)
    if settings == settings_of(run, capture):
        return "pretrain"  # that of notebook 04
    return f"variants/{digest(repr(settings).encode())}"


def trained(run: Run, job: Job) -> Path:
    """Return the folder of a job's model."""
    settings = settings_of(run, job)
    name = model_name(run, job)
    if name == "pretrain":
        return run.stages / name
    source = store_folder(run, job.variant.regions)
    table = stages.samples(run, "train")[["sample_id", "split", "image", "caption"]]

    def make(folder: Path) -> None:
        order = np.random.default_rng([job.seed, 12]).permutation(len(table))
        chosen = np.sort(order[:round(job.variant.share * len(table))])
        pairs = evaluation.pairs_of(run, table.iloc[chosen], source, job.variant)
        training = replace(settings["pretrain"], keep_every=run.profile.pretrain.keep_every)
        model = pretrain.build_model(settings["capture"], pairs, job.seed, training.tasks, training.bert)
        pretrain.train(model, pairs, settings["batches"], training, folder, job.seed)

    return run.stage(pretrain, settings, [source], table, make, name=name)


def store_folder(run: Run, kind: str) -> Path:
    """Return the folder of a region store."""
    suffix = "" if kind == PROPOSALS else f"-{kind.replace(' ', '-')}"
    return run.stages / f"region_store{suffix}"


def boxed_store(run: Run, kind: str) -> Path:
    """Return the folder of a region store of true boxes, or of each whole photo as one region."""
    encoder, source = stages.trained_encoder(run)
    table = stages.photographed(run)
    if kind == TRUE_BOXES:
        table = table[table["boxes"].map(len) > 0]
    paths = [run.catalog.photos[sample] for sample in table["sample_id"]]

    def make(folder: Path) -> None:
        sizes = [np.tile(load_photo(path).shape[1::-1], 2) for path in paths]  # width, height, twice
        if kind == TRUE_BOXES:
            boxes = [np.stack(list(own)) for own in table["boxes"]]
        else:
            boxes = [np.array([[0, 0, *size[:2]]]) for size in sizes]
        counts = np.array([len(own) for own in boxes], np.int32)
        valid = np.arange(counts.max()) < counts[:, None]  # (N, R)
        features = storing.encode_boxes(paths, boxes, encoder, run.profile.regions)  # (n, F)
        arrays = {"counts": counts, "scores": valid.astype(np.float32),
                  "features": np.zeros((*valid.shape, features.shape[1]), np.float16),
                  "boxes": np.zeros((*valid.shape, 4), np.float32)}
        arrays["features"][valid] = features
        arrays["boxes"][valid] = np.concatenate([own / size for own, size in zip(boxes, sizes, strict=True)])
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "ids.txt").write_text("".join(f"{sample}\n" for sample in table["sample_id"]), encoding="utf-8")

    return run.stage(storing, run.profile.regions, [source], table[["sample_id", "image", "boxes"]], make,
                     name=store_folder(run, kind).name)


# ---- evaluation


def evaluated(run: Run, job: Job) -> Path:
    """Return the folder with a job's figures on test, as val has chosen."""
    variant = job.variant
    source = trained(run, job)
    store = store_folder(run, variant.query_regions)
    instances = run.profile.instances
    if variant.query_regions == TRUE_BOXES:  # each of them is a product, however near another
        instances = replace(instances, nms_iou=1.0, max_instances=run.profile.retrieval.depth)
    methods = methods_of(job)
    levels = {method.level for method in methods.values()}

    def make(folder: Path) -> None:
        model = Capture.from_pretrained(source).to(pick_device()).eval()
        sets = evaluation.embed_splits(run, store, model, None, variant, instances, levels)
        evaluation.write_evaluation(
            folder, *evaluation.evaluate_methods(sets, methods, run.profile.retrieval.depth))

    settings = {"retrieval": run.profile.retrieval, "instances": instances,
                "batches": settings_of(run, job)["batches"], "max_regions": variant.max_regions,
                "representations": variant.representations}
    table = stages.photographed(run)
    read = table.loc[table["split"] != "train", evaluation.READ]
    return run.stage(sys.modules[__name__], settings, [source, store], read, make,
                     name=f"comparison/{job.title}")


def untrained(run: Run) -> Path:
    """Return the folder with the figures of all that needs no CAPTURE, chance among them."""
    words = stages.caption_words(run)
    _, store = stages.region_store(run)
    depth = run.profile.retrieval.depth

    def make(folder: Path) -> None:
        sets = evaluation.embed_splits(run, store, None, words)
        test = sets["test"]
        gallery = sets["gallery"]
        scores, chosen = evaluation.evaluate_methods(sets, ranking.possible_methods(test), depth)
        # two rankings that look at no query
        popular = [evaluation.popularity(sets["val"], gallery, depth)] * len(test.ids)
        random = evaluation.chance(test, gallery, depth, run.seed)
        scores["popularity"] = ranking.score(popular, test, gallery)
        scores["chance"] = ranking.score(random, test, gallery)
        evaluation.write_evaluation(folder, scores, chosen)

    settings = {"retrieval": run.profile.retrieval, "instances": run.profile.instances}
    read = stages.photographed(run)[evaluation.READ]
    return run.stage(sys.modules[__name__], settings, [store], read, make, name="comparison/untrained")


def methods_of(job: Job) -> dict[str, Method]:
    """Return the ways to search with a model: per level as val chooses, and by the paper's product."""
    name = job.name
    representations = job.variant.representations
    if name == "capture":
        return {method: METHODS[method] for method in METHODS if method.startswith("capture")}
    if name.startswith("ablation/"):
        return {name: Method("instance", representations), f"{name}, product": Method("instance", ("product",))}
    methods = {f"{name}/{level}": Method(level, representations) for level in embedding.LEVELS}
    if name == "dual-encoder":
        methods["image-stream"] = Method("instance", ("contrastive image",))
        methods["text-stream"] = Method("image", ("contrastive text",))
    return methods


# ---- comparison


def compared(run: Run) -> Scores:
    """Return the figures of every method on test; none where a split lacks photos or labels.

    CAPTURE and its baselines have a table for each seed; names of ablations begin with "ablation/".
    """
    return evaluation.by_method(evaluations(run), evaluation.read_scores)


def evaluations(run: Run) -> list[Path]:
    """Return the folders of all evaluations, made where they are missing."""
    if not comparable(run):
        return []
    if not trainable(run):
        return [untrained(run)]
    for kind in {job.variant.query_regions for job in ablated(run)} - {PROPOSALS}:
        boxed_store(run, kind)
    evaluate_all(run, [*searched(run), *ablated(run)])
    return [untrained(run), *evaluate_all(run, [*finals(run), *ablated(run)])]


def comparable(run: Run) -> bool:
    """Return whether there are labelled queries in val and test, and a gallery."""
    return all(any(map(len, stages.samples(run, split)["labels"])) for split in ("val", "test", "gallery"))


def trainable(run: Run) -> bool:
    """Return whether there are pairs enough to train on, with captions."""
    capture = stages.pretrained(run)
    return capture.model is not None and capture.tasks == run.profile.pretrain.tasks


def searched(run: Run) -> list[Job]:
    """Return the short trainings by which val chooses a baseline's form and learning rate."""
    settings = run.profile.comparison
    jobs = []
    for name, forms in variants.baselines(run.profile.capture).items():
        options = [Job(name, form, settings.epochs, rate, run.seed) for form in forms for rate in settings.rates]
        if len(options) > 1:
            jobs += options
    return jobs


def finals(run: Run) -> list[Job]:
    """Return CAPTURE and its baselines in full length, with every seed, as val has chosen."""
    options = searched(run)
    jobs = []
    for name, forms in variants.baselines(run.profile.capture).items():
        tried = [job for job in options if job.name == name]
        best = max(tried, key=partial(figure_on_val, run), default=Job(name, forms[0], 0, 1.0, run.seed))
        for seed in range(run.seed, run.seed + run.profile.comparison.seeds):
            jobs.append(replace(best, epochs=run.profile.pretrain.epochs, seed=seed))
    return jobs


def figure_on_val(run: Run, job: Job) -> float:
    """Return the best figure of a job's methods on val, those of its single streams left out."""
    chosen = evaluation.read_chosen(evaluated(run, job))
    return max(row["val"] for method, row in chosen.items() if method.startswith(job.name))


def ablated(run: Run) -> list[Job]:
    """Return the ablations, with every seed."""
    settings = run.profile.comparison
    jobs = []
    for group in variants.ablations(run.profile.capture).values():
        for name, variant in group.items():
            if variant.query_regions == TRUE_BOXES and not all_boxed(run):
                continue
            for seed in range(run.seed, run.seed + settings.ablation_seeds):
                jobs.append(Job(f"ablation/{name}", variant, settings.epochs, 1.0, seed))
    return jobs


def all_boxed(run: Run) -> bool:
    """Return whether every query and gallery photo has true boxes."""
    table = stages.photographed(run)
    return bool((table.loc[table["split"] != "train", "boxes"].map(len) > 0).all())


def evaluate_all(run: Run, jobs: list[Job], evaluate: Callable[[Run, Job], Path] = evaluated) -> list[Path]:
    """Train and evaluate all jobs, several models side by side; return the evaluations' folders."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(model_name(run, job), []).append(job)
    trained_before = all((run.stages / name).is_dir() for name in groups)
    with process_map(0 if trained_before else run.profile.comparison.parallel_jobs) as map_over:
        done = map_over(partial(evaluate_silently, evaluate, run), groups.values())
        list(progress(done, "models evaluated or found", len(groups)))
    return [evaluate(run, job) for job in jobs]


def evaluate_silently(evaluate: Callable[[Run, Job], Path], run: Run, jobs: list[Job]) -> None:
    """Evaluate the jobs of one model without progress, beside other processes with one thread."""
    if parent_process():
        torch.set_num_threads(1)
    with redirect_stdout(StringIO()):
        for job in jobs:
            evaluate(run, job)
