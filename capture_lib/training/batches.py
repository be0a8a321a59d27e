"""From captions and regions to what the model reads: tokens, the global token, boxes, masks.

Letters in shapes: N pairs, B pairs of a batch, L tokens, R regions of a photo, F features of a region.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Generator, Tensor

from capture_lib.model.bert import bert_folder
from capture_lib.model.losses import NOT_PREDICTED
from capture_lib.proposals.region_store import RegionStore
from capture_lib.utils import InputError, read_text

BROKEN_SHARE = 0.5  # of the pairs, for image-text matching (ITM)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class BatchSettings:
    """Defaults of every profile; rates are the paper's."""

    # a vocab.txt such as bert-base-chinese's; empty = made of the training captions
    vocabulary: str = ""
    text_length: int = 36  # tokens, [CLS] and [SEP] among them
    masked_tokens: float = 0.15
    masked_regions: float = 0.15
    zeroed: float = 0.9  # share of the masked regions
    global_token: bool = True  # False: zeros instead of a mean (ablation)


def make_vocabulary(captions: Iterable[str], min_count: int = 3) -> list[str]:
    """Return a WordPiece vocabulary: special tokens, characters (also as continuations), frequent words.

    BERT's tokenizer takes Chinese character by character; rarer Latin words and numbers fall apart too.
    """
    words: Counter[str] = Counter()
    for caption in captions:
        words.update(re.findall(r"[a-z0-9]+|[^\sa-z0-9]", caption.lower()))
    characters = sorted(set("".join(words)))
    continuations = [f"##{c}" for c in characters if re.match("[a-z0-9]", c)]
    frequent = sorted(w for w in words if len(w) > 1 and words[w] >= min_count)
    return [*SPECIAL, *characters, *continuations, *frequent]


def with_vocabulary(settings: BatchSettings, bert: str) -> BatchSettings:
    """Return the settings with BERT's vocabulary, if the text side starts from BERT and no other is named."""
    if not bert or settings.vocabulary:
        return settings
    return replace(settings, vocabulary=str(bert_folder(bert) / "vocab.txt"))


def make_tokenizer(settings: BatchSettings, captions: Iterable[str], folder: Path) -> BertWordPieceTokenizer:
    """Return a BERT tokenizer for Chinese and write its `vocab.txt` into `folder`.

    Raises `InputError` where the vocabulary that the settings name cannot be read or lacks a special token.
    """
    if settings.vocabulary:
        words = read_text(settings.vocabulary).splitlines()
    else:
        words = make_vocabulary(captions)
    for name in SPECIAL:
        if name not in words:
            raise InputError(
                f"{settings.vocabulary}: the token {name} is missing; give a BERT vocab.txt")
    lines = "".join(f"{word}\n" for word in words)
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> BertWordPieceTokenizer:
    """Return the tokenizer of a checkpoint folder."""
    return BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)


def tokenize(tokenizer: BertWordPieceTokenizer, captions: list[str], length: int) -> np.ndarray:
    """Return captions as token ids (N, length) int64: [CLS] … [SEP], cut to `length`, then [PAD]."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id("[PAD]"))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(captions)]
    return np.array(ids, np.int64).reshape(-1, length)


@dataclass(frozen=True)
class Pairs:
    """Image-caption pairs from which batches are cut."""

    tokens: np.ndarray  # (N, L) int64
    rows: np.ndarray  # (N,) of the region store
    store: RegionStore
    special: dict[str, int]  # ids of special tokens, "size" of the vocabulary
    global_token: bool = True  # as in `BatchSettings`

    def batch(self, chosen: np.ndarray, instance: np.ndarray | None = None) -> Batch:
        """Return the model's input for pairs `chosen` (B,), nothing masked.

        With `instance` (B,), each pair keeps that one region beside the global token, else all.
        """
        batch = self.read(chosen, chosen)
        visible = batch.pop("valid")  # (B, R)
        if instance is not None:
            places = torch.arange(visible.shape[1])
            visible &= places == torch.from_numpy(instance)[:, None]
        features = self.read_features(chosen).float()  # (B, R, F)
        boxes = batch.pop("boxes")
        averaged = batch.pop("averaged")
        return batch | with_global_token(features, boxes, averaged, visible)

    def read(self, texts: np.ndarray, photos: np.ndarray) -> Batch:
        """Return captions and boxes of pairs (B,), and which of the R places hold a region."""
        ids = torch.from_numpy(self.tokens[texts])  # (B, L)
        text_mask = (ids != self.special["[PAD]"]).long()
        rows = self.rows[photos]
        boxes = torch.from_numpy(self.store.boxes[rows])  # (B, R, 4)
        counts = torch.from_numpy(self.store.counts[rows])
        valid = torch.arange(boxes.shape[1]) < counts[:, None]  # (B, R)
        averaged = valid & self.global_token
        return {"input_ids": ids, "text_mask": text_mask,
                "boxes": boxes, "valid": valid, "averaged": averaged}

    def read_features(self, photos: np.ndarray) -> Tensor:
        """Return the features of pairs (B, R, F) in the store's float16: the one large copy."""
        return torch.from_numpy(self.store.features[self.rows[photos]])

    def masked_batch(
        self, chosen: np.ndarray, settings: BatchSettings, generator: Generator, matching: bool = False
    ) -> Batch:
        """Return a training batch: `batch` with tokens and regions masked, and what is to be predicted.

        That is `mlm_labels` (B, L), -1 = not predicted; `region_labels` (B, R), 1 = masked; `region_targets`
        (B, R, F), the features before masking. With `matching`, half of the pairs are broken, nothing is to be
        predicted in them, and `matched` (B,) int64 is 1 where caption and photo belong together.
        """
        return hide(self.draw(chosen, settings, generator, matching))

    def draw(self, chosen: np.ndarray, settings: BatchSettings, generator: Generator,
             matching: bool = False, shard: slice = slice(None)) -> Batch:
        """Draw masks for a whole batch; return rows `shard` of what `hide` makes a masked batch of."""
        texts = photos = chosen
        if matching:
            texts, photos = self.break_pairs(chosen, generator)
        drawn = self.read(texts, photos)
        # choose what is to be predicted
        ids, labels = mask_tokens(
            drawn["input_ids"], self.special, settings.masked_tokens, generator)
        region_labels, zeroed = mask_regions(drawn["valid"], settings, generator)
        if matching:
            # pairs with the same caption may swap photos: that breaks nothing
            same = self.tokens[texts] == self.tokens[photos]  # (B, L)
            matched = torch.from_numpy(same.all(1))
            labels[~matched] = NOT_PREDICTED
            region_labels[~matched] = 0
            drawn["matched"] = matched.long()
        drawn |= {"input_ids": ids, "mlm_labels": labels}
        drawn |= {"zeroed": zeroed, "region_labels": region_labels}
        # take this process's rows, and only now the features
        drawn = {name: value[shard] for name, value in drawn.items()}
        drawn["features"] = self.read_features(photos[shard])
        return drawn

    def break_pairs(self, chosen: np.ndarray, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
        """Give half of the pairs, at random, the caption or, as often, the photo of any other pair.

        Returns the pairs (B,) that the captions are of, and those that the photos are of.
        """
        count = int(len(chosen) * BROKEN_SHARE)
        places = torch.randperm(len(chosen), generator=generator)[:count].numpy()
        others = torch.randint(len(self.tokens), (count,), generator=generator).numpy()
        lot = torch.rand(count, generator=generator)
        by_text = (lot < 0.5).numpy()
        texts = chosen.copy()
        texts[places[by_text]] = others[by_text]
        photos = chosen.copy()
        photos[places[~by_text]] = others[~by_text]
        return texts, photos


def make_pairs(table: pd.DataFrame, store: RegionStore,
               tokenizer: BertWordPieceTokenizer, settings: BatchSettings) -> Pairs:
    """Return the pairs of a table of samples (sample_id, caption) whose photos are in the store."""
    special = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    special["size"] = tokenizer.get_vocab_size()
    tokens = tokenize(tokenizer, list(table["caption"]), settings.text_length)
    rows = store.rows(list(table["sample_id"]))
    return Pairs(tokens, rows, store, special, settings.global_token)


def mask_tokens(
    ids: Tensor, special: dict[str, int], rate: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Mask as BERT does: of `rate` of the words 80% become [MASK], 10% a random token, 10% stay.

    Returns the masked ids (B, L) and the labels (B, L), -1 where nothing is to be predicted.
    """
    fixed = torch.zeros_like(ids, dtype=torch.bool)
    for name in ("[PAD]", "[CLS]", "[SEP]"):
        fixed |= ids == special[name]
    chosen = (torch.rand(ids.shape, generator=generator) < rate) & ~fixed
    lot = torch.rand(ids.shape, generator=generator)
    # any token that is not special; without captions there is none
    first = min(len(SPECIAL), special["size"] - 1)
    other = torch.randint(first, special["size"], ids.shape, generator=generator)
    masked = torch.where(chosen & (lot < 0.8), special["[MASK]"], ids)
    masked = torch.where(chosen & (lot >= 0.8) & (lot < 0.9), other, masked)
    return masked, torch.where(chosen, ids, NOT_PREDICTED)


def mask_regions(valid: Tensor, settings: BatchSettings, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return labels (B, R) int64, 1 where a region is to be predicted, and those to be zeroed, (B, R) bool."""
    lot = torch.rand(valid.shape, generator=generator)
    chosen = (lot < settings.masked_regions) & valid
    lot = torch.rand(valid.shape, generator=generator)
    zeroed = (lot < settings.zeroed) & chosen
    return chosen.long(), zeroed


def hide(drawn: Batch) -> Batch:
    """Return the masked batch of what `Pairs.draw` drew, computed on the device where that lies."""
    batch = dict(drawn)
    zeroed = batch.pop("zeroed")  # (B, R)
    targets = batch.pop("features").float()  # (B, R, F)
    visible = targets.masked_fill(zeroed[..., None], 0.0)
    # a zeroed region leaves no trace in the mean
    averaged = batch.pop("averaged") & ~zeroed
    boxes = batch.pop("boxes")
    regions = with_global_token(visible, boxes, averaged, batch.pop("valid"))
    return batch | regions | {"region_targets": targets}


def with_global_token(features: Tensor, boxes: Tensor, averaged: Tensor, visible: Tensor) -> Batch:
    """Return the regions behind the global token: their mean, with box [0, 0, 1, 1] and area 1.

    The released code averages after masking and counts zeroed regions in; here they don't count.

    Args:
        features: (B, R, F); boxes: (B, R, 4) xyxy fractions.
        averaged: (B, R) bool, the regions that the mean is taken over; zeros where there are none.
        visible: (B, R) bool, the regions that the model may look at.
    """
    # the mean of the features
    weight = averaged.float()[..., None]  # (B, R, 1)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    mean = (features * weight).sum(1, keepdim=True) / count  # (B, 1, F)
    # where the regions lie, and the whole photo
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    locations = torch.cat([boxes, area[..., None]], -1)  # (B, R, 5)
    whole = locations.new_tensor([0.0, 0.0, 1.0, 1.0, 1.0]).expand(len(boxes), 1, 5)
    # the global token is always visible
    first = torch.ones(len(boxes), 1, dtype=torch.long, device=boxes.device)
    return {"region_features": torch.cat([mean, features], 1),  # (B, R+1, F)
            "region_locations": torch.cat([whole, locations], 1),  # (B, R+1, 5)
            "region_mask": torch.cat([first, visible.long()], 1)}  # (B, R+1)


def prefetch(batches: Iterable[Batch], device: torch.device, depth: int = 2) -> Iterator[Batch]:
    """Yield masked batches on a device from what `Pairs.draw` draws; a thread draws the next ones meanwhile."""

    def copy(drawn: Batch) -> Batch:
        if device.type == "cuda":  # pinned memory is copied while the GPU computes
            drawn = {name: value.pin_memory() for name, value in drawn.items()}
        return {name: value.to(device, non_blocking=True) for name, value in drawn.items()}

    copies = map(copy, batches)
    with ThreadPoolExecutor(1) as thread:
        queue = deque(thread.submit(next, copies, None) for _ in range(depth))
        while (drawn := queue.popleft().result()) is not None:
            queue.append(thread.submit(next, copies, None))
            yield hide(drawn)
