"""Leave out one choice of the synthesis at a time and measure what that does to the detector."""

from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from capture_lib.catalog.table import Catalog
from capture_lib.proposals import composites, detector, evaluation
from capture_lib.utils import process_map, progress

ALL = "all choices"
OTHER_SEED = "all, another seed"
NONE = {"tilt": 0.0, "overlap": 0.0, "blending": False, "light": False, "shadow": False,
        "distractors": False}  # what a choice is when it is left out
THRESHOLDS = (0.5, 0.75)  # IoU
MAX_PROPOSALS = 10  # that count


@dataclass(frozen=True)
class AblationSettings:
    """Defaults of the cpu profile."""

    composites: int = 800
    steps: int = 150
    photos: int = 150  # of val
    parallel_jobs: int = 2  # detectors in training, each by a process of one thread


def variants() -> dict[str, tuple[dict, int]]:
    """Return by name the changed settings of the synthesis, and what is added to the seed."""
    rows = {ALL: ({}, 0), OTHER_SEED: ({}, 1000)}  # two that differ by chance alone
    for name, value in NONE.items():
        label = name.replace("blending", "edge blending")
        rows[f"without {label}"] = ({name: value}, 0)
    return rows | {"none of them": (NONE, 0)}


def find_products(variant: tuple[dict, int], foregrounds: Path, synthesis: composites.SynthesisSettings,
                  training: detector.DetectorSettings, paths: list[Path], seed: int) -> evaluation.Found:
    """Compose, train and search the photos, in one process of one thread and without progress."""
    torch.set_num_threads(1)
    changes, added = variant
    seed += added  # of composites and of training
    with TemporaryDirectory() as name, redirect_stdout(StringIO()):
        folder = Path(name)
        (folder / "foregrounds.npy").symlink_to(foregrounds)
        composites.make_composites(replace(synthesis, workers=0, **changes), folder, seed)
        torch.manual_seed(seed)
        detector.train(training, folder, folder, seed)
        network = detector.load(training, folder)
    return evaluation.propose(paths, network, MAX_PROPOSALS, training.search_size)


def evaluated(catalog: Catalog, settings: AblationSettings, seed: int) -> tuple[pd.DataFrame, list]:
    """Return the rows of some photos of val, and their true boxes (t, 4) as fractions."""
    rows, truth = evaluation.boxed(catalog, ("val",))
    chosen = np.random.default_rng([seed, 9]).permutation(len(rows))[:settings.photos]
    return rows.iloc[chosen], [truth[i] for i in chosen]


def hits(settings: AblationSettings, foregrounds: Path, synthesis: composites.SynthesisSettings,
         training: detector.DetectorSettings, paths: list[Path], truth: evaluation.Truth,
         seed: int) -> dict[str, list]:
    """Return `count_hits` of each variant, from the foregrounds' file and the profile's settings."""
    synthesis = replace(synthesis, composites=settings.composites)
    training = replace(training, steps=settings.steps, enlarged=(1.0,))
    work = partial(find_products, foregrounds=foregrounds.resolve(), synthesis=synthesis,
                   training=training, paths=paths, seed=seed)
    rows = variants()
    with process_map(settings.parallel_jobs) as map_over:
        found = progress(map_over(work, rows.values()), "detectors trained", len(rows))
        return {name: count_hits(photos, truth) for name, photos in zip(rows, found, strict=True)}


def count_hits(found: evaluation.Found, truth: evaluation.Truth) -> list[list[int]]:
    """Return for each photo how many true boxes its proposals meet at each of `THRESHOLDS`."""
    counts = []
    for (boxes, _), true in zip(found, truth, strict=True):
        best = evaluation.best_so_far(boxes, true, MAX_PROPOSALS)[:, -1]
        counts.append([int((best >= threshold).sum()) for threshold in THRESHOLDS])
    return counts


def table(hits: dict[str, list], totals: list[int], seed: int) -> dict[str, dict[str, dict]]:
    """Return by variant recall and its difference to all choices, with 95% intervals.

    `hits` (P, thresholds) of each variant are true boxes found, `totals` (P,) all true boxes.
    """
    rows = {}
    true = np.array(totals)
    for name, counts in hits.items():
        rows[name] = {}
        for column, threshold in enumerate(THRESHOLDS):
            met = np.array(counts)[:, column]
            more = met - np.array(hits[ALL])[:, column]  # paired, photo by photo
            rows[name][f"recall@{threshold}"] = evaluation.shares(met, true, seed)
            rows[name][f"difference@{threshold}"] = evaluation.shares(more, true, seed)
    return rows
