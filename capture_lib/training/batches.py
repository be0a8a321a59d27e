"""From captions and regions to what the model reads: tokens, the global token, locations, masks."""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from capture_lib.catalog.table import read_text
from capture_lib.proposals.region_store import RegionStore
from capture_lib.utils import InputError

BROKEN = 0.5  # share of the pairs that image-text matching (ITM) breaks
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class BatchSettings:
    """Defaults of every profile; rates are the paper's."""

    vocabulary: str = ""  # a vocab.txt such as bert-base-chinese's; empty = made from the training captions
    text_length: int = 36  # tokens, [CLS] and [SEP] among them
    masked_tokens: float = 0.15  # of these 80% become [MASK], 10% another token, 10% stay
    masked_regions: float = 0.15
    zeroed: float = 0.9  # share of the masked regions whose feature is zeroed
    global_token: bool = True  # False: the first region token is zero, and not the mean of the regions (ablation)
    alone: bool = False  # True: one region is asked for without the others' empty places (as the recipe beyond trains)


# ------------------------------------------------------------------------------------------------- words


def make_vocabulary(captions: Iterable[str], least: int = 3) -> list[str]:
    """A WordPiece vocabulary: special tokens, every character (alone and as a word's continuation), frequent words.

    BERT's tokenizer takes Chinese character by character; Latin words and numbers that occur `least` times or more
    are whole tokens, rarer ones fall apart into characters.
    """
    words = Counter(word for caption in captions for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", caption.lower()))
    characters = sorted({character for word in words for character in word})
    frequent = sorted(word for word, count in words.items() if len(word) > 1 and count >= least)
    continued = [f"##{character}" for character in characters if re.match("[a-z0-9]", character)]
    return [*SPECIAL, *characters, *continued, *frequent]


def make_tokenizer(settings: BatchSettings, captions: Iterable[str], folder: Path) -> BertWordPieceTokenizer:
    """A BERT tokenizer for Chinese; its `vocab.txt` is kept in `folder`.

    Raises:
        InputError: the vocabulary that the settings name cannot be read or lacks a special token.
    """
    words = read_text(settings.vocabulary).splitlines() if settings.vocabulary else make_vocabulary(captions)
    lacking = [name for name in SPECIAL if name not in words]
    if lacking:
        raise InputError(f"{settings.vocabulary}: the token {lacking[0]} is missing; give a BERT vocab.txt")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> BertWordPieceTokenizer:
    """The tokenizer of a checkpoint folder."""
    return BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)


def tokenize(tokenizer: BertWordPieceTokenizer, captions: list[str], length: int) -> np.ndarray:
    """Captions as token ids (N, length) int64: [CLS] … [SEP], cut to `length`, the rest [PAD]."""
    pad = tokenizer.token_to_id("[PAD]")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad)
    return np.array([encoding.ids for encoding in tokenizer.encode_batch(captions)], np.int64).reshape(-1, length)


# ----------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Pairs:
    """Image-caption pairs, ready to be cut into batches: token ids (N, L) and their rows in the region store."""

    tokens: np.ndarray
    rows: np.ndarray
    store: RegionStore
    special: dict[str, int]  # ids of [PAD], [CLS], [SEP], [MASK], and "size" of the vocabulary
    global_token: bool = True  # as in `BatchSettings`
    alone: bool = False

    def batch(self, chosen: np.ndarray, instance: np.ndarray | None = None) -> dict[str, Tensor]:
        """The model's input for pairs `chosen` (B,), nothing masked.

        Args:
            chosen: numbers of pairs.
            instance: which one region (B,) each pair keeps beside the global token; None keeps all.
        """
        rows, real = self.rows[chosen], self.real(chosen)
        kept = real if instance is None else real & (torch.arange(real.shape[1]) == torch.from_numpy(instance)[:, None])
        features = torch.from_numpy(self.store.features[rows]).float()  # (B, R, F)
        averaged = real & self.global_token
        seen = with_global_token(features, torch.from_numpy(self.store.boxes[rows]), averaged, kept)
        if self.alone and instance is not None:
            places = torch.stack([torch.zeros(len(rows), dtype=torch.long), 1 + torch.from_numpy(instance)], 1)
            seen = {name: value[torch.arange(len(rows))[:, None], places] for name, value in seen.items()}
        return {**self.words(chosen), **seen}

    def real(self, chosen: np.ndarray) -> Tensor:
        """Which of the R regions of pairs `chosen` there are, (B, R) bool."""
        counts = torch.from_numpy(self.store.counts[self.rows[chosen]])
        return torch.arange(self.store.features.shape[1]) < counts[:, None]

    def words(self, chosen: np.ndarray) -> dict[str, Tensor]:
        """The text of `batch`."""
        ids = torch.from_numpy(self.tokens[chosen])
        return {"input_ids": ids, "text_mask": (ids != self.special["[PAD]"]).long()}

    def masked_batch(self, chosen: np.ndarray, settings: BatchSettings, generator: torch.Generator,
                     matching: bool = False) -> dict[str, Tensor]:
        """A training batch: `batch` with tokens and regions masked, plus `mlm_labels` (B, L; -1 = not predicted),
        `region_labels` (B, R; 1 = masked) and `region_targets` (B, R, F), the features before masking.

        With `matching`, half of the pairs are broken, and `matched` (B,) int64 is 1 where a pair belongs together;
        in a broken one nothing is to be predicted.
        """
        return hide(self.draw(chosen, settings, generator, matching))

    def draw(self, chosen: np.ndarray, settings: BatchSettings, generator: torch.Generator, matching: bool = False,
             part: slice = slice(None)) -> dict[str, Tensor]:
        """What `hide` makes a masked batch of: the masks, and the regions as the store holds them, half as many bytes.

        Masks are drawn for all pairs, and rows `part` of everything are returned: of many processes, each reads and
        copies its own.
        """
        texts, photos = self.break_pairs(chosen, generator) if matching else (chosen, chosen)
        drawn = {**self.words(texts), "boxes": torch.from_numpy(self.store.boxes[self.rows[photos]]),
                 "real": self.real(photos)}
        drawn["averaged"] = drawn["real"] & self.global_token
        drawn["input_ids"], drawn["mlm_labels"] = mask_tokens(
            drawn["input_ids"], self.special, settings.masked_tokens, generator)
        drawn["region_labels"], drawn["zeroed"] = mask_regions(drawn["real"], settings, generator)
        if matching:
            drawn = without_predictions(drawn, self.same_caption(texts, photos))
        features = torch.from_numpy(self.store.features[self.rows[photos[part]]])  # (B, R, F): the one large copy
        return {name: value[part] for name, value in drawn.items()} | {"features": features}

    def break_pairs(self, chosen: np.ndarray, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Half of the pairs (B,), at random, get the caption or, as often, the photo of any other pair.

        Returns:
            the pairs (B,) that the captions are of, and those that the photos are of.
        """
        count = int(len(chosen) * BROKEN)
        places = torch.randperm(len(chosen), generator=generator)[:count].numpy()
        others = torch.randint(len(self.tokens), (count,), generator=generator).numpy()
        of_text = (torch.rand(count, generator=generator) < 0.5).numpy()
        texts, photos = chosen.copy(), chosen.copy()
        texts[places[of_text]], photos[places[~of_text]] = others[of_text], others[~of_text]
        return texts, photos

    def same_caption(self, texts: np.ndarray, photos: np.ndarray) -> Tensor:
        """Whether the pairs that captions and photos are of have one caption, (B,) bool: then nothing is broken."""
        return torch.from_numpy((self.tokens[texts] == self.tokens[photos]).all(1))


def hide(drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masked batch of `Pairs.masked_batch` from what `Pairs.draw` drew, made on the device where that lies."""
    drawn = dict(drawn)
    real, zeroed = drawn.pop("real"), drawn.pop("zeroed")  # (B, R)
    targets = drawn.pop("features").float()  # (B, R, F)
    visible = targets.masked_fill(zeroed[..., None], 0.0)
    seen = with_global_token(visible, drawn.pop("boxes"), drawn.pop("averaged") & ~zeroed, real)
    return {**drawn, **seen, "region_targets": targets}


def ahead(batches: Iterable[dict[str, Tensor]], depth: int = 2) -> Iterator[dict[str, Tensor]]:
    """The same batches, made in a thread, up to `depth` of them while the last one is in use."""
    batches = iter(batches)
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, batches, None) for _ in range(depth))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, batches, None))
            yield batch


def masked_on(device: torch.device, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Masked batches on a device, from those that `Pairs.draw` drew; on a GPU copied while it works on something else.

    Give the result to `ahead`: waiting for a copy then holds up nothing.
    """
    if device.type != "cuda":
        yield from map(hide, batches)
        return
    beside = torch.cuda.Stream(device)
    for drawn in batches:
        with torch.cuda.stream(beside):
            batch = hide({name: value.pin_memory().to(device, non_blocking=True) for name, value in drawn.items()})
        beside.synchronize()
        for value in batch.values():  # its memory is not given to the next batch before the model has read it
            value.record_stream(torch.cuda.default_stream(device))
        yield batch


def without_predictions(batch: dict[str, Tensor], matched: Tensor) -> dict[str, Tensor]:
    """The batch with `matched` (B,), and with nothing to be predicted in the pairs that are broken."""
    broken = ~matched[:, None]
    return {**batch, "matched": matched.long(), "mlm_labels": batch["mlm_labels"].masked_fill(broken, -1),
            "region_labels": batch["region_labels"].masked_fill(broken, 0)}


def with_global_token(features: Tensor, boxes: Tensor, averaged: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Puts the global token first: the mean of the regions, box [0, 0, 1, 1], area 1.

    The released code averages after masking and counts zeroed regions in the mean; here a zeroed region doesn't count.

    Args:
        features: (B, R, F); boxes: (B, R, 4) xyxy fractions.
        averaged: (B, R) bool, the regions that the mean is taken over; zero where there are none.
        kept: (B, R) bool, the regions that the model may look at.
    """
    weight = averaged.float()[..., None]  # (B, R, 1)
    mean = (features * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)  # (B, 1, F)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    places = torch.cat([boxes, area[..., None]], -1)  # (B, R, 5)
    whole = places.new_tensor([0.0, 0.0, 1.0, 1.0, 1.0]).expand(len(features), 1, 5)
    always = torch.ones(len(features), 1, dtype=torch.long, device=features.device)
    return {"region_features": torch.cat([mean, features], 1), "region_locations": torch.cat([whole, places], 1),
            "region_mask": torch.cat([always, kept.long()], 1)}


def mask_tokens(ids: Tensor, special: dict[str, int], rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """BERT's masking: of `rate` of the real tokens 80% become [MASK], 10% a random token, 10% stay.

    Returns:
        the masked ids (B, L) and the labels (B, L), -1 where nothing is to be predicted.
    """
    fixed = sum(ids == special[name] for name in ("[PAD]", "[CLS]", "[SEP]")).bool()
    chosen = (torch.rand(ids.shape, generator=generator) < rate) & ~fixed
    lot = torch.rand(ids.shape, generator=generator)
    first = min(len(SPECIAL), special["size"] - 1)  # without captions there is no other word
    other = torch.randint(first, special["size"], ids.shape, generator=generator)
    masked = torch.where(chosen & (lot < 0.8), special["[MASK]"], ids)
    masked = torch.where(chosen & (lot >= 0.8) & (lot < 0.9), other, masked)
    return masked, torch.where(chosen, ids, -1)


def mask_regions(real: Tensor, settings: BatchSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Masked region prediction: 15% of the real regions (B, R) are predicted, 90% of these are zeroed.

    Returns:
        labels (B, R) int64, 1 where the feature is to be predicted; zeroed (B, R) bool.
    """
    chosen = (torch.rand(real.shape, generator=generator) < settings.masked_regions) & real
    zeroed = chosen & (torch.rand(real.shape, generator=generator) < settings.zeroed)
    return chosen.long(), zeroed


def make_pairs(table: pd.DataFrame, store: RegionStore, tokenizer: BertWordPieceTokenizer, settings: BatchSettings
               ) -> Pairs:
    """The pairs of a table of samples (columns sample_id, caption) whose photos are in the store."""
    special = {name: tokenizer.token_to_id(name) for name in SPECIAL} | {"size": tokenizer.get_vocab_size()}
    tokens = tokenize(tokenizer, list(table["caption"]), settings.text_length)
    return Pairs(tokens, store.rows(list(table["sample_id"])), store, special, settings.global_token,
                 settings.alone)
