"""The ledger: what the paper claims, what was measured here, and the verdict.

A claim is one comparison of two methods or several. Each is a paired effect over the test queries with a 95% interval
and a p value (`intervals`); p values are adjusted by Holm's method over all comparisons of the ledger. A comparison
holds when its effect points the claimed way and its adjusted p value is below 5%; a claim is reproduced when all that
was measured of it holds, partly when some does, not reproduced when nothing does or the main comparison speaks against
it.
"""

from dataclasses import asdict, dataclass
from itertools import combinations
from math import erfc, sqrt

import numpy as np
import pandas as pd

from capture_lib.catalog.table import HELD_OUT, UNSEEN
from capture_lib.retrieval.statistics import FLIPS, Noise, holm, p_values, paired_difference, pooled_noise

FIGURE = ("standard", "mAP@10")  # the figure that claims about retrieval are judged by
LEVEL = 0.05  # of the adjusted p value
BETTER, NOT_BETTER = "better", "not better"
HOLDS, OPEN, CONTRADICTED, NOT_MEASURED = "holds", "not shown", "contradicted", "not measured"
SUSPECT, CLEARED = "suspect", "cleared"
RULES = {BETTER: f"holds if better, with p < {LEVEL} after Holm",
         NOT_BETTER: f"holds unless better, with p < {LEVEL} after Holm"}
CAUSES = ("world", "size", "training", "claim")  # why a claim may fail
NEGLIGIBLE = 0.02  # evidence whose whole 95% interval lies below this much mAP@10 shows no gain; ours
LEAST_RECALL = 0.8  # the paper gives no threshold for its proposals; ours
UNMEASURED = dict.fromkeys(("effect", "low", "high", "p", "p_raw", "queries", "trainings"))
Scores = dict[str, list[pd.DataFrame]]  # by method, a table of every figure of every query for each training


@dataclass(frozen=True)
class Comparison:
    """One method against another, on all queries or on those of one combination.

    `wanted` NOT_BETTER: the claim is that the first is no better ("does not help"). It holds unless the first is
    significantly better: that something helps too little to be seen here is then counted as no help.
    """

    better: str
    rival: str
    among: str = ""
    wanted: str = BETTER

    def __str__(self) -> str:
        return f"{self.better} − {self.rival}" + f" ({self.among})" * bool(self.among)


@dataclass(frozen=True)
class Evidence:
    """A comparison that tells why a claim fails, and what it says if it is clearly above 0, and if it is not.

    `suspect` says which of the two makes a suspect of what it bears on; the other clears that.
    """

    bears_on: str  # one of CAUSES
    better: str
    rival: str
    what: str
    if_better: str
    if_not: str
    suspect: str = BETTER


@dataclass(frozen=True)
class Claim:
    """A claim, where it stands, the paper's figure where one is known, and how it is tested; the main way first."""

    claim: str
    source: str
    comparisons: tuple[Comparison, ...]
    paper: str | None = None
    looked_into: tuple[Evidence, ...] = ()


# ------------------------------------------------------------------------------------------------ judging


def ledger(scores: Scores, combination: np.ndarray, proposals: dict | None, command: str) -> list[dict]:
    """A row for each claim: its verdict, and its comparisons with effects (fractions), intervals and p values.

    The row's own effect, low, high, p and p_raw are those of the first of its comparisons that was measured.

    Args:
        scores: every figure of every query by method, with the same queries in all tables.
        combination: (Q,) which kind of query each is (`catalog.SEEN` …); may be empty where `scores` is.
        proposals: what notebook 03 measured of the proposals; None where it did not.
        command: what makes these figures again.
    """
    found = measure(scores, combination, proposals)
    rows = []
    for claim in CLAIMS:
        tried = [found[comparison] for comparison in claim.comparisons]
        main = next((result for result in tried if result["outcome"] != NOT_MEASURED), tried[0])
        rows.append({
            "claim": claim.claim, "source": claim.source, "paper": claim.paper, "compared": main["compared"],
            **{key: main[key] for key in ("effect", "low", "high", "p", "p_raw")},
            "verdict": verdict([result["outcome"] for result in tried]), "command": command,
            "rule": RULES[claim.comparisons[0].wanted], "comparisons": tried,
        })
        rows[-1]["looked_into"] = look_into(claim, rows[-1], scores)
    return rows


def measure(scores: Scores, combination: np.ndarray, proposals: dict | None) -> dict[Comparison, dict]:
    """Each comparison of the ledger with its effect, interval, p value (raw and adjusted) and outcome."""
    planned = [comparison for claim in CLAIMS for comparison in claim.comparisons]
    pairs = {comparison: pair for comparison in planned
             if (pair := paired_scores(comparison, scores, combination)) is not None}
    kinds = [(comparison.among, together) for comparison, (*_, together) in pairs.items()]
    noise = {kind: training_noise(scores, combination, *kind) for kind in set(kinds)}
    raw = p_values(list(pairs.values()), [noise[kind] for kind in kinds])
    found = {}
    for (comparison, (a, b, together)), p in zip(pairs.items(), raw, strict=True):
        effect = paired_difference(a, b, together=together)
        found[comparison] = {"effect": effect["value"], "low": effect["low"], "high": effect["high"],
                             "p_raw": float(p), "queries": a.shape[1], "trainings": [len(a), len(b)]}
    if proposals and proposals.get("recall@0.5"):  # nothing where no photo has true boxes
        found[RECALL] = recall_effect(proposals)
    for result, p in zip(found.values(), holm([result["p_raw"] for result in found.values()]), strict=True):
        result["p"] = float(p)
    return {comparison: {"compared": str(comparison), **asdict(comparison), **found.get(comparison, UNMEASURED),
                         "outcome": outcome(comparison, found.get(comparison))} for comparison in planned}


def paired_scores(comparison: Comparison, scores: Scores, combination: np.ndarray
                  ) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Both sides, (S, Q) and (T, Q), and whether they are one model read in two ways.

    None where a side is missing, or is to beat what no query tells from it: in a small profile two layer counts may be
    one.
    """
    if comparison.better not in scores or comparison.rival not in scores:
        return None
    a, b = (values(scores[name], combination, comparison.among) for name in (comparison.better, comparison.rival))
    if a.shape[1] == 0 or comparison.wanted == BETTER and np.array_equal(a, b):
        return None
    return a, b, training_of(comparison.better) == training_of(comparison.rival)


def values(tables: list[pd.DataFrame], combination: np.ndarray, among: str) -> np.ndarray:
    """The figure of the queries of one combination ("": of all) for each training: (S, Q)."""
    figures = np.stack([table[FIGURE] for table in tables])
    return figures[:, combination == among] if among else figures


def training_noise(scores: Scores, combination: np.ndarray, among: str, together: bool) -> Noise | None:
    """What all models tell of training noise on queries of a kind; `together`: of differences of a model's readings."""
    models: dict[str, list[np.ndarray]] = {}
    for name, tables in scores.items():
        models.setdefault(training_of(name), []).append(values(tables, combination, among))
    if together:
        models = {name: [a - b for a, b in combinations(representations, 2)] for name, representations in models.items()}
    return pooled_noise([np.stack(representations) for representations in models.values() if representations])


def training_of(method: str) -> str:
    """The training that a method rests on: `capture/instance` and `capture-chosen/image` read the same model."""
    if method.startswith("ablation/"):
        return method.removesuffix(", product")
    return {"image-stream": "dual-encoder", "text-stream": "dual-encoder"}.get(
        method, method.split("/")[0].removesuffix("-chosen"))


def recall_effect(proposals: dict) -> dict:
    """Recall@0.5 above our threshold; p from the normal distribution that has this 95% interval, never below 0.0001."""
    recall = proposals["recall@0.5"]
    effect, error = recall["value"] - LEAST_RECALL, (recall["high"] - recall["low"]) / (2 * 1.96)
    p = erfc(abs(effect) / max(error, 1e-9) / sqrt(2))
    return {"effect": effect, "low": recall["low"] - LEAST_RECALL, "high": recall["high"] - LEAST_RECALL,
            "p_raw": max(p, 1 / (FLIPS + 1)), "queries": proposals.get("photos"), "trainings": [1, 1]}


def outcome(comparison: Comparison, result: dict | None) -> str:
    """Whether a comparison holds, by its effect and its adjusted p value."""
    if result is None:
        return NOT_MEASURED
    told_apart, above = result["p"] < LEVEL, result["effect"] > 0
    if comparison.wanted == NOT_BETTER:
        return CONTRADICTED if told_apart and above else HOLDS
    return (HOLDS if above else CONTRADICTED) if told_apart else OPEN


def verdict(outcomes: list[str]) -> str:
    """The verdict on a claim by the outcomes of its comparisons, the main one first; those not measured don't count.

    A claim whose main comparison speaks against it is not reproduced, whatever the others say.
    """
    measured = [outcome for outcome in outcomes if outcome != NOT_MEASURED]
    if not measured:
        return "not testable here"
    if measured[0] == CONTRADICTED or HOLDS not in measured:
        return "not reproduced"
    return "reproduced" if set(measured) == {HOLDS} else "partly"


# ------------------------------------------------------------------------------------------- looking into


def look_into(claim: Claim, row: dict, scores: Scores) -> str:
    """Why a claim does not hold, as far as anything measured tells; empty where it holds or was not tested."""
    failed = [result for result in row["comparisons"] if result["outcome"] in (OPEN, CONTRADICTED)]
    if not failed:
        return ""
    told = [found for evidence in claim.looked_into if (found := tell(evidence, scores))]
    said = [", ".join(f"{result['compared']}: {points(result)}, {result['outcome']}" for result in failed) + ".",
            noise(failed)]
    said += [f"*{cause.capitalize()}:* {'; '.join(texts)}." for cause in CAUSES
             if (texts := [text for about, text, _ in told if about == cause])]
    states = {cause: {state for about, _, state in told if about == cause} for cause in CAUSES}
    suspects = [cause for cause in CAUSES if SUSPECT in states[cause]]
    cleared = [cause for cause in CAUSES if states[cause] == {CLEARED}]
    rest = [cause for cause in CAUSES if cause not in (*suspects, *cleared)]
    said += [f"**{head}: {', '.join(causes)}.**"
             for head, causes in (("Suspects", suspects), ("Cleared", cleared), ("Open", rest)) if causes]
    return " ".join(said)


def noise(failed: list[dict]) -> str:
    """Whether noise may be why comparisons fail: which queries were asked, and which trainings were lucky."""
    trainings = min((many for result in failed for name, many in zip(
        (result["better"], result["rival"]), result["trainings"], strict=True) if name not in UNTRAINED), default=1)
    still_open = [result for result in failed if result["outcome"] == OPEN]
    highest = max((result["high"] for result in still_open), default=0)
    if any(result["effect"] > 0 and result["p_raw"] < LEVEL for result in still_open):
        queries = "Some would pass alone, but not among so many comparisons: a larger test may decide"
    elif highest > 0:
        queries = f"On these queries up to {100 * highest:+.1f} points cannot be excluded"
    else:
        queries = "Other queries would hardly change this"
    return queries + (", and one training a model leaves room for luck." if trainings == 1 else
                      f"; the interval counts luck in training ({trainings} trainings a model).")


def tell(evidence: Evidence, scores: Scores) -> tuple[str, str, str] | None:
    """A piece of evidence as measured: what it bears on, what it says, and whether that is suspect, cleared or open."""
    pair = paired_scores(Comparison(evidence.better, evidence.rival), scores, np.zeros(0))
    if pair is None:
        return None
    effect = paired_difference(pair[0], pair[1], together=pair[2])
    if effect["low"] > 0:
        says, text = BETTER, evidence.if_better
    elif effect["high"] < NEGLIGIBLE:
        says, text = NOT_BETTER, evidence.if_not
    else:
        says, text = OPEN, "undecided"
    state = OPEN if says == OPEN else SUSPECT if says == evidence.suspect else CLEARED
    return evidence.bears_on, f"{evidence.what} {points({'effect': effect['value'], **effect})}, {text}", state


def points(result: dict) -> str:
    """An effect with its interval in percentage points: `+2.1 [−0.3, +4.5]`; "—" where there is none."""
    if result["effect"] is None:
        return "—"
    value, low, high = (f"{100 * result[key]:+.1f}".replace("-", "−") for key in ("effect", "low", "high"))
    return f"{value} [{low}, {high}]"


# --------------------------------------------------------------------------------------------- the claims


OURS = "capture-chosen/instance"  # CAPTURE with the vector and the merge that val chooses
RECIPE = "ablation/recipe"  # CAPTURE trained as short as the other ablations
RECALL = Comparison("recall@0.5 of the proposals", f"{LEAST_RECALL} (our threshold)")
UNTRAINED = ("image-only", "text-only", "late-fusion", "popularity", "chance")
SECOND_HAND = "mAP@10, second-hand, on Product1M, definition unknown"

LARGER = Evidence("size", "ablation/layers 888", RECIPE, "more layers of every kind (short trainings)",
                  "so size does count", "so more of them bring nothing")
MORE_PAIRS = Evidence("training", RECIPE, "ablation/an eighth of the pairs", "eight times the pairs (short trainings)",
                      "so more of them may help on", "so a lack of them is not the reason")
LONGER = Evidence("training", OURS, RECIPE, "full training, at val's rate, against the short one of this claim",
                  "so this may turn out otherwise after it", "so the short one tells as much")
TEXT_ADDS = Evidence("world", "late-fusion", "image-only", "plain fusion of scores against the image alone",
                     "so the captions do add to the pictures", "so the captions add little to them", NOT_BETTER)
IMAGE_ADDS = Evidence("world", "late-fusion", "text-only", "plain fusion of scores against the text alone",
                      "so the pictures do add to the captions", "so the pictures add little to them", NOT_BETTER)
JOINING = Evidence("claim", OURS, "late-fusion", "CAPTURE against a plain fusion of scores",
                   "so it pays to join the modalities, in whatever kind of layers",
                   "so joining itself is what fails, not the kind of layers")
READING = Evidence("claim", OURS, "capture/instance", "the vector that val chooses against the model's product",
                   "so the reading fails, not the model", "so the reading is not the reason")
OF_A_MODEL = (TEXT_ADDS, LARGER, MORE_PAIRS, JOINING)  # evidence on claims about the kind of model
OF_A_TASK = (LARGER, LONGER, MORE_PAIRS)  # evidence on claims that short trainings test


def against(better: str, *baselines: str, among: str = "") -> tuple[Comparison, ...]:
    """One method against several."""
    return tuple(Comparison(better, rival, among) for rival in baselines)


def beats_model(rival: str) -> tuple[Comparison, ...]:
    """CAPTURE against another model per instance, then per image, each with the vectors that val chooses for it."""
    return (Comparison(OURS, f"{rival}/instance"), Comparison("capture-chosen/image", f"{rival}/image"))


def by_product(rival: str) -> Evidence:
    """Whether the recipe beats a rival where both are read as the paper reads."""
    return Evidence("claim", f"{RECIPE}, product", f"{rival}, product", "read by the product, as in the paper,",
                    "so it does hold for that", "so it fails for that, too", NOT_BETTER)


def helps(task: str, without: str, *more: Evidence) -> Claim:
    """The claim that training with a task is better than without it."""
    return Claim(f"{task} helps", "paper, ablation of the pretext tasks (short trainings)", against(RECIPE, without),
                 looked_into=(*more, *OF_A_TASK, by_product(without)))


def still_beats(claim: str, among: str) -> Claim:
    """The claim that CAPTURE beats the baselines on queries of a kind, too."""
    everywhere = Evidence("claim", OURS, "image-only", "CAPTURE against the image alone on all queries",
                          "so the unseen costs it the lead", "so this is not about the unseen")
    baselines = ("image-only", "text-only", "dual-encoder/instance", "one-stream/instance", "two-stream/instance")
    return Claim(claim, "paper, retrieval of categories unseen in training", against(OURS, *baselines, among=among),
                 looked_into=(TEXT_ADDS, LARGER, MORE_PAIRS, everywhere))


def better_masked(rate: str) -> Evidence:
    """Whether another masking rate is better than the recipe's."""
    return Evidence("training", f"ablation/mask {rate}", RECIPE, f"to mask {rate} instead",
                    "so the rate is not the best", "so the rate is not the reason")


RATES = (better_masked("5%"), better_masked("40%"))
CLAIMS = (
    Claim("Instance level beats image level: one query a product instead of one a photo",
          "paper, introduction and section on inference",
          (Comparison("capture/instance", "capture/image"), Comparison(OURS, "capture-chosen/image")), looked_into=(
              Evidence("world", RECIPE, "ablation/whole photo", "regions against the whole photo as one region",
                       "so there is something to gain from products", "so there is little to gain", NOT_BETTER),
              LARGER,
              Evidence("training", "ablation/true boxes", RECIPE, "true boxes against proposals",
                       "so a better detector may help", "so the detector is not the reason"),
              Evidence("claim", "two-stream/instance", "two-stream/image", "the same for the two-stream model",
                       "so it holds there", "so it fails there, too", NOT_BETTER))),
    Claim("Two modalities beat the image alone", "paper, introduction and comparison table",
          (*against(OURS, "image-only", "image-stream"), Comparison("capture/instance", "image-only")),
          looked_into=(TEXT_ADDS, LARGER, MORE_PAIRS, READING)),
    Claim("Two modalities beat the text alone", "paper, introduction and comparison table",
          (*against(OURS, "text-only", "text-stream"), Comparison("capture/instance", "text-only")),
          looked_into=(IMAGE_ADDS, LARGER, MORE_PAIRS, READING)),
    Claim("The hybrid model beats a one-stream model (as UNITER)", "paper, comparison table",
          beats_model("one-stream"), f"79.36 against 74.69 of UNITER, {SECOND_HAND}", OF_A_MODEL),
    Claim("The hybrid model beats a two-stream model (as ViLBERT, LXMERT)", "paper, comparison table",
          beats_model("two-stream"), looked_into=OF_A_MODEL),
    Claim("The hybrid model beats a dual encoder (as CLIP)", "paper, comparison table",
          beats_model("dual-encoder"), f"79.36 against 70.25 of CLIP, {SECOND_HAND}", OF_A_MODEL),
    helps("The contrastive loss", "ablation/without contrastive", TEXT_ADDS),
    helps("Masked language modelling", "ablation/without mlm", TEXT_ADDS, *RATES),
    helps("Masked region prediction", "ablation/without mrp", IMAGE_ADDS, *RATES),
    helps("Masking, of words and of regions, beside the contrastive loss", "ablation/contrastive alone", *RATES),
    Claim("Image-text matching does not help", "paper, ablation of the pretext tasks (short trainings)",
          tuple(Comparison(name, RECIPE, wanted=NOT_BETTER)
                for name in ("ablation/with itm", "ablation/with itm, double batch")), looked_into=(
              LARGER, LONGER,
              Evidence("training", "ablation/with itm, double batch", "ablation/with itm", "twice the batch",
                       "so broken pairs, which take half of it from the contrastive loss, do matter",
                       "so the half of it that broken pairs take from the contrastive loss matters little"))),
    Claim("The contrastive loss belongs before the cross layers", "paper, section on pretext tasks (short trainings)",
          against(RECIPE, "ablation/contrastive after joint"),
          looked_into=(*OF_A_TASK, by_product("ablation/contrastive after joint"))),
    Claim("Each kind of layer is needed: single-modality, cross and joint",
          "paper, ablation of layer counts (short trainings)",
          against(RECIPE, "ablation/layers 066", "ablation/layers 606", "ablation/layers 660"),
          looked_into=(*OF_A_TASK, JOINING)),
    Claim("The default layer counts, 4-4-6 in the released code, beat the other released ones",
          "released code; which ones the paper found best is not known to us (short trainings, scaled)",
          against(RECIPE, *(f"ablation/layers {name}" for name in ("552", "222", "255", "525", "888"))),
          looked_into=(LONGER, MORE_PAIRS, JOINING)),
    Claim("Proposals learned from composites alone find the products of photos never seen",
          "paper, section on proposals", (RECALL,), looked_into=(
              Evidence("claim", "ablation/true boxes", RECIPE, "true boxes against proposals, in retrieval",
                       "so what the proposals miss does matter", "so what the proposals miss hardly matters there"),)),
    still_beats("CAPTURE beats the baselines on combinations unseen in training, too", UNSEEN),
    still_beats("CAPTURE beats the baselines on brands held out of training, too", HELD_OUT),
    Claim("More training pairs help", "ours, after the paper's scale (short trainings)",
          (Comparison(RECIPE, "ablation/an eighth of the pairs"), Comparison(RECIPE, "ablation/half the pairs"),
           Comparison("ablation/half the pairs", "ablation/a quarter of the pairs"),
           Comparison("ablation/a quarter of the pairs", "ablation/an eighth of the pairs")),
          looked_into=(LARGER, LONGER, by_product("ablation/an eighth of the pairs"))),
    Claim("A joint model beats the late fusion of two single modalities", "ours", against(OURS, "late-fusion"),
          looked_into=(TEXT_ADDS, LARGER, MORE_PAIRS, Evidence(
              "claim", "two-stream/instance", "late-fusion", "a two-stream model against it", "so that does beat it",
              "so that does not beat it either", NOT_BETTER))),
    Claim("The product H_IMG × H_TXT is the vector to read", "paper, section on inference",
          (Comparison(OURS, "capture/instance", wanted=NOT_BETTER),
           Comparison("capture-chosen/image", "capture/image", wanted=NOT_BETTER)), looked_into=(
              Evidence("size", "ablation/layers 888, product", f"{RECIPE}, product",
                       "the product with more layers of every kind (short trainings)",
                       "so size does count", "so more of them bring it nothing"),
              Evidence("training", "ablation/contrastive after joint, product", f"{RECIPE}, product",
                       "the product with a contrastive loss after the joint layers (short trainings)",
                       "so it lacks a loss of its own", "so that loss brings it nothing"),
              Evidence("claim", RECIPE, f"{RECIPE}, product", "the chosen vector against it after a short training",
                       "so it trails there, too", "so it does not trail there"))),
)
