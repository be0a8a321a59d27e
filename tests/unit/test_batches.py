"""Tokens against words, masking rates against statistical bounds, the global token against a loop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import random_store

from capture_lib.training import batches
from capture_lib.training.batches import BatchSettings, Pairs

CAPTIONS = ["Abc 精华液 30ml 保湿", "abc 面霜 50ml", "ABC serum 30ml 精华液", "xyz 口红 401"]
SETTINGS = BatchSettings(text_length=12)


@pytest.fixture
def tokenizer(tmp_path: Path) -> batches.BertWordPieceTokenizer:
    return batches.make_tokenizer(CAPTIONS, tmp_path)


def make_pairs(tokenizer, count: int = 6) -> Pairs:
    table = pd.DataFrame({"sample_id": [f"photo-{i}" for i in range(count)],
                          "caption": [CAPTIONS[i % 4] for i in range(count)]})
    return batches.make_pairs(table, random_store(count + 2), tokenizer, SETTINGS)


def tokenize(tokenizer, captions: list[str], length: int) -> np.ndarray:
    table = pd.DataFrame({"sample_id": [f"photo-{i}" for i in range(len(captions))], "caption": captions})
    return batches.make_pairs(table, random_store(len(captions)), tokenizer,
                              BatchSettings(text_length=length)).tokens


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- words


def test_names_of_special_tokens_in_a_caption_are_plain_text(tokenizer, tmp_path):
    texts = ["[MASK] [SEP] 口红", "[PAD] x", "[CLS][UNK]"]
    tokens = tokenize(batches.load_tokenizer(tmp_path), texts, 12)
    ids = {name: tokenizer.token_to_id(name) for name in batches.SPECIAL}
    for row in tokens.tolist():
        end = row.index(ids["[SEP]"])
        assert row[0] == ids["[CLS]"] and set(row[end + 1:]) <= {ids["[PAD]"]}  # as in any caption
        assert not {ids["[MASK]"], ids["[CLS]"], ids["[PAD]"], ids["[SEP]"]} & set(row[1:end])
    written = tokenize(tokenizer, ["mask sep 口红"], 12)[0].tolist()
    assert written[-1] == 0 and tokens[0].tolist()[-1] == 0
    vocabulary = tmp_path / "brackets"
    vocabulary.mkdir()
    made = batches.make_tokenizer(["[MASK] 口红"] * 3, vocabulary)
    assert made.encode("[MASK] 口红").tokens == ["[CLS]", "[", "mask", "]", "口", "红", "[SEP]"]


def test_a_vocabulary_of_special_tokens_characters_and_frequent_words(tokenizer, tmp_path):
    words = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert "abc" in words and "30ml" not in words  # three times; twice
    assert {"精", "a", "##a", "3", "##3"} <= set(words) and "##精" not in words
    assert len(set(words)) == len(words) == tokenizer.get_vocab_size()


def test_a_tokenizer_comes_back_from_its_folder_and_takes_berts_vocabulary(tokenizer, tmp_path):
    again = batches.load_tokenizer(tmp_path)
    assert np.array_equal(tokenize(again, CAPTIONS, 20), tokenize(tokenizer, CAPTIONS, 20))
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n液\n", encoding="utf-8")
    assert batches.make_tokenizer(CAPTIONS, tmp_path, str(bert)).get_vocab_size() == 6


def test_every_caption_comes_back_from_its_tokens(tokenizer):
    for caption in CAPTIONS:
        ids = tokenize(tokenizer, [caption], 40)[0]
        assert tokenizer.token_to_id("[UNK]") not in ids
        assert tokenizer.decode(list(ids)).replace(" ", "") == caption.lower().replace(" ", "")


def test_chinese_falls_into_characters_and_rare_words_into_letters(tokenizer):
    pieces = [tokenizer.id_to_token(i) for i in tokenize(tokenizer, ["ABC 精华 xyz é中"], 12)[0]]
    assert pieces == ["[CLS]", "abc", "精", "华", "x", "##y", "##z", "e", "[UNK]", "[SEP]", "[PAD]", "[PAD]"]


def test_tokens_are_cut_and_filled_up(tokenizer):
    ids = tokenize(tokenizer, ["", "精华" * 30, "精"], 8)
    pad, cls, sep = (tokenizer.token_to_id(name) for name in ("[PAD]", "[CLS]", "[SEP]"))
    assert ids.shape == (3, 8) and ids.dtype == np.int64
    assert ids[0].tolist() == [cls, sep, *[pad] * 6]
    assert (ids[1, 0], ids[1, -1]) == (cls, sep) and pad not in ids[1]
    assert tokenize(tokenizer, [], 8).shape == (0, 8)


# ---- masking


def within(found: float, expected: float, trials: int) -> bool:
    """Whether a share lies within five standard errors of what it should be."""
    return abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / trials)


def test_tokens_are_masked_at_the_rates_of_bert():
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "size": 1000}
    ids = torch.randint(5, 1000, (2000, 40), generator=generator(1))
    ids[:, 0], ids[:, 30], ids[:, 31:] = 2, 3, 0
    masked, labels = batches.mask_tokens(ids, special, 0.15, generator())
    fixed = (ids == 0) | (ids == 2) | (ids == 3)
    chosen = labels != -1
    assert not chosen[fixed].any() and torch.equal(masked[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    count, real = int(chosen.sum()), int((~fixed).sum())
    became_mask, stayed = masked[chosen] == 4, masked[chosen] == ids[chosen]
    assert within(count / real, 0.15, real)
    assert within(became_mask.double().mean(), 0.8, count)
    assert within(stayed.double().mean(), 0.1 + 0.1 / 995, count)
    other = masked[chosen][~became_mask & ~stayed]
    assert other.min() >= 5 and len(other.unique()) > 400  # any word, no special token


def test_masking_without_any_word_changes_nothing(tmp_path):
    tokenizer = batches.make_tokenizer(["", ""], tmp_path)
    pairs = batches.make_pairs(pd.DataFrame({"sample_id": ["photo-0"], "caption": [""]}), random_store(1), tokenizer,
                               SETTINGS)
    batch = pairs.masked_batch(np.array([0]), replace(SETTINGS, masked_tokens=1.0), generator())
    assert batch["input_ids"].tolist() == pairs.tokens.tolist() and (batch["mlm_labels"] == -1).all()


def test_regions_are_masked_at_the_rates_of_the_paper(tokenizer):
    pairs, chosen = make_pairs(tokenizer), np.tile(np.arange(6), 1000)
    batch = pairs.masked_batch(chosen, SETTINGS, generator())
    real, labels = batch["region_mask"][:, 1:] == 1, batch["region_labels"]
    zeroed = real & (batch["region_features"][:, 1:] == 0).all(-1)
    assert labels.dtype == torch.int64 and set(labels.unique().tolist()) == {0, 1}
    assert not labels[~real].any() and not zeroed[labels == 0].any()
    assert within(labels[real].double().mean(), 0.15, int(real.sum()))
    assert within(zeroed[labels == 1].double().mean(), 0.9, int(labels.sum()))


def test_masking_follows_its_generator(tokenizer):
    pairs, chosen = make_pairs(tokenizer), np.arange(6)
    settings = replace(SETTINGS, masked_tokens=0.5, masked_regions=0.5)
    one, same, other = (pairs.masked_batch(chosen, settings, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["mlm_labels"], other["mlm_labels"])
    assert not torch.equal(one["region_labels"], other["region_labels"])


# ---- batches


def test_a_batch_holds_what_the_store_and_the_captions_say(tokenizer):
    pairs, chosen = make_pairs(tokenizer), np.array([4, 0, 3])
    batch, store = pairs.batch(chosen), pairs.store
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (3, 12), "text_mask": (3, 12), "region_features": (3, 5, 8), "region_locations": (3, 5, 5),
        "region_mask": (3, 5)}
    for b, i in enumerate(chosen):
        count = store.counts[i]
        assert batch["input_ids"][b].tolist() == pairs.tokens[i].tolist()
        assert batch["text_mask"][b].tolist() == [int(t != 0) for t in pairs.tokens[i]]
        assert batch["region_mask"][b].tolist() == [1] + [int(r < count) for r in range(4)]
        features = store.features[i].astype(np.float32)
        assert np.array_equal(batch["region_features"][b, 1:], features)
        assert batch["region_features"][b, 0].numpy() == pytest.approx(features[:count].mean(0), abs=1e-5)
        assert batch["region_locations"][b, 0].tolist() == [0, 0, 1, 1, 1]
        for r in range(count):
            x1, y1, x2, y2 = store.boxes[i, r]
            assert batch["region_locations"][b, 1 + r].numpy() == pytest.approx(
                [x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], abs=1e-6)


def test_an_instance_has_one_region_and_a_global_token_of_it(tokenizer):
    pairs, chosen, regions = make_pairs(tokenizer), np.array([3, 3, 1]), np.array([2, 0, 1])
    whole, single = pairs.batch(chosen), pairs.batch(chosen, regions)
    assert single["region_mask"].tolist() == [[1, 1]] * 3
    own = whole["region_features"][np.arange(3), 1 + regions]
    assert torch.equal(single["region_features"], torch.stack([own, own], 1))
    assert single["region_locations"][:, 0].tolist() == [[0, 0, 1, 1, 1]] * 3
    assert torch.equal(single["region_locations"][:, 1], whole["region_locations"][np.arange(3), 1 + regions])
    assert torch.equal(single["input_ids"], whole["input_ids"])


def test_a_batch_may_have_other_photos(tokenizer):
    pairs = make_pairs(tokenizer)
    text, photo = pairs.batch(np.array([1, 2])), pairs.batch(np.array([5, 0]))
    for name, value in pairs.batch(np.array([1, 2]), photos=np.array([5, 0])).items():
        assert torch.equal(value, (photo if name.startswith("region") else text)[name])


def test_a_masked_batch_hides_what_is_to_be_predicted(tokenizer):
    pairs, chosen = make_pairs(tokenizer), np.arange(6)
    settings = replace(SETTINGS, masked_regions=0.6, zeroed=0.5, masked_tokens=0.4)
    plain, batch = pairs.batch(chosen), pairs.masked_batch(chosen, settings, generator())
    targets, labels = plain["region_features"][:, 1:], batch["region_labels"].bool()
    zeroed = labels & (batch["region_features"][:, 1:] == 0).all(-1)
    assert 0 < zeroed.sum() < labels.sum()
    assert torch.equal(batch["region_targets"], targets)
    assert torch.equal(batch["region_features"][:, 1:][~zeroed], targets[~zeroed])
    assert torch.equal(batch["region_mask"], plain["region_mask"])  # a zeroed region is still looked at
    assert torch.equal(batch["region_locations"], plain["region_locations"])
    assert torch.equal(batch["text_mask"], plain["text_mask"])
    predicted = batch["mlm_labels"] != -1
    assert torch.equal(torch.where(predicted, batch["mlm_labels"], batch["input_ids"]), plain["input_ids"])
    for b in range(6):  # the global token must not give away what is zeroed
        seen = [r for r in range(4) if plain["region_mask"][b, 1 + r] and not zeroed[b, r]]
        mean = targets[b, seen].mean(0) if seen else torch.zeros(8)
        torch.testing.assert_close(batch["region_features"][b, 0], mean)


def test_without_matching_a_batch_draws_nothing_but_its_masks(tokenizer):
    """The final recipe's batches are the same, bit for bit, as if there were no image-text matching."""
    pairs, chosen, draws = make_pairs(tokenizer), np.arange(6), generator()
    batch, plain = pairs.masked_batch(chosen, SETTINGS, generator()), pairs.batch(chosen)
    ids, labels = batches.mask_tokens(plain["input_ids"], pairs.special, SETTINGS.masked_tokens, draws)
    lot = torch.rand(6, 4, generator=draws)
    regions = ((lot < SETTINGS.masked_regions) & plain["region_mask"][:, 1:].bool()).long()
    assert "matched" not in batch and torch.equal(batch["input_ids"], ids) and torch.equal(batch["mlm_labels"], labels)
    assert torch.equal(batch["region_labels"], regions) and torch.equal(batch["region_targets"],
                                                                        plain["region_features"][:, 1:])


@pytest.mark.parametrize("matching", [False, True])
def test_shards_of_a_batch_hold_what_the_whole_would(tokenizer, matching):
    """Each process reads its shard, and together they see the masks that one would."""
    pairs, chosen = make_pairs(tokenizer, 12), np.arange(9)
    settings = replace(SETTINGS, masked_tokens=0.4, masked_regions=0.5)
    whole = pairs.masked_batch(chosen, settings, generator(), matching)
    shards = [pairs.masked_batch(chosen, settings, generator(), matching, rows)
              for rows in (slice(0, 4), slice(4, 9))]
    for name, value in whole.items():
        assert torch.equal(torch.cat([shard[name] for shard in shards]), value), name


def test_a_broken_pair_has_a_caption_that_is_not_its_photos(tokenizer):
    """Captions recur here: a caption or a photo that comes from a pair with the same caption breaks nothing."""
    pairs, chosen = make_pairs(tokenizer, 24), np.arange(24)[::-1].copy()
    visible = replace(SETTINGS, masked_tokens=0.3, masked_regions=0.5, zeroed=0.0)
    plain = pairs.batch(chosen)
    photo_of = {pairs.store.features[i].tobytes(): i for i in range(24)}
    texts_kept = photos_kept = broken = 0
    for seed in range(40):
        batch = pairs.masked_batch(chosen, visible, generator(seed), matching=True)
        ids = torch.where(batch["mlm_labels"] != -1, batch["mlm_labels"], batch["input_ids"])
        for b in range(24):
            photo = photo_of[batch["region_features"][b, 1:].numpy().astype(np.float16).tobytes()]
            if batch["matched"][b]:
                assert ids[b].tolist() == pairs.tokens[photo].tolist()
                assert ids[b].tolist() == pairs.tokens[chosen[b]].tolist()
                continue
            broken += 1
            assert (batch["mlm_labels"][b] == -1).all() and (batch["region_labels"][b] == 0).all()
            text_kept = text_is(pairs, batch["input_ids"][b], plain["input_ids"][b])
            texts_kept, photos_kept = texts_kept + text_kept, photos_kept + (photo == chosen[b])
            assert text_kept + (photo == chosen[b]) == 1  # one of the two was replaced
            assert not text_is(pairs, batch["input_ids"][b], torch.from_numpy(pairs.tokens[photo]))
        assert (batch["mlm_labels"] != -1).any() and batch["region_labels"].any()
    assert within(broken / 960, 0.5 * 0.75, 960)  # three in four replacements have another caption
    assert within(texts_kept / broken, 0.5, broken) and texts_kept + photos_kept == broken


def text_is(pairs: Pairs, masked: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether masked tokens are those of a caption, as far as two captions of this file can be told apart."""
    shares = [(masked == torch.from_numpy(tokens)).double().mean() for tokens in pairs.tokens[:4]]
    return bool((masked == ids).double().mean() == max(shares))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_at_most_half_of_a_batch_is_broken(tokenizer, count):
    pairs = make_pairs(tokenizer)
    for seed in range(20):
        batch = pairs.masked_batch(np.arange(count), SETTINGS, generator(seed), matching=True)
        assert (batch["matched"] == 0).sum() <= count // 2


def test_masking_leaves_the_store_and_the_pairs_alone(tokenizer):
    pairs = make_pairs(tokenizer)
    before = pairs.store.features.copy(), pairs.tokens.copy()
    pairs.masked_batch(np.arange(6), replace(SETTINGS, masked_regions=1.0, masked_tokens=1.0), generator())
    assert np.array_equal(pairs.store.features, before[0]) and np.array_equal(pairs.tokens, before[1])


def test_pairs_find_their_rows_by_id(tokenizer):
    table = pd.DataFrame({"sample_id": ["photo-5", "photo-1"], "caption": ["精", ""]})
    assert batches.make_pairs(table, random_store(8), tokenizer, SETTINGS).rows.tolist() == [5, 1]
