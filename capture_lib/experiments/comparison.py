"""CAPTURE, its rivals and its ablations, each trained once and judged once on test, as val has chosen (notebook 06).

A model is a stage below `variants/`, its judgement one below `comparison/`: interrupted, the next start goes on with
those that are left.
"""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import StringIO
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import stages, variants
from capture_lib.experiments.run import ROWS, Run
from capture_lib.experiments.variants import PROPOSALS, TRUE_BOXES, Variant
from capture_lib.model.capture import Capture
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.proposals.region_store import RegionStore
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval.analysis import popular
from capture_lib.retrieval.embedding import EmbeddedSet, Method
from capture_lib.training import batches, pretrain
from capture_lib.training.batches import Pairs
from capture_lib.utils import pick_device, process_map, progress, write_json

Scores = dict[str, list[pd.DataFrame]]  # by method, for each training seed every figure of every query
SCORES, CHOSEN = "scores.parquet", "chosen.json"


@dataclass(frozen=True)
class Training:
    """All that a trained variant depends on, beside the region store and the captions."""

    batches: batches.BatchSettings
    capture: stages.model.CaptureSettings
    pretrain: pretrain.PretrainSettings
    regions: str
    max_regions: int
    share: float
    seed: int


@dataclass(frozen=True)
class Job:
    """A model to be trained and judged: the method's name, what it is, how long it is trained, with which seed."""

    name: str
    variant: Variant
    epochs: int
    rate: float  # share of the profile's learning rate
    seed: int

    @property
    def part(self) -> str:
        """A name for its folder."""
        tasks = " ".join(self.variant.pretrain.get("tasks", ()))
        told = f"{self.name} {tasks} {self.epochs} epochs rate {self.rate:g} seed {self.seed}"
        return re.sub(r"[^a-z0-9.]+", "-", told.lower())


def training_of(run: Run, job: Job) -> Training:
    """The settings of a job: the profile's, but for what the variant changes."""
    profile, variant = run.profile, job.variant
    given = pretrain.of_result(profile.pretrain)
    longer = variant.batch_factor * round(1 / variant.share)  # the same number of steps, whatever the data and the batch
    trained = replace(given, batch=given.batch * variant.batch_factor, epochs=job.epochs * longer,
                      learning_rate=given.learning_rate * job.rate, **variant.pretrain)
    return Training(replace(profile.batches, **variant.batches), replace(profile.capture, **variant.capture), trained,
                    variant.regions, variant.max_regions, variant.share, job.seed)


def anew(make: Callable[[Path], None]) -> Callable[..., None]:
    """For `Run.stage`: what is made where the catalog has grown, all of it."""
    return lambda unfinished, *_: make(unfinished)


# --------------------------------------------------------------------------------------------- training


def trained(run: Run, job: Job) -> Path:
    """The folder of a job's model; CAPTURE as the profile has it is that of notebook 04."""
    settings, own, folder = training_of(run, job), run.stages / "pretrain", store_folder(run, job.variant.regions)
    if settings == training_of(run, Job("capture", Variant(), run.profile.pretrain.epochs, 1.0, run.seed)):
        return own
    table = stages.samples(run, "train")[["sample_id", "split", "image", "caption"]]
    table = table[np.isin(run.catalog.row_digests(table), np.load(own / ROWS))]  # what CAPTURE was trained on

    def make(unfinished: Path) -> None:
        chosen = np.random.default_rng([settings.seed, 12]).permutation(len(table))[:round(settings.share * len(table))]
        rows = table.iloc[np.sort(chosen)]
        pairs = limited(batches.make_pairs(rows, regions.open_store(folder), batches.load_tokenizer(own),
                                           settings.batches), settings.max_regions)
        pairs = stages.by_recipe(pairs, rows, settings.pretrain, settings.seed)
        fresh = pretrain.build_model(settings.capture, pairs, settings.seed, settings.pretrain.tasks,
                                     settings.pretrain.bert)
        kept = replace(settings.pretrain, keep_every=run.profile.pretrain.keep_every)
        pretrain.train(fresh, pairs, settings.batches, kept, unfinished, settings.seed)

    return run.stage(pretrain, settings, [folder], table, make,
                     name=f"variants/{alike(run, job).part}")


def alike(run: Run, job: Job) -> Job:
    """The first of the short trainings that is the same as the job's, if there is one: it is trained once."""
    wanted = training_of(run, job)
    return next(other for other in [*searched(run), *ablated(run), job] if training_of(run, other) == wanted)


def limited(pairs: Pairs, most: int) -> Pairs:
    """Pairs that have the `most` best regions only; 0 = all."""
    store = pairs.store
    return replace(pairs, store=RegionStore(store.features[:, :most], store.boxes[:, :most], store.scores[:, :most],
                                            np.minimum(store.counts, most), store.ids)) if most else pairs


def store_folder(run: Run, kind: str) -> Path:
    """The folder of a region store, which is there."""
    return run.stages / ("region_store" if kind == PROPOSALS else f"region_store-{kind.replace(' ', '-')}")


def boxed_store(run: Run, kind: str) -> Path:
    """The folder of a region store with other boxes: the whole of each photo, or the true boxes of those that have."""
    network, source = stages.trained_encoder(run)
    table = stages.photographed(run)
    if kind == TRUE_BOXES:
        table = table[table["boxes"].map(len) > 0]
    paths = [run.catalog.photos[sample] for sample in table["sample_id"]]

    def make(folder: Path) -> None:
        sizes = [np.tile(load_photo(path).shape[1::-1], 2) for path in paths]  # width, height, width, height
        boxes = [np.stack(list(own)) if kind == TRUE_BOXES else np.array([[0, 0, *size[:2]]])
                 for own, size in zip(table["boxes"], sizes, strict=True)]
        found = regions.encode_boxes(paths, boxes, network, run.profile.regions)
        counts = np.array([len(box) for box in boxes])
        shape = (len(paths), counts.max())
        real = np.arange(shape[1]) < counts[:, None]  # (N, R)
        features, places = np.zeros((*shape, found.shape[1]), np.float16), np.zeros((*shape, 4), np.float32)
        features[real] = found
        places[real] = np.concatenate([box / size for box, size in zip(boxes, sizes, strict=True)])
        for name, array in {"features": features, "boxes": places, "scores": real.astype(np.float32),
                            "counts": counts.astype(np.int32)}.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "ids.txt").write_text("".join(f"{sample}\n" for sample in table["sample_id"]), encoding="utf-8")

    return run.stage(regions, run.profile.regions, [source], table[["sample_id", "image", "boxes"]], make,
                     anew(make),
                     name=store_folder(run, kind).name)


# -------------------------------------------------------------------------------------------- judgement


@dataclass(frozen=True)
class EvaluationInputs:
    """What a judgement depends on, beside the model."""

    retrieval: retrieval.RetrievalSettings
    instances: InstanceSettings
    batches: batches.BatchSettings
    representations: tuple[str, ...]
    asked: str
    max_regions: int


def evaluated(run: Run, job: Job) -> Path:
    """The folder with a job's figures on test, as val has chosen: `scores.parquet` and `chosen.json`."""
    made, folder, variant = training_of(run, job), trained(run, job), job.variant
    store, own = store_folder(run, variant.asked), run.stages / "pretrain"
    settings = EvaluationInputs(run.profile.retrieval, run.profile.instances, made.batches, variant.representations, variant.asked, variant.max_regions)
    table = stages.photographed(run)
    table = table[table["split"] != "train"]

    def make(unfinished: Path) -> None:
        methods = methods_of(job)
        network = Capture.from_pretrained(folder).to(pick_device()).eval()
        asking = run.profile.instances
        if variant.asked == TRUE_BOXES:  # each of them is a product, however near another
            asking = replace(asking, nms_iou=1.0, max_instances=run.profile.retrieval.depth)
        sides = {}
        for split in ("val", "test", "gallery"):
            rows = table[table["split"] == split]
            pairs = batches.make_pairs(rows, regions.open_store(store), batches.load_tokenizer(own), made.batches)
            sides[split] = retrieval.embed_samples(rows, limited(pairs, variant.max_regions), network, None, asking,
                                                split == "gallery", {method.level for method in methods.values()})
        keep(unfinished, *evaluate_methods(sides, methods, run.profile.retrieval.depth))

    read = table[["sample_id", "split", "image", "caption", "labels"]]
    return run.stage(sys.modules[__name__], settings, [folder, store], read, make, anew(make),
                     name=f"comparison/{job.part}")


def methods_of(job: Job) -> dict[str, Method]:
    """The ways to search with a model: both forms with the reading that val chooses, and the paper's product."""
    name, representations = job.name, job.variant.representations
    if name == "capture":
        return {method: retrieval.METHODS[method] for method in retrieval.METHODS if method.startswith("capture")}
    if name == "dual-encoder":
        streams = {"image-stream": Method("instance", ("contrastive image",)),
                   "text-stream": Method("image", ("contrastive text",))}
        return {f"{name}/{level}": Method(level, representations) for level in ("instance", "image")} | streams
    if name.startswith("ablation/"):
        return {name: Method("instance", representations), f"{name}, product": Method("instance", ("product",))}
    return {f"{name}/{level}": Method(level, representations) for level in ("instance", "image")}


def evaluate_methods(sides: dict[str, EmbeddedSet], methods: dict[str, Method], depth: int) -> tuple[dict, dict]:
    """Lets val choose reading and merge of every method, and ranks test by them; for `keep`."""
    scores, chosen = {}, {}
    for name, method in methods.items():
        choice, tried = retrieval.choose(method, sides["val"], sides["gallery"], depth)
        ranked = retrieval.rank(sides["test"], sides["gallery"], method.level, choice, depth)
        scores[name] = retrieval.score(ranked, sides["test"], sides["gallery"])
        chosen[name] = {**asdict(choice), "val": max(tried.values()), "tried": tried}
    return scores, chosen


def keep(folder: Path, scores: dict[str, pd.DataFrame], chosen: dict[str, dict]) -> None:
    """Writes a judgement: every figure of every query, and what val chose. `read_scores` and `read_chosen` read it."""
    flat = pd.concat({name: table.set_axis(["|".join(column) for column in table.columns], axis=1)
                      for name, table in scores.items()}, names=["method"])
    flat.reset_index("method").to_parquet(folder / SCORES)
    write_json(folder / CHOSEN, chosen)


def read_scores(folder: Path) -> dict[str, pd.DataFrame]:
    """The figures of a judgement by method, as from `metrics.per_query`."""
    table = pd.read_parquet(folder / SCORES)
    columns = pd.MultiIndex.from_tuples([tuple(column.split("|")) for column in table.columns.drop("method")])
    return {name: rows.drop(columns="method").set_axis(columns, axis=1).reset_index(drop=True)
            for name, rows in table.groupby("method", sort=False)}


def read_chosen(folder: Path) -> dict[str, dict]:
    """What val chose for each method of a judgement, its figure there ("val"), and all that was tried."""
    return json.loads((folder / CHOSEN).read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------- comparison


def compared(run: Run) -> Scores:
    """Every method that the catalog allows, judged on test; empty where test, val or gallery lack photos or labels.

    CAPTURE and its rivals have a table for each seed; in the names of ablations "ablation/" stands in front.
    """
    return gathered(evaluations(run), read_scores)


def gathered(folders: list[Path], read: Callable[[Path], dict]) -> dict[str, list]:
    """What `read` finds in the folders of judgements, by method: a list over the seeds."""
    found: dict[str, list] = {}
    for folder in folders:
        for name, value in read(folder).items():
            found.setdefault(name, []).append(value)
    return found


def evaluations(run: Run) -> list[Path]:
    """The folders of all judgements, made where they are missing."""
    if not comparable(run):
        return []
    if not trainable(run):
        return [plain(run)]
    for kind in {job.variant.asked for job in ablated(run)} - {PROPOSALS}:
        boxed_store(run, kind)
    there = are_there(run, [*searched(run), *ablated(run)]) and are_there(run, finals(run))
    with process_map(0 if there else run.profile.comparison.parallel_jobs) as map_over:  # processes take a while to start
        judge_all(run, [*searched(run), *ablated(run)], map_over)
        return [plain(run), *judge_all(run, [*finals(run), *ablated(run)], map_over)]


def are_there(run: Run, jobs: list[Job]) -> bool:
    """Whether all have been judged before."""
    return all((run.stages / "comparison" / job.part).is_dir() for job in jobs)


def comparable(run: Run) -> bool:
    """Whether there are labelled queries in val and test, and a gallery."""
    return all(any(map(len, stages.samples(run, split)["labels"])) for split in ("val", "test", "gallery"))


def trainable(run: Run) -> bool:
    """Whether there are pairs enough to train on, with captions."""
    own = stages.pretrained(run)
    return own.model is not None and own.tasks == run.profile.pretrain.tasks


def searched(run: Run) -> list[Job]:
    """The short trainings by which val chooses each rival's form and learning rate, where there is a choice."""
    settings, found = run.profile.comparison, []
    for name, levels in variants.baselines(run.profile.capture).items():
        options = [Job(name, level, settings.epochs, rate, run.seed) for level in levels for rate in settings.rates]
        found += options if len(options) > 1 else []
    return found


def finals(run: Run) -> list[Job]:
    """CAPTURE and its rivals in full length, with every seed, in the form and at the rate that val has chosen."""
    options = searched(run)
    figures = {job.part: max(row["val"] for name, row in read_chosen(evaluated(run, job)).items()
                             if name.startswith(job.name)) for job in options}
    found = []
    for name, levels in variants.baselines(run.profile.capture).items():
        own = [job for job in options if job.name == name] or [Job(name, levels[0], 0, 1.0, run.seed)]
        best = max(own, key=lambda job: figures.get(job.part, 0))
        found += [replace(best, epochs=run.profile.pretrain.epochs, seed=run.seed + more)
                  for more in range(run.profile.comparison.seeds)]
    return found


def ablated(run: Run) -> list[Job]:
    """The ablations, with every seed."""
    settings = run.profile.comparison
    return [Job(f"ablation/{name}", variant, settings.epochs, 1.0, run.seed + more)
            for group in variants.ablations(run.profile.capture).values() for name, variant in group.items()
            if variant.asked != TRUE_BOXES or all_boxed(run)
            for more in range(settings.ablation_seeds)]


def all_boxed(run: Run) -> bool:
    """Whether every query and gallery photo has true boxes."""
    table = stages.photographed(run)
    return bool((table.loc[table["split"] != "train", "boxes"].map(len) > 0).all())


def judge_all(run: Run, jobs: list[Job], map_over: Callable, judge: Callable[[Run, Job], Path] = evaluated
              ) -> list[Path]:
    """Trains what is not trained yet, several side by side, then judges; the folders of the judgements."""
    first = {training_of(run, job): job for job in reversed(jobs)}  # one of each that are trained in the same way
    for label, work, those in (("models trained or found", trained, list(first.values())[::-1]),
                               ("models judged or found", judge, jobs)):
        folders = list(progress(map_over(partial(quietly, work, run), those), label, len(those)))
    return folders


def quietly(work: Callable[[Run, Job], Path], run: Run, job: Job) -> Path:
    """The work on one job, which shows no progress of its own; in a process beside others with one thread."""
    if parent_process():
        torch.set_num_threads(1)
    with redirect_stdout(StringIO()):
        return work(run, job)


def plain(run: Run) -> Path:
    """The folder with the figures of what needs no CAPTURE: raw features, n-grams, fusion, popularity and chance."""
    settings, depth = run.profile.retrieval, run.profile.retrieval.depth
    table, words = stages.photographed(run), stages.caption_words(run)
    store, folder = stages.region_store(run)

    def make(unfinished: Path) -> None:
        sides = {}
        for split in ("val", "test", "gallery"):
            rows = stages.samples(run, split)
            pairs = batches.make_pairs(rows, store, stages.pretrained(run).tokenizer, run.profile.batches)
            sides[split] = retrieval.embed_samples(rows, pairs, None, words, run.profile.instances, single=split == "gallery")
        test, gallery = sides["test"], sides["gallery"]
        scores, chosen = evaluate_methods(sides, retrieval.possible_methods(test), depth)
        scores["chance"] = retrieval.score(retrieval.chance(test, gallery, depth, run.seed), test, gallery)
        same = popular(sides["val"].labels, [labels[0] if labels else "" for labels in gallery.labels], depth)
        blind = [retrieval.Ranking(same, np.zeros(len(same)), np.zeros(len(same), int)) for _ in test.ids]
        scores["popularity"] = retrieval.score(blind, test, gallery)
        keep(unfinished, scores, chosen)

    read = table[["sample_id", "split", "image", "caption", "labels"]]
    return run.stage(sys.modules[__name__], settings, [folder], read, make, anew(make),
                     name="comparison/plain")
