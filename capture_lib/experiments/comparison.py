"""CAPTURE, its baselines and its ablations: trained, then evaluated on test as val chose (notebook 06).

A model is a stage below `variants/`, its evaluation one below `comparison/`: made once, then found.
"""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.experiments import evaluation, stages, variants
from capture_lib.experiments.run import Run, digest
from capture_lib.experiments.variants import UNCHANGED, Variant
from capture_lib.model.capture import Capture
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import EmbeddedSet, carry_text
from capture_lib.retrieval.ranking import METHODS, Method
from capture_lib.training import pretrain
from capture_lib.utils import pick_device

# methods that read no region feature of ours: whether captions taught these is the same to them
BLIND = ("chance", "popularity", "text-only", "foundation-image", "foundation-text", "foundation-fusion")
READ = ["sample_id", "split", "image", "caption", "labels", "boxes", "box_labels"]  # columns that an evaluation reads


@dataclass(frozen=True)
class Job:
    """A model to train and evaluate."""

    name: str  # of the method
    variant: Variant
    epochs: int
    rate: float  # factor of the profile's learning rate
    seed: int


def capture(run: Run) -> Job:
    """Return the job of notebook 04's CAPTURE."""
    return Job("capture", UNCHANGED, run.profile.pretrain.epochs, 1.0, run.seed)


def settings_of(run: Run, job: Job) -> dict:
    """Return all that a job's model depends on: the profile's settings, but for the variant's."""
    profile = run.profile
    variant = job.variant
    base = profile.pretrain
    # the same number of steps, whatever the data and the batch
    epochs = job.epochs * variant.batch_factor * round(1 / variant.share)
    training = replace(base, batch=base.batch * variant.batch_factor, epochs=epochs, keep_every=0,
                       learning_rate=base.learning_rate * job.rate, **variant.pretrain)
    return {"batches": replace(profile.batches, **variant.batches), "pretrain": training,
            "capture": replace(profile.capture, **variant.capture),
            "max_regions": variant.max_regions, "share": variant.share, "seed": job.seed}


def model_name(run: Run, job: Job) -> str:
    """Return the name of a model's stage: one for all jobs with the same settings."""
    settings = settings_of(run, job)
    same = settings == settings_of(run, capture(run))
    return "pretrain" if same else f"variants/{digest(repr(settings).encode())}"


def trained(run: Run, job: Job) -> Path:
    """Return the folder of a job's model."""
    settings = settings_of(run, job)
    name = model_name(run, job)
    if name == "pretrain":
        return run.place(name)
    table = stages.train_samples(run)[["sample_id", "split", "image", "caption"]]

    def make(folder: Path) -> None:
        order = np.random.default_rng([job.seed, 12]).permutation(len(table))
        chosen = np.sort(order[:round(job.variant.share * len(table))])
        pairs = evaluation.pairs_of(run, table.iloc[chosen], job.variant)
        training = replace(settings["pretrain"], keep_every=run.profile.pretrain.keep_every)
        model = pretrain.build_model(settings["capture"], pairs, job.seed, training.tasks, training.bert)
        pretrain.train(model, pairs, settings["batches"], training, folder, job.seed)

    return run.stage(pretrain, settings, [run.place("region_store")], table, make, name=name)


def embedded(run: Run, job: Job) -> dict[str, EmbeddedSet]:
    """Return val, test and gallery as a job's model embeds them; what notebook 04's does is found."""
    source = trained(run, job)
    if source == run.place("pretrain"):
        return evaluation.embedded(run)
    model = Capture.from_pretrained(source).to(pick_device()).eval()
    words = stages.caption_words(run) if job.name == "capture" else None
    levels = {method.level for method in methods_of(job).values()}
    sets = evaluation.embed(run, model, words, job.variant, levels)
    if job.name == "capture":
        evaluation.add_foundation(run, sets)
    return sets


def evaluated(run: Run, job: Job) -> Path:
    """Return the folder with a job's figures on test, as val has chosen."""
    source = trained(run, job)
    profile = run.profile

    def make(folder: Path) -> None:
        sets = embedded(run, job)
        evaluation.evaluate(run, folder, sets, ranking.possible(methods_of(job), sets["gallery"]), {})

    settings = {"retrieval": profile.retrieval, "instances": profile.instances, "job": job, "batches": profile.batches}
    upstream = [source, run.place("region_store")]
    if source == run.place("pretrain"):
        embedded(run, job)  # made before it is read
        upstream.append(run.place("embeddings"))
    if job.name == "capture" and profile.retrieval.embedder:
        upstream.append(evaluation.foundation_folder(run))
    read = stages.samples(run, *evaluation.SPLITS)[READ]
    name = re.sub("[/ ]", "-", f"{job.name} {digest(repr(job).encode())}")
    return run.stage(sys.modules[__name__], settings, upstream, read, make, name=f"comparison/{name}")


def untrained(run: Run) -> Path:
    """Return the folder with the figures of all that needs no CAPTURE, chance among them."""
    stages.pretrained(run)
    depth = run.profile.retrieval.depth
    words = stages.caption_words(run)

    def make(folder: Path) -> None:
        sets = evaluation.embed(run, None, words)
        evaluation.add_foundation(run, sets)
        rankings = {}
        if comparable(run):
            popular = evaluation.popularity(sets["val"], sets["gallery"], depth)
            rankings["popularity"] = [popular] * len(sets["test"].ids)
            rankings["chance"] = evaluation.chance(sets["test"], sets["gallery"], depth, run.seed)
        evaluation.evaluate(run, folder, sets, ranking.possible(METHODS, sets["gallery"]), rankings)

    settings = {"retrieval": run.profile.retrieval, "instances": run.profile.instances}
    read = stages.samples(run)[READ]
    upstream = [run.place("region_store")]
    if run.profile.retrieval.embedder:
        upstream.append(evaluation.foundation_folder(run))
    return run.stage(sys.modules[__name__], settings, upstream, read, make, name="comparison/untrained")


def methods_of(job: Job) -> dict[str, Method]:
    """Return the ways to search with a model: per level as val chooses, and by the paper's product."""
    name = job.name
    representations = job.variant.representations
    if name == "capture":
        return {method: METHODS[method] for method in METHODS if method.startswith("capture")}
    if name.startswith("ablation/"):
        return {name: Method("instance", representations), f"{name}, product": Method("instance", ("product",))}
    of_images = tuple(one for one in representations if "region_token" not in one)  # a photo has no region of its own
    methods = {f"{name}/instance": Method("instance", representations), f"{name}/image": Method("image", of_images)}
    if name == "dual-encoder":
        methods["image-stream"] = Method("instance", ("region_contrastive",))
        methods["text-stream"] = Method("image", ("text_contrastive",))
    return methods


def choices(run: Run) -> dict[str, dict]:
    """Return what val chose for each method of notebook 05, by name; nothing without queries or gallery."""
    if stages.samples(run, "gallery").empty or stages.samples(run, "val", "test").empty:
        return {}
    of_capture = evaluation.read_chosen(evaluated(run, capture(run))) if stages.pretrained(run).enough else {}
    return evaluation.read_chosen(untrained(run)) | of_capture


@dataclass(frozen=True)
class Results:
    """What a comparison found, by method and in each for every training."""

    scores: dict[str, list[pd.DataFrame]]  # the figures of every query of test
    boxes: dict[str, list[pd.DataFrame]]  # those of every true box
    chosen: dict[str, list[dict]]  # what val chose


def compared(run: Run) -> Results:
    """Return the figures of every method on test; nothing where a split lacks photos or labels."""
    results = Results({}, {}, {})
    if comparable(run):
        jobs = [*finals(run), *ablated(run)] if trainable(run) else []
        for folder in [untrained(run), *(evaluated(run, job) for job in jobs)]:
            collect(folder, results)
    return results


def compared_with_captions(run: Run) -> Results:
    """Return the figures of CAPTURE and of what needs none, where captions taught the regions: `NAME + captions`."""
    run = run.taught()
    results = Results({}, {}, {})
    if comparable(run) and stages.caption_words(run) is not None:
        jobs = finals(run, "capture") if stages.pretrained(run).enough else []
        for folder in [untrained(run), *(evaluated(run, job) for job in jobs)]:
            collect(folder, results, " + captions")
    return results


def collect(folder: Path, results: Results, suffix: str = "") -> None:
    """Add what an evaluation wrote to results; with a suffix to names, only what reads region features."""
    for name, found in (("scores", results.scores), ("boxes", results.boxes)):
        file = folder / f"{name}.parquet"
        tables = pd.read_parquet(file).groupby("method", sort=False) if file.is_file() else ()
        for method, rows in tables:
            if not suffix or method not in BLIND:
                found.setdefault(method + suffix, []).append(rows.droplevel("method"))
    for method, row in evaluation.read_chosen(folder).items():
        if not suffix or method not in BLIND:
            results.chosen.setdefault(method + suffix, []).append(row)


def comparable(run: Run) -> bool:
    """Return whether there are labelled queries in val and test, and a gallery."""
    return all(any(map(len, stages.samples(run, split)["labels"])) for split in evaluation.SPLITS)


def trainable(run: Run) -> bool:
    """Return whether train has enough pairs, with captions, to train CAPTURE and its rivals."""
    captions = list(stages.train_samples(run)["caption"])
    return len(captions) >= stages.MIN_PAIRS and carry_text(captions)


def searched(run: Run, name: str) -> list[Job]:
    """Return the short trainings of a model by which val chooses its learning rate; one needs no training."""
    settings = run.profile.comparison
    variant = variants.baselines(run.profile.capture)[name]
    return [Job(name, variant, settings.epochs, rate, run.seed) for rate in settings.rates]


def models(run: Run) -> list[str]:
    """Return the names of CAPTURE and, where the profile trains them, of its rivals."""
    names = list(variants.baselines(run.profile.capture))
    return names if run.profile.comparison.rivals else ["capture"]


def finals(run: Run, only: str = "") -> list[Job]:
    """Return CAPTURE and its baselines, or one of them, in full length, with every seed, at the rate of val."""
    def figure_on_val(job: Job) -> float:
        read = "capture-chosen" if job.name == "capture" else job.name  # the model alone, not what stands beside it
        return evaluation.read_chosen(evaluated(run, job))[f"{read}/instance"]["val"]

    jobs = []
    for name in [only] if only else models(run):
        tried = searched(run, name)
        best = max(tried, key=figure_on_val) if len(tried) > 1 else tried[0]
        for seed in range(run.seed, run.seed + run.profile.comparison.seeds):
            jobs.append(replace(best, epochs=run.profile.pretrain.epochs, seed=seed))
    return jobs


def ablated(run: Run) -> list[Job]:
    """Return the ablations of the profile, with every seed."""
    settings = run.profile.comparison
    seeds = range(run.seed, run.seed + settings.ablation_seeds)
    jobs = []
    for group in variants.ablations(run.profile.capture).values():
        for name, variant in group.items():
            if name in settings.ablations or not settings.ablations:
                jobs += [Job(f"ablation/{name}", variant, settings.epochs, 1.0, seed) for seed in seeds]
    return jobs


def varied_captions(run: Run) -> dict[str, Run]:
    """Return other ways in which captions may teach the encoder, by what differs; only where several are trained."""
    if run.profile.comparison.seeds == 1:
        return {}
    brief = replace(run.profile.retrieval, text_dimensions=64)
    brief = replace(run, profile=replace(run.profile, retrieval=brief))
    others = {1.0, 3.0, 10.0} - {run.profile.encoder.caption_weight}
    weights = {f"weight {weight:g}": run.taught(caption_weight=weight) for weight in sorted(others)}
    return {"train": run.taught(captions="train"), **weights, "hard targets": run.taught(caption_spread=0.0),
            "text vectors of 64": brief.taught()}
