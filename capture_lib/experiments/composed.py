"""Beyond the paper: pairs mined without labels, and a loss for the joint vector itself (notebook 08).

A photo with one instance and its caption are a known part. Parts are composed to queries of several products, their
captions mixed: what is asked with one region of such a query is a photo of the same product. Which photos those are
is mined: the nearest by region features and words together. No label, product or true box is read.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from capture_lib.training.batches import BatchSettings, Pairs
from capture_lib.utils import say

MIN_PARTS = 32  # fewer photos of one product are not composed
TASK = "composed"
ANCHOR, ITEM, TARGET = "anchor ", "item ", "target"
INPUTS = ("input_ids", "text_mask", "region_features", "region_locations", "region_mask")


@dataclass(frozen=True)
class ComposedSettings:
    """Where `variants` gives no other; shares are of a batch."""

    pretext: float = 0.5  # the pairs that keep the pretext tasks
    queries: float = 0.5  # composed queries, each with an answer
    most_parts: int = 5
    alike: int = 100  # parts of a query are drawn from so many photos with the nearest captions (0 = from all)
    neighbours: int = 10  # photos that count as showing the same product
    weight: float = 0.5  # of the region features in the similarity that finds them; the rest is the words'
    drawn: float = 0.5  # share of the target that the drawn answer has; the rest goes by similarity
    sharpness: float = 0.05  # temperature of the similarities that become the target
    temperature: float = 0.07
    kept: float = 0.5  # the least share of a caption that a mixed one keeps


@dataclass(frozen=True)
class ComposedPairs(Pairs):
    """Pairs whose batches hold composed queries and their answers beside the masked pairs."""

    how: ComposedSettings = ComposedSettings()
    parts: np.ndarray | None = None  # (S,) pairs whose photo shows one instance
    near: np.ndarray | None = None  # (S, K) the nearest of them, by both modalities
    same_words: np.ndarray | None = None  # (S, ·) those with the nearest captions
    layouts: np.ndarray | None = None  # (M, 4) boxes of instances in photos of several
    fused: np.ndarray | None = None  # (S, D) what they are found by, of length 1

    def draw(self, chosen: np.ndarray, settings: BatchSettings, generator: torch.Generator, matching: bool = False,
             part: slice = slice(None)) -> dict[str, Tensor]:
        """As `Pairs.draw`, of a share of the batch; beside it composed queries, the same in each of many processes."""
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        masked = chosen[part][:max(1, round(len(chosen[part]) * self.how.pretext))]
        return (super().draw(masked, settings, generator, matching) |
                self.compose(max(2, round(len(chosen) * self.how.queries)), rng))

    def compose(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """`count` composed queries and as many gallery items: what the model reads of both, and the target (A, A)."""
        groups, sizes = [], 0
        while sizes < count:
            groups.append(self.group(min(1 + int(rng.integers(1, self.how.most_parts)), count - sizes), rng))
            sizes += len(groups[-1])
        asked = np.concatenate(groups)  # (A,) numbers of parts
        texts = [text for group in groups for text in [self.mixed(group, rng)] * len(group)]
        means = [mean for group in groups for mean in [self.means(group).mean(0)] * len(group)]
        boxes = self.layouts[rng.integers(len(self.layouts), size=count)]
        answers = self.near[asked, rng.integers(self.near.shape[1], size=count)]
        anchors = self.inputs(np.stack(texts), np.stack(means), self.of_first(asked, "features"), boxes)
        items = self.inputs(self.tokens[self.parts[answers]], self.means(answers), self.of_first(answers, "features"),
                            self.of_first(answers, "boxes"))
        return ({ANCHOR + name: value for name, value in anchors.items()} |
                {ITEM + name: value for name, value in items.items()} |
                {TARGET: self.target(asked, answers)})

    def group(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Parts of one query: any, and others with captions like its (of its brand, say)."""
        first = int(rng.integers(len(self.parts)))
        among = self.same_words[first] if self.how.alike else np.arange(len(self.parts))
        return np.concatenate([[first], rng.choice(among, count - 1)])

    def mixed(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The captions of the parts as one, (L,): a stretch of each, in any order, cut to the length."""
        length, ends = self.tokens.shape[1], [self.special[name] for name in ("[PAD]", "[CLS]", "[SEP]")]
        pieces = []
        for row in self.tokens[self.parts[rng.permutation(group)]]:
            words = row[~np.isin(row, ends)]
            size = max(1, round(len(words) * rng.uniform(self.how.kept, 1)))
            start = int(rng.integers(len(words) - size + 1))
            pieces.append(words[start:start + size])
        words = np.concatenate(pieces)[:length - 2]
        text = np.full(length, self.special["[PAD]"], np.int64)
        text[:len(words) + 2] = [self.special["[CLS]"], *words, self.special["[SEP]"]]
        return text

    def of_first(self, parts: np.ndarray, name: str) -> np.ndarray:
        """Feature or box of the best region of parts."""
        return np.asarray(getattr(self.store, name)[self.rows[self.parts[parts]], 0], np.float32)

    def means(self, parts: np.ndarray) -> np.ndarray:
        """The global token (n, F) of parts: the mean of their regions."""
        rows = self.rows[self.parts[parts]]
        real = np.arange(self.store.features.shape[1]) < self.store.counts[rows][:, None]
        total = (self.store.features[rows] * real[..., None]).astype(np.float32).sum(1)
        return total / np.maximum(real.sum(1, keepdims=True), 1) * self.global_token

    def inputs(self, ids: np.ndarray, means: np.ndarray, features: np.ndarray, boxes: np.ndarray) -> dict[str, Tensor]:
        """What the model reads: captions (n, L), global token and one region (n, 2, F), their locations (n, 2, 5)."""
        places = np.zeros((len(ids), 2, 5), np.float32)
        places[:, 0, 2:], places[:, 1, :4] = 1, boxes
        places[:, 1, 4] = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        ids = torch.from_numpy(ids)
        return {"input_ids": ids, "text_mask": (ids != self.special["[PAD]"]).long(),
                "region_features": torch.from_numpy(np.stack([means, features], 1).astype(np.float32)),
                "region_locations": torch.from_numpy(places), "region_mask": torch.ones(len(ids), 2, dtype=torch.long)}

    def target(self, asked: np.ndarray, answers: np.ndarray) -> Tensor:
        """How much of each query's probability (A, A) belongs to each item; rows sum to 1."""
        drawn = torch.eye(len(asked))
        alike = torch.from_numpy(self.fused[asked] @ self.fused[answers].T)
        itself = torch.from_numpy(asked[:, None] == answers)
        alike = alike.masked_fill(itself, float("-inf"))
        by_similarity = (alike / self.how.sharpness).softmax(1).nan_to_num(0)  # an answer may be the one photo asked
        return self.how.drawn * drawn + (1 - self.how.drawn) * by_similarity


def composed_loss(model, batch: dict[str, Tensor], temperature: float) -> Tensor:
    """Cross-entropy between the target and what the joint vectors of queries find among those of the items."""
    both = {name: torch.cat([batch[ANCHOR + name], batch[ITEM + name]]) for name in INPUTS}
    asked, held = joint(model(**both)).chunk(2)
    return F.cross_entropy(asked @ held.T / temperature, batch[TARGET])


def joint(out: dict[str, Tensor]) -> Tensor:
    """The joint vector (B, 2E) as the reading "joint" has it: H_IMG and H_TXT side by side, of length 1."""
    with torch.autocast(out["text_pooled"].device.type, enabled=False):
        halves = [F.normalize(out[name].float(), dim=1) for name in ("region_pooled", "text_pooled")]
        return torch.cat(halves, 1) / 2 ** 0.5


def composed(pairs: Pairs, captions: list[str], how: ComposedSettings, seed: int) -> Pairs:
    """The pairs with all that composing needs, mined from their region features and captions.

    Where too few photos show one product there is nothing to compose: a line says so, and the pairs stay as they are.
    """
    from capture_lib.proposals.instances import InstanceSettings, find_instances
    from capture_lib.retrieval.embedding import (  # it needs the model
        RetrievalSettings,
        Words,
        search,
        unit,
    )
    settings, store = RetrievalSettings(), pairs.store
    found = [find_instances(store.boxes[row, :store.counts[row]], store.scores[row], InstanceSettings()) for row in pairs.rows]
    parts = np.flatnonzero([len(own) == 1 for own in found])
    if len(parts) < MIN_PARTS:
        say(f"beyond: {len(parts)} photos show one product, fewer than {MIN_PARTS}; nothing is composed")
        return pairs
    several = [(row, own) for row, own in zip(pairs.rows, found, strict=True) if len(own) > 1]
    layouts = [store.boxes[row, own] for row, own in several or [(row, [0]) for row in pairs.rows[parts]]]
    texts = [captions[part] for part in parts]
    words = unit(Words(texts, settings, seed).vectors(texts))
    regions = unit(np.asarray(store.features[pairs.rows[parts], 0], np.float32))
    fused = np.concatenate([how.weight ** 0.5 * regions, (1 - how.weight) ** 0.5 * words], 1)
    near = without_itself(search(fused, fused, how.neighbours + 1)[1])
    same_words = without_itself(search(words, words, min(how.alike, len(parts) - 1) + 1)[1])
    return ComposedPairs(**{field.name: getattr(pairs, field.name) for field in fields(Pairs)}, how=how, parts=parts,
                         near=near if how.neighbours else np.arange(len(parts))[:, None], same_words=same_words,
                         layouts=np.concatenate(layouts), fused=fused)


def without_itself(rows: np.ndarray) -> np.ndarray:
    """Neighbours (n, k + 1) of n things among themselves, without the thing itself: (n, k)."""
    own = rows == np.arange(len(rows))[:, None]
    own[~own.any(1), -1] = True
    return rows[~own].reshape(len(rows), -1)
