"""Choose CAPTURE's width and the length of its training by val, on a tenth of the pairs.

    python tests/benchmarks/bench_size.py [--profile full] [--share 0.1] [--out reports/size.json]

It needs the stages of a run of the profile, makes those that are missing, and goes on where it stopped. The committed
record is reports/reference/size.json.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.experiments import evaluation, stages
from capture_lib.experiments.run import Run, open_run
from capture_lib.model.capture import Capture
from capture_lib.model.config import CaptureSettings
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import EmbeddedSet, embed_samples
from capture_lib.retrieval.statistics import RESAMPLES, bootstrap, paired_difference
from capture_lib.training import pretrain
from capture_lib.utils import REPORTS, InputError, explain, origin, pick_device, say, write_json

LEVEL = "instance"
METHOD = ranking.METHODS["capture-chosen/instance"]
WIDTHS = (128, 192, 256)
EPOCHS = (3, 6)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train each size, evaluate it on val and write one JSON; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="full", help="default: full")
    parser.add_argument("--share", type=float, default=0.1, help="of the training pairs; default: a tenth")
    parser.add_argument("--out", type=Path, default=REPORTS / "size.json", help="default: reports/size.json")
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1:
        parser.error(f"--share {options.share}: give a share above 0 and up to 1")
    if not options.out.resolve().parent.is_dir():
        parser.error(f"--out {options.out}: its folder is not there; make it first")
    try:
        compare(options.profile, options.share, options.out)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        line, code = explain(error)
        print(f"{parser.prog}: {line}", file=sys.stderr)
        return code


def compare(profile: str, share: float, out: Path) -> None:
    """Train and evaluate every size on a share of the pairs, and write what val says."""
    run = open_run(profile)
    table = some_pairs(run, share)

    # the figures of val's queries, by size
    found = {}
    for epochs in EPOCHS:
        for width in WIDTHS:
            folder = trained(run, table, resized(run.profile.capture, width), epochs)
            representation, figures = on_val(run, folder)
            found[width, epochs] = figures
            say(f"width {width}, {epochs} epochs: {100 * figures.mean():.1f} on val, by {representation}")

    # each with its interval, and its difference to the smallest, trained shortest
    first = next(iter(found.values()))
    rows = []
    for (width, epochs), figures in found.items():
        rows.append({"width": width, "epochs": epochs, "mAP@10": bootstrap(figures[:, None], RESAMPLES, run.seed)[0],
                     "difference": paired_difference(figures, first, seed=run.seed)})
    write_json(out, {"profile": profile, "pairs": len(table), "sizes": rows, "provenance": origin()})
    print(out)


def some_pairs(run: Run, share: float) -> pd.DataFrame:
    """Return a share of the training pairs, at random."""
    stages.pretrained(run)
    table = stages.train_samples(run)[["sample_id", "split", "image", "caption"]]
    order = np.random.default_rng([run.seed, 12]).permutation(len(table))
    count = round(share * len(table))
    if count < stages.MIN_PAIRS:
        raise InputError(f"--share {share}: {count} pairs are too few to train CAPTURE; {stages.MIN_PAIRS} are needed")
    return table.iloc[np.sort(order[:count])]


def resized(settings: CaptureSettings, width: int) -> CaptureSettings:
    """Return the sizes of a model of another width: its feed-forward layers and outputs grow with it."""
    scaled = {name: getattr(settings, name) * width // settings.width
              for name in ("text_ffn", "visual_ffn", "cross_width", "output")}
    return replace(settings, width=width, **scaled)


def trained(run: Run, table: pd.DataFrame, capture: CaptureSettings, epochs: int) -> Path:
    """Return the folder of a model of some size, trained on the pairs of a table."""
    training = replace(run.profile.pretrain, epochs=epochs)

    def make(folder: Path) -> None:
        pairs = evaluation.pairs_of(run, table)
        model = pretrain.build_model(capture, pairs, run.seed, training.tasks, training.bert)
        pretrain.train(model, pairs, run.profile.batches, training, folder, run.seed)

    settings = {"batches": run.profile.batches, "capture": capture, "pretrain": replace(training, keep_every=0)}
    name = f"variants/size-{len(table)}-{capture.width}-{epochs}"
    return run.stage(pretrain, settings, [run.place("region_store")], table, make, name=name)


def on_val(run: Run, folder: Path) -> tuple[str, np.ndarray]:
    """Return the representation that does best on val, and the mAP@10 of every query (Q,)."""
    model = Capture.from_pretrained(folder).to(pick_device()).eval()
    val, gallery = (embedded(run, model, split) for split in ("val", "gallery"))
    depth = run.profile.retrieval.depth
    best, _ = ranking.choose(METHOD, val, gallery, depth)
    scores = ranking.score(ranking.rank(val, gallery, LEVEL, best, depth), val, gallery)
    return best, scores["standard", "mAP@10"].to_numpy()


def embedded(run: Run, model: Capture, split: str) -> EmbeddedSet:
    """Return a split as a model's vectors."""
    table = stages.samples(run, split)
    pairs = evaluation.pairs_of(run, table)
    return embed_samples(table, pairs, model, None, run.profile.instances, split == "gallery", (LEVEL,))


if __name__ == "__main__":
    raise SystemExit(main())
