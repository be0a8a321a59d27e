"""The pretext tasks' losses, by name: masked language modelling, masked region prediction, contrastive, matching.

Source: the paper's section on pretext tasks; normalisations as in the released code. Each has weight 1 there.
Letters in shapes as in `capture_lib.model.layers`; M masked tokens or regions of a batch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:  # the region encoder needs a loss of this module, not the model
    from capture_lib.model.capture import Capture

NOT_PREDICTED = -1  # the label of a token that was not masked
TEMPERATURE = 0.07  # of the contrastive loss, in the released code


def masked_language_loss(model: "Capture", out: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the masked tokens; labels (B, L) int64, -1 = not predicted.

    It is 0 without a masked token, where the released code gives NaN.
    """
    masked = labels != NOT_PREDICTED  # (B, L)
    logits = model.predict_words(out["text_sequence"][masked])  # (M, V): nothing else is worth decoding
    total = F.cross_entropy(logits, labels[masked], reduction="sum")
    return total / masked.sum().clamp(min=1)


def masked_region_loss(
    model: "Capture", out: Mapping[str, Tensor], region_labels: Tensor, targets: Tensor
) -> Tensor:
    """Return the squared error, averaged over the masked regions and their features; 0 where none is masked.

    region_labels (B, R), 1 = masked; targets (B, R, F), the features before masking. The global token has neither.
    """
    masked = region_labels == 1  # (B, R)
    predicted = model.predict_regions(out["region_sequence"][:, 1:][masked])  # (M, F)
    total = F.mse_loss(predicted, targets[masked], reduction="sum")
    return total / max(predicted.numel(), 1)


def nt_xent(a: Tensor, b: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy between matched rows of a and b, (B, E) each.

    For each of the 2B L2-normalised vectors, its partner is the positive and the other 2B-2 are negatives. It is
    computed in float32 even under autocast: bfloat16 holds a cosine to 2 or 3 digits.
    """
    with torch.autocast(a.device.type, enabled=False):
        vectors = F.normalize(torch.cat([a, b]).float(), dim=1)  # (2B, E)
        similarity = vectors @ vectors.T / temperature  # (2B, 2B)
        # no vector is its own negative
        itself = torch.eye(len(vectors), dtype=torch.bool, device=a.device)
        similarity = similarity.masked_fill(itself, float("-inf"))
        # row i of a belongs to row i of b, and the other way round
        partner = torch.arange(len(vectors), device=a.device).roll(len(a))  # B, …, 2B-1, 0, …, B-1
        return F.cross_entropy(similarity, partner)


def caption_loss(predicted: Tensor, texts: Tensor, spread: float = 0.05) -> Tensor:
    """Return the cross-entropy of telling which caption of the batch a crop came with; ours, not the paper's.

    predicted (B, D) from crops; texts (B, D), a zero row where there is no caption: it takes no part. Captions that
    are alike share the target, a softmax of their cosines over `spread`; with 0, equal ones alone do.
    """
    known = texts.any(1)
    texts = F.normalize(texts[known], dim=1)
    logits = F.normalize(predicted[known], dim=1) @ texts.T / TEMPERATURE
    targets = (texts @ texts.T / max(spread, 1e-4)).softmax(1)
    return F.cross_entropy(logits, targets, reduction="sum") / known.sum().clamp(min=1)


def contrastive_loss(
    out: Mapping[str, Tensor], temperature: float = TEMPERATURE, matched: Tensor | None = None
) -> Tensor:
    """Return `nt_xent` between the two modalities' first tokens, taken before the cross layers.

    matched (B,), 1 = the pair belongs together: broken pairs take no part, not as negatives either.
    """
    regions = out["region_contrastive"]  # (B, E)
    texts = out["text_contrastive"]
    if matched is not None:
        regions = regions[matched == 1]
        texts = texts[matched == 1]
    return nt_xent(regions, texts, temperature)


def matching_loss(model: "Capture", out: Mapping[str, Tensor], matched: Tensor) -> Tensor:
    """Return the cross-entropy of image-text matching (ITM) over all pairs; matched (B,) int64, 1 = whole pair."""
    logits = model.predict_match(out["text_pooled"], out["region_pooled"])  # (B, 2)
    return F.cross_entropy(logits, matched)


def pretext_losses(
    model: "Capture", batch: Mapping[str, Tensor], out: Mapping[str, Tensor],
    temperature: float = TEMPERATURE
) -> dict[str, Tensor]:
    """Return the losses by name: mlm, mrp, contrastive, and itm where a batch has broken pairs; their sum is minimised.

    `batch` holds mlm_labels, region_labels, region_targets, and matched where half of the pairs are broken.
    """
    matched = batch.get("matched")
    losses = {
        "mlm": masked_language_loss(model, out, batch["mlm_labels"]),
        "mrp": masked_region_loss(model, out, batch["region_labels"], batch["region_targets"]),
        "contrastive": contrastive_loss(out, temperature, matched),
    }
    if matched is not None:
        losses["itm"] = matching_loss(model, out, matched)
    return losses
