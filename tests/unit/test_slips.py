"""What the released code does by mistake, done here on purpose, beside what this code does: each slip and its effect.

Weight decay the wrong way round is in test_pretrain, and a loss that is not finite too.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import random_store

from capture_lib.model import layers, losses
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.training import batches
from capture_lib.training.batches import BatchSettings

SIZES = CaptureSettings(vocabulary=40, region_features=8, max_positions=20, width=16, text_layers=1,
                        text_heads=2, text_ffn=32, visual_layers=1, visual_heads=2, visual_ffn=32, cross_layers=1,
                        cross_heads=2, cross_width=16, joint_layers=2, joint_heads=4, output=16, dropout=0.0)
SETTINGS = BatchSettings(text_length=12, masked_tokens=0.5, masked_regions=0.6)


def padded_batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Samples of 6 tokens, so many of them real, and 1+4 regions."""
    draws, count = torch.Generator().manual_seed(0), len(lengths)
    return {"input_ids": torch.randint(5, 40, (count, 6), generator=draws),
            "text_mask": (torch.arange(6) < torch.tensor(lengths)[:, None]).long(),
            "region_features": torch.randn(count, 5, 8, generator=draws),
            "region_locations": torch.rand(count, 5, 5, generator=draws),
            "region_mask": torch.ones(count, 5)}


@pytest.fixture
def pairs(tmp_path) -> batches.Pairs:
    captions = [f"abc 精华{chr(0x4E00 + i)} 面霜" for i in range(12)]
    tokenizer = batches.make_tokenizer(captions, tmp_path)
    table = pd.DataFrame({"sample_id": [f"photo-{i}" for i in range(12)], "caption": captions})
    return batches.make_pairs(table, random_store(12), tokenizer, SETTINGS)


def with_masks_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released joint layers' mask: (B, K) repeated for H heads, where PyTorch reads B·H rows sample by sample."""
    ours = layers.attend

    def released(query, key, value, real, dropout, maps):
        samples, heads = query.shape[:2]
        mask = real.repeat(heads, 1).reshape(samples, heads, 1, -1)  # row b·H+h is the mask of sample (b·H+h) % B
        scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    monkeypatch.setattr(layers.SelfAttention, "forward", lambda self, x, real, maps=None: self.out(
        (released if x.shape[1] == 11 else ours)(*layers.split_heads(self.qkv(x), self.heads), real, 0.0, None)))


@pytest.mark.parametrize(("lengths", "same"), [([4, 4, 4], True), ([6, 4, 2], False)])
def test_joint_masks_head_by_head_reach_other_samples(monkeypatch, lengths, same):
    """With equal paddings the released code is right; with different ones samples see each other's masks."""
    torch.manual_seed(0)
    network, inputs = Capture(SIZES).eval(), padded_batch(lengths)
    alone = torch.cat([network(**{name: value[b:b + 1] for name, value in inputs.items()})["text_pooled"]
                       for b in range(3)])
    torch.testing.assert_close(network(**inputs)["text_pooled"], alone, atol=1e-6, rtol=1e-5)
    with_masks_head_by_head(monkeypatch)
    assert torch.allclose(network(**inputs)["text_pooled"], alone, atol=1e-6, rtol=1e-5) == same


def test_the_prefix_of_fixed_length_needs_dataparallel():
    """A tenth of the rate goes to parameters whose name without its first 7 letters, "module.", is one of BERT's.

    One process has no such prefix, so that none is found; here every parameter has one rate.
    """
    ours = ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.bias"]
    found = [{name[len("module."):] for name in names} & set(ours)
             for names in (ours, [f"module.{name}" for name in ours])]
    assert found == [set(), set(ours)]


def test_zeroed_regions_in_the_mean_shrink_the_global_token(pairs):
    batch = pairs.masked_batch(np.arange(12), replace(SETTINGS, zeroed=1.0), torch.Generator().manual_seed(0))
    ours = batch["region_features"]
    real, zeroed = batch["region_mask"][:, 1:].bool(), batch["region_labels"].bool()
    seen = real & ~zeroed
    released = ours[:, 1:].sum(1) / real.sum(1, keepdim=True)  # over all regions, as if the zeros were features
    shrunk = seen.sum(1) / real.sum(1)
    torch.testing.assert_close(released, ours[:, 0] * shrunk[:, None])
    assert torch.equal(shrunk < 1, zeroed.any(1)) and 0 < zeroed.any(1).sum() < 12


def test_negatives_of_one_gpu_make_the_task_easier():
    """Two GPUs with half a batch each: fewer negatives, a lower loss from the same vectors."""
    draws = torch.Generator().manual_seed(0)
    text, region = torch.randn(2, 16, 8, generator=draws)
    whole = losses.nt_xent(region, text)
    halves = (losses.nt_xent(region[:8], text[:8]) + losses.nt_xent(region[8:], text[8:])) / 2
    assert halves < whole - 0.3


def test_no_masked_token_gives_nan_there_and_zero_here():
    torch.manual_seed(0)
    network, inputs = Capture(SIZES), padded_batch([6, 4])
    out, labels = network(**inputs), torch.full((2, 6), losses.NOT_PREDICTED)
    everywhere = network.predict_words(out["text_sequence"]).flatten(0, 1)
    assert torch.nn.functional.cross_entropy(everywhere, labels.flatten(), ignore_index=-1).isnan()
    assert losses.masked_language_loss(network, out, labels) == 0


def test_masking_in_place_would_reach_retrieval(pairs):
    """A loader that masks the arrays it holds hands masked input to whoever reads them next; ours never does."""
    before = pairs.batch(np.arange(12))
    masked = pairs.masked_batch(np.arange(12), SETTINGS, torch.Generator().manual_seed(0))
    assert not torch.equal(masked["region_features"], before["region_features"])  # what the next reader would get
    after = pairs.batch(np.arange(12))
    assert all(torch.equal(after[name], value) for name, value in before.items())
