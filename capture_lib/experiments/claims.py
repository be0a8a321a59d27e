"""What the paper claims, what was measured here, and the verdict (notebook 07).

A claim is one comparison of two methods or several: paired effects over the test queries with 95%
intervals and p values, adjusted by Holm's method over all comparisons. A comparison holds when its
effect points the claimed way and its adjusted p value is below 5%. A claim is reproduced when all
that was measured of it holds, partly when some does, not reproduced when nothing does or the main
comparison speaks against it.
"""

import json
from dataclasses import asdict, dataclass
from itertools import combinations
from math import erfc, sqrt
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.experiments.significance import FLIPS, Noise, holm, p_values, pooled_noise
from capture_lib.retrieval.statistics import paired_difference

FIGURE = ("standard", "mAP@10")  # that claims about retrieval are tested by
LEVEL = 0.05  # of the adjusted p value
BETTER, NOT_BETTER = "better", "not better"
HOLDS, OPEN, CONTRADICTED, NOT_MEASURED = "holds", "not shown", "contradicted", "not measured"
RULES = {BETTER: f"holds if better, with p < {LEVEL} after Holm",
         NOT_BETTER: f"holds unless better, with p < {LEVEL} after Holm"}
UNTRAINED = ("image-only", "text-only", "late-fusion", "popularity", "chance")
MIN_RECALL = 0.8  # the paper gives no threshold for its proposals; ours
UNMEASURED = dict.fromkeys(("effect", "low", "high", "p", "p_raw", "queries", "trainings"))
Scores = dict[str, list[pd.DataFrame]]  # by method, for each training the figures of every query


@dataclass(frozen=True)
class Comparison:
    """One method against another, on all queries or on those of one combination.

    `wanted` NOT_BETTER: the claim is that the first is no better ("does not help"). It holds unless
    the first is significantly better: what helps too little to be seen here counts as no help.
    """

    better: str
    baseline: str
    among: str = ""
    wanted: str = BETTER

    def __str__(self) -> str:
        return f"{self.better} − {self.baseline}" + (f" ({self.among})" if self.among else "")


RECALL = Comparison("recall@0.5 of the proposals", f"{MIN_RECALL} (our threshold)")


@dataclass(frozen=True)
class Claim:
    """A claim and how it is tested."""

    claim: str
    source: str  # where it stands
    note: str  # what it depends on
    comparisons: tuple[Comparison, ...]  # the main one first
    paper: str | None = None  # the paper's figure, where one is known


# ---- testing


def ledger(scores: Scores, combination: np.ndarray, proposals: dict | None, command: str) -> list[dict]:
    """Return a row for each claim: verdict, note, comparisons with effects, intervals, p values.

    A row's own effect, low, high, p and p_raw are those of its first comparison that was measured.

    Args:
        scores: figures of every query by method, with the same queries in all tables.
        combination: (Q,) the kind of each query (`catalog.table.SEEN` …); empty where `scores` is.
        proposals: what notebook 03 measured of the proposals, if it did.
        command: what makes these figures again.
    """
    results = measure(scores, combination, proposals)
    rows = []
    for claim in CLAIMS:
        own = [results[comparison] for comparison in claim.comparisons]
        measured = [result for result in own if result["outcome"] != NOT_MEASURED]
        main = (measured or own)[0]
        rows.append({
            "claim": claim.claim, "source": claim.source, "paper": claim.paper, "note": claim.note,
            **{key: main[key] for key in ("compared", "effect", "low", "high", "p", "p_raw")},
            "verdict": verdict([result["outcome"] for result in own]), "command": command,
            "rule": RULES[claim.comparisons[0].wanted], "comparisons": own})
    return rows


def measure(scores: Scores, combination: np.ndarray, proposals: dict | None) -> dict[Comparison, dict]:
    """Return each comparison's effect, interval, p value (raw and adjusted) and outcome."""
    planned = [comparison for claim in CLAIMS for comparison in claim.comparisons]
    pairs = {}
    for comparison in planned:
        pair = paired_scores(comparison, scores, combination)
        if pair is not None:
            pairs[comparison] = pair

    # p values share the training noise of all models, by kind of queries
    kinds = [(comparison.among, together) for comparison, (_, _, together) in pairs.items()]
    noise = {kind: training_noise(scores, combination, *kind) for kind in set(kinds)}
    raw = p_values(list(pairs.values()), [noise[kind] for kind in kinds])
    found = {}
    for (comparison, (a, b, together)), p in zip(pairs.items(), raw, strict=True):
        effect = paired_difference(a, b, together=together)
        found[comparison] = {"effect": effect["value"], "low": effect["low"], "high": effect["high"],
                             "p_raw": float(p), "queries": a.shape[1], "trainings": [len(a), len(b)]}
    if proposals and proposals.get("recall@0.5"):  # nothing where no photo has true boxes
        found[RECALL] = recall_effect(proposals)
    # adjust all p values as one family
    adjusted = holm([result["p_raw"] for result in found.values()])
    for result, p in zip(found.values(), adjusted, strict=True):
        result["p"] = float(p)
    rows = {}
    for comparison in planned:
        result = found.get(comparison)
        rows[comparison] = {"compared": str(comparison), **asdict(comparison), **(result or UNMEASURED),
                            "outcome": outcome(comparison, result)}
    return rows


def paired_scores(comparison: Comparison, scores: Scores, combination: np.ndarray
                  ) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Return both sides, (S, Q) and (T, Q), and whether they are one model read in two ways.

    None where a side is missing, or where both are the same though one is to be better: in a small
    profile two layer counts may be one.
    """
    if comparison.better not in scores or comparison.baseline not in scores:
        return None
    a = figures(scores[comparison.better], combination, comparison.among)
    b = figures(scores[comparison.baseline], combination, comparison.among)
    if a.shape[1] == 0 or comparison.wanted == BETTER and np.array_equal(a, b):
        return None
    return a, b, training_of(comparison.better) == training_of(comparison.baseline)


def figures(tables: list[pd.DataFrame], combination: np.ndarray, among: str) -> np.ndarray:
    """Return the figure of the queries of one combination ("": all) for each training: (S, Q)."""
    values = np.stack([table[FIGURE] for table in tables])
    return values[:, combination == among] if among else values


def training_noise(scores: Scores, combination: np.ndarray, among: str, together: bool) -> Noise | None:
    """Return the training noise of all models on a kind of queries.

    `together`: the noise of the differences between two ways to read a model.
    """
    models: dict[str, list[np.ndarray]] = {}
    for name, tables in scores.items():
        models.setdefault(training_of(name), []).append(figures(tables, combination, among))
    if together:
        models = {name: [a - b for a, b in combinations(ways, 2)] for name, ways in models.items()}
    return pooled_noise([np.stack(ways) for ways in models.values() if ways])


def training_of(method: str) -> str:
    """Return the training of a method: `capture/instance` and `capture-chosen/image` share one."""
    if method.startswith("ablation/"):
        return method.removesuffix(", product")
    if method in ("image-stream", "text-stream"):
        return "dual-encoder"
    return method.split("/")[0].removesuffix("-chosen")


def recall_effect(proposals: dict) -> dict:
    """Return recall@0.5 above our threshold, with the p value of a normal distribution."""
    recall = proposals["recall@0.5"]
    effect = recall["value"] - MIN_RECALL
    error = (recall["high"] - recall["low"]) / (2 * 1.96)
    p = erfc(abs(effect) / max(error, 1e-9) / sqrt(2))
    return {"effect": effect, "low": recall["low"] - MIN_RECALL, "high": recall["high"] - MIN_RECALL,
            "p_raw": max(p, 1 / (FLIPS + 1)), "queries": proposals.get("photos"), "trainings": [1, 1]}


def outcome(comparison: Comparison, result: dict | None) -> str:
    """Return whether a comparison holds, by its effect and its adjusted p value."""
    if result is None:
        return NOT_MEASURED
    significant = result["p"] < LEVEL
    above = result["effect"] > 0
    if comparison.wanted == NOT_BETTER:
        return CONTRADICTED if significant and above else HOLDS
    if not significant:
        return OPEN
    return HOLDS if above else CONTRADICTED


def verdict(outcomes: list[str]) -> str:
    """Return the verdict on a claim by the outcomes of its comparisons, the main one first."""
    measured = [outcome for outcome in outcomes if outcome != NOT_MEASURED]
    if not measured:
        return "not testable here"
    if measured[0] == CONTRADICTED or HOLDS not in measured:
        return "not reproduced"
    return "reproduced" if set(measured) == {HOLDS} else "partly"


def points(result: dict) -> str:
    """Return an effect in percentage points: `+2.1 [−0.3, +4.5]`; "—" where there is none."""
    if result["effect"] is None:
        return "—"
    text = "{effect:+.1f} [{low:+.1f}, {high:+.1f}]"
    values = {key: 100 * result[key] for key in ("effect", "low", "high")}
    return text.format(**values).replace("-", "−")


def read_claims() -> tuple[Claim, ...]:
    """Return the claims of `claims.json`, which stands beside this module."""
    claims = []
    for row in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")):
        among = row.pop("among", "")
        wanted = row.pop("wanted", BETTER)
        pairs = row.pop("comparisons")
        claims.append(Claim(comparisons=tuple(Comparison(*pair, among, wanted) for pair in pairs), **row))
    return tuple(claims)


CLAIMS = read_claims()
