"""From captions and regions to what the model reads: tokens, the global token, boxes, masks.

Letters in shapes: N pairs, B pairs of a batch, L tokens, R regions of a photo, F features.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Generator, Tensor

from capture_lib.model.bert import FILES
from capture_lib.model.losses import NOT_PREDICTED
from capture_lib.proposals.region_store import RegionStore
from capture_lib.utils import hub_folder, read_text

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class BatchSettings:
    """Defaults of every profile; rates are the paper's."""

    text_length: int = 36  # tokens, [CLS] and [SEP] among them
    masked_tokens: float = 0.15
    masked_regions: float = 0.15
    zeroed: float = 0.9  # share of the masked regions
    global_token: bool = True  # False: zeros instead of a mean (ablation)


def make_tokenizer(captions: Iterable[str], folder: Path, bert: str = "") -> BertWordPieceTokenizer:
    """Write `vocab.txt` into `folder`, of the captions or that of `bert`; return its tokenizer."""
    words: Counter[str] = Counter()
    for caption in captions:
        words.update(re.findall(r"[a-z0-9]+|[^\sa-z0-9]", caption.lower()))
    # characters, also as continuations, and frequent words
    characters = sorted(set("".join(words)))
    continuations = [f"##{c}" for c in characters if re.match("[a-z0-9]", c)]
    frequent = sorted(w for w in words if len(w) > 1 and words[w] >= 3)
    lines = "\n".join([*SPECIAL, *characters, *continuations, *frequent, ""])
    if bert:
        lines = read_text(hub_folder(bert, FILES) / "vocab.txt")
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> BertWordPieceTokenizer:
    """Return the WordPiece tokenizer of a checkpoint folder."""
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    tokenizer._tokenizer.encode_special_tokens = True  # "[MASK]" in a caption is text as any other
    return tokenizer


@dataclass(frozen=True)
class Pairs:
    """Image-caption pairs from which batches are cut."""

    tokens: np.ndarray  # (N, L) int64
    rows: np.ndarray  # (N,) of the region store
    store: RegionStore
    special: dict[str, int]  # ids of special tokens, "size" of the vocabulary
    global_token: bool = True  # as in `BatchSettings`

    def batch(self, chosen: np.ndarray, instance: np.ndarray | None = None,
              photos: np.ndarray | None = None) -> Batch:
        """Return the model's input for pairs `chosen` (B,), nothing masked.

        With `instance` (B,), each has that one region (R = 1), of which its global token is made
        too; with `photos` (B,), it has the regions of that other pair.
        """
        ids = torch.from_numpy(self.tokens[chosen])  # (B, L)
        rows = self.rows[chosen if photos is None else photos]
        counts = self.store.counts[rows]
        places = rows
        if instance is not None:
            counts = np.minimum(counts, 1)
            places = rows[:, None], instance[:, None]
        features = torch.from_numpy(self.store.features[places]).float()  # (B, R, F)
        # the global token's box is the whole photo
        boxes = torch.from_numpy(self.store.boxes[places])  # (B, R, 4)
        whole = boxes.new_tensor([0, 0, 1, 1]).expand(len(rows), 1, 4)
        boxes = torch.cat([whole, boxes], 1)
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        # place 0 is the global token
        visible = torch.arange(boxes.shape[1]) <= torch.from_numpy(counts)[:, None]  # (B, R+1)
        averaged = visible[:, 1:] & self.global_token
        return {"input_ids": ids,
                "text_mask": (ids != self.special["[PAD]"]).long(),
                "region_features": with_global_token(features, averaged),
                "region_locations": torch.cat([boxes, area[..., None]], -1),
                "region_mask": visible.long()}

    def masked_batch(self, chosen: np.ndarray, settings: BatchSettings, rng: Generator,
                     matching: bool = False, rows: slice = slice(None)) -> Batch:
        """Return `rows` of a training batch: tokens and regions masked, and what is to be predicted.

        That is mlm_labels (B, L), -1 = not predicted; region_labels (B, R), 1 = masked;
        region_targets (B, R, F). With `matching`, half of the pairs are broken, nothing is to be
        predicted in these, and matched (B,) int64 is 1 where caption and photo belong together.
        """
        texts = photos = chosen
        if matching:
            # half of the pairs get the caption or, as often, the photo of any pair
            count = len(chosen) // 2
            places = torch.randperm(len(chosen), generator=rng)[:count].numpy()
            others = torch.randint(len(self.tokens), (count,), generator=rng).numpy()
            by_text = (torch.rand(count, generator=rng) < 0.5).numpy()
            texts = chosen.copy()
            texts[places[by_text]] = others[by_text]
            photos = chosen.copy()
            photos[places[~by_text]] = others[~by_text]
        batch = self.batch(texts[rows], photos=photos[rows])
        # choose tokens and regions of the whole batch
        ids = torch.from_numpy(self.tokens[texts])  # (B, L)
        ids, labels = mask_tokens(ids, self.special, settings.masked_tokens, rng)
        counts = torch.from_numpy(self.store.counts[self.rows[photos]])
        valid = torch.arange(self.store.boxes.shape[1]) < counts[:, None]  # (B, R)
        masked = torch.rand(valid.shape, generator=rng) < settings.masked_regions
        masked &= valid
        zeroed = torch.rand(valid.shape, generator=rng) < settings.zeroed
        zeroed &= masked
        if matching:
            # pairs with the same caption may swap photos: that breaks nothing
            matched = (self.tokens[texts] == self.tokens[photos]).all(1)  # (B,)
            labels[~matched] = NOT_PREDICTED
            masked[~matched] = False
            batch["matched"] = torch.from_numpy(matched[rows]).long()
        batch["input_ids"] = ids[rows]
        batch["mlm_labels"] = labels[rows]
        batch["region_labels"] = masked[rows].long()
        # a zeroed region leaves no trace in the mean
        batch["region_targets"] = batch["region_features"][:, 1:]
        features = batch["region_targets"].masked_fill(zeroed[rows, :, None], 0.0)
        averaged = valid & ~zeroed & self.global_token
        batch["region_features"] = with_global_token(features, averaged[rows])
        return batch


def make_pairs(table: pd.DataFrame, store: RegionStore,
               tokenizer: BertWordPieceTokenizer, settings: BatchSettings) -> Pairs:
    """Return the pairs of samples, by sample_id and caption, whose photos are in the store."""
    special = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    special["size"] = tokenizer.get_vocab_size()
    # captions as [CLS] … [SEP], cut or filled up with [PAD]
    length = settings.text_length
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=special["[PAD]"])
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(table["caption"]))]
    tokens = np.array(ids, np.int64).reshape(-1, length)
    rows = store.rows(list(table["sample_id"]))
    return Pairs(tokens, rows, store, special, settings.global_token)


def mask_tokens(ids: Tensor, special: dict[str, int], rate: float,
                rng: Generator) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) masked as in BERT, and labels (B, L), -1 where nothing is to be predicted."""
    fixed = torch.tensor([special[name] for name in ("[PAD]", "[CLS]", "[SEP]")])
    chosen = torch.rand(ids.shape, generator=rng) < rate
    chosen &= ~torch.isin(ids, fixed)
    # 80% become [MASK], 10% any token that is not special (if there is one), 10% stay
    lot = torch.rand(ids.shape, generator=rng)
    first = min(len(SPECIAL), special["size"] - 1)
    other = torch.randint(first, special["size"], ids.shape, generator=rng)
    masked = torch.where(chosen & (lot < 0.8), special["[MASK]"], ids)
    masked = torch.where(chosen & (lot >= 0.8) & (lot < 0.9), other, masked)
    return masked, torch.where(chosen, ids, NOT_PREDICTED)


def with_global_token(features: Tensor, averaged: Tensor) -> Tensor:
    """Return features (B, R+1, F) behind their mean over regions `averaged` (B, R), zeros without any."""
    weight = averaged.float()[..., None]  # (B, R, 1)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    mean = (features * weight).sum(1, keepdim=True) / count  # (B, 1, F)
    return torch.cat([mean, features], 1)
