"""What the paper claims, what was measured here, and the verdict (notebook 07).

A claim is one comparison of two methods or several: paired effects over the test queries with 95%
intervals and p values, adjusted by Holm's method over all comparisons. A comparison holds when its
effect points the claimed way and its adjusted p value is below 5%. A claim is reproduced when all
that was measured of it holds, partly when some does, not reproduced when nothing does or the main
comparison speaks against it.
"""

from dataclasses import asdict, dataclass
from itertools import combinations
from math import erfc, sqrt

import numpy as np
import pandas as pd

from capture_lib.catalog.table import HELD_OUT, UNSEEN
from capture_lib.retrieval.statistics import FLIPS, Noise, holm, p_values, paired_difference, pooled_noise

FIGURE = ("standard", "mAP@10")  # that claims about retrieval are tested by
LEVEL = 0.05  # of the adjusted p value
BETTER, NOT_BETTER = "better", "not better"
HOLDS, OPEN, CONTRADICTED, NOT_MEASURED = "holds", "not shown", "contradicted", "not measured"
RULES = {BETTER: f"holds if better, with p < {LEVEL} after Holm",
         NOT_BETTER: f"holds unless better, with p < {LEVEL} after Holm"}
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


@dataclass(frozen=True)
class Claim:
    """A claim and how it is tested; the main comparison first."""

    claim: str
    source: str  # where it stands
    comparisons: tuple[Comparison, ...]
    note: str  # what it depends on
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
    results, rows = measure(scores, combination, proposals), []
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
    pairs = {comparison: paired_scores(comparison, scores, combination) for comparison in planned}
    pairs = {comparison: pair for comparison, pair in pairs.items() if pair is not None}
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
    effect, error = recall["value"] - MIN_RECALL, (recall["high"] - recall["low"]) / (2 * 1.96)
    p = erfc(abs(effect) / max(error, 1e-9) / sqrt(2))
    return {"effect": effect, "low": recall["low"] - MIN_RECALL, "high": recall["high"] - MIN_RECALL,
            "p_raw": max(p, 1 / (FLIPS + 1)), "queries": proposals.get("photos"), "trainings": [1, 1]}


def outcome(comparison: Comparison, result: dict | None) -> str:
    """Return whether a comparison holds, by its effect and its adjusted p value."""
    if result is None:
        return NOT_MEASURED
    significant, above = result["p"] < LEVEL, result["effect"] > 0
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
    value, low, high = (f"{100 * result[key]:+.1f}".replace("-", "−") for key in ("effect", "low", "high"))
    return f"{value} [{low}, {high}]"


# ---- the claims

OURS = "capture-chosen/instance"  # CAPTURE by the representation that val chooses
RECIPE = "ablation/recipe"  # CAPTURE trained as short as the other ablations
RECALL = Comparison("recall@0.5 of the proposals", f"{MIN_RECALL} (our threshold)")
UNTRAINED = ("image-only", "text-only", "late-fusion", "popularity", "chance")
COMPARISON = "paper, comparison table"
TASKS = "paper, ablation of the pretext tasks (short trainings)"
SECOND_HAND = "mAP@10, second-hand, on Product1M, definition unknown"
SHORT = "Short trainings show how learning begins; longer ones may rank the tasks otherwise."
SIZES = "All models have about the same size and see the same pairs; larger ones or more pairs may differ."
UNKNOWN = "Captions of unseen products still share words with those of training: plain baselines profit too."


def against(better: str, *baselines: str, among: str = "", wanted: str = BETTER) -> tuple[Comparison, ...]:
    """Return one method against several."""
    return tuple(Comparison(better, baseline, among, wanted) for baseline in baselines)


def beats_model(other: str) -> tuple[Comparison, ...]:
    """Return CAPTURE against another model per instance and per image, as val chooses for each."""
    return Comparison(OURS, f"{other}/instance"), Comparison("capture-chosen/image", f"{other}/image")


BASELINES = ("image-only", "text-only", "dual-encoder/instance", "one-stream/instance", "two-stream/instance")
CLAIMS = (
    Claim("Instance level beats image level: one query a product instead of one a photo",
          "paper, introduction and section on inference",
          (Comparison("capture/instance", "capture/image"), Comparison(OURS, "capture-chosen/image")),
          "Depends on the proposals: a product that no box finds is no query of its own."),
    Claim("Two modalities beat the image alone", "paper, introduction and comparison table",
          (*against(OURS, "image-only", "image-stream"), Comparison("capture/instance", "image-only")),
          "Depends on how much the captions tell beside the pictures, and on the vector that is read."),
    Claim("Two modalities beat the text alone", "paper, introduction and comparison table",
          (*against(OURS, "text-only", "text-stream"), Comparison("capture/instance", "text-only")),
          "Depends on how often captions name the product in full, and on the vector that is read."),
    Claim("The hybrid model beats a one-stream model (as UNITER)", COMPARISON, beats_model("one-stream"),
          SIZES, f"79.36 against 74.69 of UNITER, {SECOND_HAND}"),
    Claim("The hybrid model beats a two-stream model (as ViLBERT, LXMERT)", COMPARISON,
          beats_model("two-stream"), SIZES),
    Claim("The hybrid model beats a dual encoder (as CLIP)", COMPARISON, beats_model("dual-encoder"),
          SIZES, f"79.36 against 70.25 of CLIP, {SECOND_HAND}"),
    Claim("The contrastive loss helps", TASKS, against(RECIPE, "ablation/without contrastive"), SHORT),
    Claim("Masked language modelling helps", TASKS, against(RECIPE, "ablation/without mlm"), SHORT),
    Claim("Masked region prediction helps", TASKS, against(RECIPE, "ablation/without mrp"), SHORT),
    Claim("Masking, of words and of regions, beside the contrastive loss helps", TASKS,
          against(RECIPE, "ablation/contrastive alone"), SHORT),
    Claim("Image-text matching does not help", TASKS,
          tuple(Comparison(name, RECIPE, wanted=NOT_BETTER)
                for name in ("ablation/with itm", "ablation/with itm, double batch")),
          "Broken pairs take half of a batch from the contrastive loss; the double batch gives it back."),
    Claim("The contrastive loss belongs before the cross layers", "paper, section on pretext tasks (short trainings)",
          against(RECIPE, "ablation/contrastive after joint"), SHORT),
    Claim("Each kind of layer is needed: single-modality, cross and joint",
          "paper, ablation of layer counts (short trainings)",
          against(RECIPE, "ablation/layers 066", "ablation/layers 606", "ablation/layers 660"),
          "Layer counts are scaled to the profile's depth, where one layer more or less is a large step."),
    Claim("The default layer counts, 4-4-6 in the released code, beat the other released ones",
          "released code; which ones the paper found best is not known to us (short trainings, scaled)",
          against(RECIPE, *(f"ablation/layers {name}" for name in ("552", "222", "255", "525", "888"))),
          "Counts that scale to the same layers are one model; more layers learn more slowly at first."),
    Claim("Proposals learned from composites alone find the products of photos never seen",
          "paper, section on proposals", (RECALL,),
          "The threshold is ours, and composites of a drawn world are nearer to its photos than real ones are."),
    Claim("CAPTURE beats the baselines on combinations unseen in training, too",
          "paper, retrieval of categories unseen in training", against(OURS, *BASELINES, among=UNSEEN), UNKNOWN),
    Claim("CAPTURE beats the baselines on brands held out of training, too",
          "paper, retrieval of categories unseen in training", against(OURS, *BASELINES, among=HELD_OUT), UNKNOWN),
    Claim("More training pairs help", "ours, after the paper's scale (short trainings)",
          (Comparison(RECIPE, "ablation/an eighth of the pairs"), Comparison(RECIPE, "ablation/half the pairs"),
           Comparison("ablation/half the pairs", "ablation/a quarter of the pairs"),
           Comparison("ablation/a quarter of the pairs", "ablation/an eighth of the pairs")),
          "The number of steps is the same: fewer pairs are seen more often, which short trainings forgive."),
    Claim("A joint model beats the late fusion of two single modalities", "ours", against(OURS, "late-fusion"),
          "Late fusion needs no training; a joint model needs enough pairs and steps to overtake it."),
    Claim("The product H_IMG × H_TXT is the vector to read", "paper, section on inference",
          (Comparison(OURS, "capture/instance", wanted=NOT_BETTER),
           Comparison("capture-chosen/image", "capture/image", wanted=NOT_BETTER)),
          "No pretext task acts on these two vectors: they are what the trained layers make of their first tokens."),
)
