"""What is claimed, by the paper and by us, what was measured here, and the verdict (notebook 06).

A claim of `claims.json` compares pairs of methods. "of": whose it is; "among": over queries of one combination
alone; "figure": another than standard mAP@10; "wanted": "not better" where something is said not to help.
"""

import json
from collections.abc import Iterable
from itertools import combinations
from math import erfc, sqrt
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.experiments.significance import FLIPS, holm, p_values, pooled_noise
from capture_lib.retrieval.statistics import paired_difference

QUERIES, BOXES, RECALL = "standard mAP@10", "instance mAP@10", "recall@0.5"  # figures
FIGURE = ("standard", "mAP@10")
LEVEL = 0.05  # of p values, adjusted by Holm's method
NO_HELP = 0.01  # what helps less doesn't help
VISIBLE = 0.05  # the effect that a test must be able to see; this and the next two are ours
MIN_QUERIES = 20
MIN_STEPS = 200  # of a training whose model is judged
MIN_RECALL = 0.8  # the paper gives no threshold for its proposals; ours
VERDICTS = REPRODUCED, CONTRADICTED, NOT_SHOWN, NOT_TESTABLE = (
    "reproduced", "contradicted", "not shown", "not testable at this size")
BETTER, NOT_BETTER = "better", "not better"
UNTRAINED = ("image-only", "text-only", "late-fusion", "popularity", "chance")
MEASURES = ("effect", "low", "high", "p", "p_raw", "seen", "queries", "trainings", "steps")
CLAIMS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
Scores = dict[str, list[pd.DataFrame]]  # by method, for each training the figures of every query, or every true box


def outcome(result: dict) -> tuple[str, str]:
    """Return the verdict of a comparison, and what is lacking where it is not testable; the first rule that fits:

    1. Not testable: fewer than `MIN_QUERIES`, or a model that was trained for fewer than `MIN_STEPS`.
    2. Reproduced or contradicted: p < `LEVEL` after Holm, and the effect points as claimed, or the other way.
    3. Reproduced: something is said not to help, and the interval ends below `NO_HELP`.
    4. Not testable: an effect of `VISIBLE` could not have been seen, for half the interval is wider.
    5. Not shown.
    """
    effect, steps = result["effect"], result["steps"]
    if effect is None:
        return NOT_TESTABLE, "nothing was measured"
    if result["queries"] < MIN_QUERIES:
        return NOT_TESTABLE, f"{result['queries']} queries, at least {MIN_QUERIES} are needed"
    if steps is not None and steps < MIN_STEPS:
        return NOT_TESTABLE, f"{steps} training steps, at least {MIN_STEPS} are needed"
    if result["p"] < LEVEL:
        return REPRODUCED if (effect > 0) == (result["wanted"] == BETTER) else CONTRADICTED, ""
    if result["wanted"] == NOT_BETTER and result["high"] < NO_HELP:
        return REPRODUCED, ""
    if result["seen"] > VISIBLE:
        smallest = f"{100 * result['seen']:.1f} points"
        return NOT_TESTABLE, f"an effect below {smallest} could not have been seen"
    return NOT_SHOWN, ""


def ledger(scores: Scores, boxes: Scores, combination: np.ndarray, proposals: dict | None, steps: dict[str, int],
           command: str) -> list[dict]:
    """Return a row for each claim: the figures and the verdict of the first comparison that was measured, and all.

    `combination`: the kind of each query (Q,); `proposals`: what notebook 03 measured, if it did; `steps`: of an
    "ablation", and of a training in "full".
    """
    rows = [plan(claim) | {"command": command} for claim in CLAIMS]
    results = [result for row in rows for result in row["comparisons"]]
    measure(results, scores, boxes, combination, steps)
    if proposals and proposals.get(RECALL):
        for result in results:
            if result["figure"] == RECALL:
                result |= above_threshold(proposals[RECALL]) | {"queries": proposals["photos"]}

    # adjust the p values: the claims of the paper are one family, ours another
    for owner in ("paper", "ours"):
        family = [result for row in rows if row["of"] == owner for result in row["comparisons"]
                  if result["effect"] is not None]
        for result, p in zip(family, holm([result["p_raw"] for result in family]), strict=True):
            result |= {"p": float(p), "seen": (result["high"] - result["low"]) / 2}

    # the first that was measured decides; the others agree or not
    for result in results:
        result["outcome"], result["lacking"] = outcome(result)
    for row in rows:
        measured = [result for result in row["comparisons"] if result["effect"] is not None]
        first, *others = measured or row["comparisons"][:1]
        row |= {key: first[key] for key in ("compared", "figure", "wanted", "lacking", *MEASURES)}
        row["verdict"] = first["outcome"]
        same = sum(other["outcome"] == first["outcome"] for other in others)
        row["agree"] = f"{same} of {len(others)}" if others else "—"
    return rows


def plan(claim: dict) -> dict:
    """Return a claim's row with its comparisons, of which nothing is measured yet."""
    settings = {"figure": QUERIES, "among": "", "wanted": BETTER} | claim
    where = settings["among"] or settings["figure"].replace(QUERIES, "")
    comparisons = []
    for better, baseline in claim["comparisons"]:
        name = f"{better} − {baseline}" + f" ({where})" * bool(where)
        result = {"compared": name, "better": better, "baseline": baseline}
        result |= {key: settings[key] for key in ("figure", "among", "wanted")}
        comparisons.append(result | dict.fromkeys(MEASURES))
    return {key: claim.get(key) for key in ("of", "claim", "source", "paper", "note")} | {"comparisons": comparisons}


def above_threshold(recall: dict[str, float]) -> dict[str, float]:
    """Return how far a recall lies above `MIN_RECALL`, with the p value of a normal distribution."""
    low, value, high = (recall[key] - MIN_RECALL for key in ("low", "value", "high"))
    error = max((high - low) / (2 * 1.96), 1e-9)
    p = max(erfc(abs(value) / error / sqrt(2)), 1 / (FLIPS + 1))
    return {"effect": value, "low": low, "high": high, "p_raw": p}


def differences(scores: Scores, base: str, names: Iterable[str]) -> dict[str, dict]:
    """Return the paired difference of each method to `base`; without `base` itself and what was not measured."""
    found = {}
    for name in names:
        if name != base and name in scores and base in scores:
            a, b = ([table[FIGURE] for table in scores[method]] for method in (name, base))
            found[name] = paired_difference(a, b, together=training_of(name) == training_of(base))
    return found


def measure(results: list[dict], scores: Scores, boxes: Scores, combination: np.ndarray, steps: dict[str, int]) -> None:
    """Add effect, interval and p value to each comparison whose two methods are there."""
    every = {QUERIES: {name: np.stack([table[FIGURE] for table in tables]) for name, tables in scores.items()},
             BOXES: {name: np.stack([per_photo(table) for table in tables]) for name, tables in boxes.items()}}
    pairs, noise, measured = [], [], []
    for result in results:
        figures = every.get(result["figure"], {})
        if result["better"] not in figures or result["baseline"] not in figures:
            continue
        if result["among"]:
            figures = {name: values[:, combination == result["among"]] for name, values in figures.items()}
        a = figures[result["better"]]  # (S, Q)
        b = figures[result["baseline"]]
        # in a small profile, two layer counts may be one model: then neither is better
        if a.shape[1] == 0 or result["wanted"] == BETTER and np.array_equal(a, b):
            continue
        together = training_of(result["better"]) == training_of(result["baseline"])
        effect = paired_difference(a, b, together=together)
        kinds = {"ablation" if name.startswith("ablation/") else "full"
                 for name in (result["better"], result["baseline"]) if not name.startswith(UNTRAINED)}
        result |= {"effect": effect["value"], "low": effect["low"], "high": effect["high"],
                   "queries": a.shape[1], "trainings": [len(a), len(b)],
                   "steps": min((steps[kind] for kind in kinds), default=None)}
        pairs.append((a, b, together))
        measured.append(result)

        # the training noise of all models; together: of differences between ways to read one
        models: dict[str, list[np.ndarray]] = {}
        for name, values in figures.items():
            models.setdefault(training_of(name), []).append(values)
        if together:
            models = {name: [a - b for a, b in combinations(ways, 2)] for name, ways in models.items()}
        noise.append(pooled_noise([np.stack(ways) for ways in models.values() if ways]))
    for result, p in zip(measured, p_values(pairs, noise), strict=True):
        result["p_raw"] = float(p)


def per_photo(boxes: pd.DataFrame) -> np.ndarray:
    """Return a figure a photo (P,) whose mean is that of all boxes: the boxes of one photo are no separate trials."""
    photos = boxes.groupby("photo")["mAP@10"].sum()
    return photos.to_numpy() * len(photos) / len(boxes)


def training_of(method: str) -> str:
    """Return the training of a method: `capture/instance` and `capture-chosen/image` share one."""
    read, taught, _ = method.partition(" + captions")
    if read in ("image-stream", "text-stream"):
        return "dual-encoder"
    if read.startswith("ablation/"):
        return read.removesuffix(", product")
    name = read.split("/")[0]
    return ("capture" if name.startswith("capture-") else name) + taught
