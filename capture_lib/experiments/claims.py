"""What the paper claims, what was measured here, and the verdict (notebook 07).

Each claim of `claims.json` compares pairs of methods, the main pair first; "among": over queries of
one combination alone; "wanted": "not better" where the claim is that something doesn't help.
"""

import json
from itertools import combinations
from math import erfc, sqrt
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.experiments.significance import FLIPS, holm, p_values, pooled_noise
from capture_lib.retrieval.statistics import paired_difference

FIGURE = ("standard", "mAP@10")  # that claims about retrieval are tested by
LEVEL = 0.05  # of the adjusted p value
BETTER, NOT_BETTER = "better", "not better"
HOLDS, OPEN, CONTRADICTED, NOT_MEASURED = "holds", "not shown", "contradicted", "not measured"
RULES = {BETTER: f"holds if better, with p < {LEVEL} after Holm",
         NOT_BETTER: f"holds unless better, with p < {LEVEL} after Holm"}
RECALL = "recall@0.5 of the proposals"
MIN_RECALL = 0.8  # the paper gives no threshold for its proposals; ours
MEASURES = ("effect", "low", "high", "p", "p_raw")
CLAIMS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
Scores = dict[str, list[pd.DataFrame]]  # by method, for each training the figures of every query


def ledger(scores: Scores, combination: np.ndarray, proposals: dict | None, command: str) -> list[dict]:
    """Return a row for each claim: verdict, comparisons, the figures of the first that was measured.

    `combination`: the kind of each query (Q,); `proposals`: what notebook 03 measured, if it did.
    """
    rows = []
    for claim in CLAIMS:
        wanted = claim.get("wanted", BETTER)
        among = claim.get("among", "")
        row = {key: claim.get(key) for key in ("claim", "source", "paper", "note")}
        rows.append(row | {"command": command, "rule": RULES[wanted], "comparisons": []})
        for better, baseline in claim["comparisons"]:
            compared = f"{better} − {baseline}" + (f" ({among})" if among else "")
            result = {"compared": compared, "better": better, "baseline": baseline, "among": among, "wanted": wanted}
            rows[-1]["comparisons"].append(result | dict.fromkeys((*MEASURES, "queries", "trainings")))

    # measure them, and adjust all p values as one family
    planned = [result for row in rows for result in row["comparisons"]]
    measure(planned, scores, combination)
    for result in planned:
        if result["better"] == RECALL and proposals and proposals.get("recall@0.5"):
            # above our threshold, with the p value of a normal distribution
            low, value, high = (proposals["recall@0.5"][key] - MIN_RECALL for key in ("low", "value", "high"))
            error = max((high - low) / (2 * 1.96), 1e-9)
            p = max(erfc(abs(value) / error / sqrt(2)), 1 / (FLIPS + 1))
            result |= {"effect": value, "low": low, "high": high, "p_raw": p, "queries": proposals.get("photos"),
                       "trainings": [1, 1]}
    measured = [result for result in planned if result["effect"] is not None]
    for result, p in zip(measured, holm([result["p_raw"] for result in measured]), strict=True):
        result["p"] = float(p)
    for result in planned:
        result["outcome"] = outcome(result["wanted"], result["effect"], result["p"])
    for row in rows:
        row["verdict"] = verdict([result["outcome"] for result in row["comparisons"]])
        shown = next((result for result in row["comparisons"] if result in measured), row["comparisons"][0])
        row |= {key: shown[key] for key in ("compared", *MEASURES)}
    return rows


def measure(results: list[dict], scores: Scores, combination: np.ndarray) -> None:
    """Add effect, interval and p value to each comparison whose two methods are there."""
    every = {name: np.stack([table[FIGURE] for table in tables]) for name, tables in scores.items()}  # (S, Q)
    pairs, noise, measured = [], [], []
    for result in results:
        if result["better"] not in scores or result["baseline"] not in scores:
            continue
        chosen = combination == result["among"] if result["among"] else slice(None)
        figures = {name: values[:, chosen] for name, values in every.items()}
        a = figures[result["better"]]
        b = figures[result["baseline"]]
        # in a small profile, two layer counts may be one model: then neither is better
        if a.shape[1] == 0 or result["wanted"] == BETTER and np.array_equal(a, b):
            continue
        together = training_of(result["better"]) == training_of(result["baseline"])
        effect = paired_difference(a, b, together=together)
        result |= {"effect": effect["value"], "low": effect["low"], "high": effect["high"],
                   "queries": a.shape[1], "trainings": [len(a), len(b)]}
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


def training_of(method: str) -> str:
    """Return the training of a method: `capture/instance` and `capture-chosen/image` share one."""
    if method in ("image-stream", "text-stream"):
        return "dual-encoder"
    if method.startswith("ablation/"):
        return method.removesuffix(", product")
    return method.split("/")[0].removesuffix("-chosen")


def outcome(wanted: str, effect: float | None, p: float | None) -> str:
    """Return whether a comparison holds, by its effect and its adjusted p value."""
    if effect is None:
        return NOT_MEASURED
    if wanted == NOT_BETTER:
        return CONTRADICTED if p < LEVEL and effect > 0 else HOLDS
    if p >= LEVEL:
        return OPEN
    return HOLDS if effect > 0 else CONTRADICTED


def verdict(outcomes: list[str]) -> str:
    """Return the verdict on a claim by the outcomes of its comparisons, the main one first."""
    measured = [outcome for outcome in outcomes if outcome != NOT_MEASURED]
    if not measured:
        return "not testable here"
    if measured[0] == CONTRADICTED or HOLDS not in measured:
        return "not reproduced"
    return "reproduced" if set(measured) == {HOLDS} else "partly"
