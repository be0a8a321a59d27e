"""The ledger: what the paper claims, what was measured here, and the verdict."""

from dataclasses import dataclass

import pandas as pd

from capture_lib.metrics import paired_difference

FIGURE = ("standard", "mAP@10")  # the figure that claims about retrieval are judged by


@dataclass(frozen=True)
class Claim:
    """A claim that one method is better than another; `better` or `rival` None: nothing here tests it yet."""

    claim: str
    source: str
    better: str | None = None
    rival: str | None = None
    why_not: str = ""


CLAIMS = (
    Claim("Instance level beats image level: one query a product instead of one a photo",
          "paper, introduction and section on inference", "capture/instance", "capture/image"),
    Claim("The same, with the vectors that val chooses", "ours", "capture-chosen/instance", "capture-chosen/image"),
    Claim("Two modalities beat the image alone", "paper, introduction", "capture/instance", "image-only"),
    Claim("Two modalities beat the text alone", "paper, introduction", "capture/instance", "text-only"),
    Claim("A joint model beats the late fusion of two single modalities", "ours", "capture-chosen/instance",
          "late-fusion"),
    Claim("The product H_IMG × H_TXT is the vector to read", "paper, section on inference", "capture/instance",
          "capture-chosen/instance"),
    Claim("The hybrid stream beats one-stream and two-stream models", "paper, comparison table",
          why_not="the rivals are not trained in this edition"),
    Claim("Contrastive loss, masked language and masked region modelling each help", "paper, ablations",
          why_not="the ablations are not run in this edition"),
    Claim("Image-text matching does not help", "paper, ablations",
          why_not="the ablations are not run in this edition"),
)


def verdict(effect: dict[str, float] | None) -> str:
    """Reproduced when the 95% interval of the effect lies above zero, not reproduced otherwise."""
    if effect is None:
        return "not testable here"
    return "reproduced" if effect["low"] > 0 else "not reproduced"


def judge(claim: Claim, scores: dict[str, pd.DataFrame], command: str) -> dict:
    """A row of the ledger: the claim with our paired effect over queries, in fractions, and its verdict.

    Args:
        claim: which method should beat which.
        scores: every figure for every query, by method (`metrics.per_query`).
        command: what makes these figures again.
    """
    testable = claim.better in scores and claim.rival in scores
    effect = (paired_difference(scores[claim.better][FIGURE], scores[claim.rival][FIGURE]) if testable else None)
    compared = f"{claim.better} − {claim.rival}, {' '.join(FIGURE)}" if testable else (
        claim.why_not or "the catalog does not give what this comparison needs")
    low, value, high = (effect[key] if effect else None for key in ("low", "value", "high"))
    return {"claim": claim.claim, "source": claim.source, "paper": None, "compared": compared, "effect": value,
            "low": low, "high": high, "verdict": verdict(effect), "command": command}


def recall_claim(proposals: dict, command: str, wanted: float = 0.8) -> dict:
    """The row of the claim that a proposal network trained on composites alone finds products in real queries.

    The paper gives no threshold for it; ours is recall@0.5 of at least 0.8, the whole interval above it.
    """
    recall = proposals.get("recall@0.5") if proposals else None
    effect = {key: recall[key] - wanted for key in ("value", "low", "high")} if recall else None
    low, value, high = (effect[key] if effect else None for key in ("low", "value", "high"))
    return {"claim": "Proposals learned from composites alone find the products of photos never seen",
            "source": "paper, section on proposals", "paper": None,
            "compared": f"recall@0.5 − {wanted} (our threshold)", "effect": value, "low": low, "high": high,
            "verdict": verdict(effect), "command": command}
