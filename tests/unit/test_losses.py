"""The losses against naive loops, what gets no gradient from which loss, and one batch overfitted."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import (
    TEMPERATURE,
    caption_loss,
    contrastive_loss,
    masked_language_loss,
    masked_region_loss,
    matching_loss,
    nt_xent,
    pretext_losses,
)

TINY = CaptureSettings(
    vocabulary=40, region_features=10, max_positions=20, width=16, text_layers=1, text_heads=4,
    text_ffn=32, visual_layers=1, visual_heads=2, visual_ffn=24, cross_layers=1, cross_heads=2, cross_width=8,
    joint_layers=1, joint_heads=4, output=12, dropout=0.0)
INPUTS = ("input_ids", "text_mask", "region_features", "region_locations", "region_mask")


@pytest.fixture
def model() -> Capture:
    torch.manual_seed(0)
    return Capture(TINY)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """4 samples with 6 tokens and 1+4 regions; two tokens and two regions in all are masked."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (4, 6), generator=draw)
    regions = torch.randn(4, 5, 10, generator=draw)
    batch = {"input_ids": ids.clone(), "text_mask": torch.ones(4, 6),
             "region_features": regions.clone(), "region_mask": torch.ones(4, 5),
             "region_locations": torch.rand(4, 5, 5, generator=draw),
             "mlm_labels": torch.full((4, 6), -1), "region_labels": torch.zeros(4, 4, dtype=torch.int64),
             "region_targets": regions[:, 1:]}
    for sample, token in ((0, 2), (3, 4)):
        batch["mlm_labels"][sample, token] = ids[sample, token]
        batch["input_ids"][sample, token] = 3
    for sample, region in ((0, 1), (2, 3)):
        batch["region_labels"][sample, region] = 1
        batch["region_features"][sample, region + 1] = 0
    return batch


def run(model: Capture, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return model(*(batch[name] for name in INPUTS))


def naive_nt_xent(a, b, temperature):
    vectors = [row / row.norm() for row in [*a, *b]]
    total = 0.0
    for i, anchor in enumerate(vectors):
        partner = (i + len(a)) % len(vectors)
        terms = {j: math.exp(float(anchor @ other) / temperature)
                 for j, other in enumerate(vectors) if j != i}
        total -= math.log(terms[partner] / sum(terms.values()))
    return total / len(vectors)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_equals_the_naive_loop(temperature):
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    assert float(nt_xent(a, b, temperature)) == pytest.approx(naive_nt_xent(a, b, temperature), rel=1e-5)


def test_nt_xent_knows_no_length_and_no_side():
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    torch.testing.assert_close(nt_xent(3 * a, 0.2 * b), nt_xent(b, a))


def test_nt_xent_is_low_for_matched_pairs_and_zero_for_one():
    a = torch.eye(6)
    assert nt_xent(a, a) < 1e-4 < 10 < nt_xent(a, a.roll(1, 0))
    assert nt_xent(a[:1], a[1:2]) == 0


def test_nt_xent_keeps_float32_under_autocast():
    a, b = torch.randn(5, 64), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(a, b)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, nt_xent(a, b))


@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_caption_loss_equals_the_naive_loop_over_those_that_have_a_caption(spread):
    predicted, texts = torch.randn(6, 8), torch.randn(6, 8)
    texts[3] = texts[1]
    texts[2] = 0
    rows = [0, 1, 3, 4, 5]
    total = 0.0
    for i in rows:
        likes = [math.exp(float(F.cosine_similarity(texts[i], texts[j], dim=0)) / spread) for j in rows]
        logits = [float(F.cosine_similarity(predicted[i], texts[j], dim=0)) / TEMPERATURE for j in rows]
        whole = math.log(sum(map(math.exp, logits)))
        total -= sum(like / sum(likes) * (logit - whole) for like, logit in zip(likes, logits, strict=True))
    assert float(caption_loss(predicted, texts, spread)) == pytest.approx(total / len(rows), rel=1e-4)
    assert caption_loss(predicted, 0 * texts, spread) == 0


def test_without_spread_only_equal_captions_share_a_target():
    texts = torch.eye(4)[[0, 0, 1, 2]]
    logits = F.normalize(texts + 0.1, dim=1) @ texts.T / TEMPERATURE
    targets = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(caption_loss(texts + 0.1, texts, 0), F.cross_entropy(logits, targets))


def test_contrastive_loss_compares_the_vectors_before_the_cross_layers(model, batch):
    out = run(model, batch)
    expected = naive_nt_xent(out["text_contrastive"].detach(), out["region_contrastive"].detach(), 0.3)
    assert contrastive_loss(out, 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_masked_language_loss_equals_the_naive_loop(model, batch):
    out, labels = run(model, batch), batch["mlm_labels"]
    logits = model.predict_words(out["text_sequence"])
    terms = [-logits[b, t].log_softmax(-1)[labels[b, t]].item()
             for b in range(4) for t in range(6) if labels[b, t] >= 0]
    assert len(terms) == 2
    assert masked_language_loss(model, out, labels).item() == pytest.approx(sum(terms) / 2, rel=1e-5)


def test_masked_region_loss_equals_the_naive_loop(model, batch):
    out, labels, targets = run(model, batch), batch["region_labels"], batch["region_targets"]
    predicted = model.predict_regions(out["region_sequence"])
    terms = [(predicted[b, r + 1, f] - targets[b, r, f]).item() ** 2
             for b in range(4) for r in range(4) if labels[b, r] for f in range(10)]
    assert len(terms) == 20
    loss = masked_region_loss(model, out, labels, targets)
    assert loss.item() == pytest.approx(sum(terms) / 20, rel=1e-5)


def test_nothing_masked_gives_zero_and_zero_gradients(model, batch):
    out = run(model, batch)
    words = masked_language_loss(model, out, torch.full((4, 6), -1))
    regions = masked_region_loss(model, out, torch.zeros(4, 4), batch["region_targets"])
    assert words == 0 and regions == 0
    (words + regions).backward()
    for name in ("word_bias", "region_decoder.weight", "joint_positions.weight"):
        assert model.get_parameter(name).grad.eq(0).all()


def without_gradient(model: Capture, loss: torch.Tensor) -> set[str]:
    """The parts of the model, by their first name, none of whose parameters gets a gradient from the loss."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    parts = {name.split(".")[0]: False for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parts[name.split(".")[0]] |= parameter.grad is not None
    return {part for part, reached in parts.items() if not reached}


CONTRASTIVE_ONLY = {"text_contrastive", "region_contrastive"}
WORDS_ONLY = {"text_output", "word_head", "word_bias"}
REGIONS_ONLY = {"region_output", "region_head", "region_decoder"}


@pytest.mark.parametrize(("names", "unreached"), [
    (["mlm", "mrp", "contrastive"], set()),
    (["mlm", "mrp"], CONTRASTIVE_ONLY),
    (["mlm", "contrastive"], REGIONS_ONLY),
    (["mrp", "contrastive"], WORDS_ONLY),
    (["contrastive"], WORDS_ONLY | REGIONS_ONLY | {"cross_layers", "joint_layers", "joint_positions"})])
def test_what_gets_no_gradient_without_a_pretext_task(model, batch, names, unreached):
    """Why an ablation's effect is partly mechanical: H_IMG passes through a head that MRP alone trains."""
    losses = pretext_losses(model, batch, run(model, batch))
    assert without_gradient(model, sum(losses[name] for name in names)) == unreached


def test_the_retrieval_vectors_get_no_direct_loss(model, batch):
    """H_TXT and H_IMG are first tokens; the losses act on other tokens and before the cross layers."""
    out = run(model, batch)
    out["text_sequence"].retain_grad()
    out["region_sequence"].retain_grad()
    sum(pretext_losses(model, batch, out).values()).backward()
    for name in ("text_sequence", "region_sequence"):
        assert out[name].grad[:, 0].eq(0).all() and out[name].grad[:, 1:].abs().sum() > 0


def test_pretext_losses_are_the_three_by_name(model, batch):
    out = run(model, batch)
    losses = pretext_losses(model, batch, out, temperature=0.2)
    torch.testing.assert_close(losses, {
        "mlm": masked_language_loss(model, out, batch["mlm_labels"]),
        "mrp": masked_region_loss(model, out, batch["region_labels"], batch["region_targets"]),
        "contrastive": contrastive_loss(out, 0.2)})


MATCHED = torch.tensor([1, 0, 0, 1])


def matching_model() -> Capture:
    torch.manual_seed(0)
    return Capture(replace(TINY, matching=True))


def test_matching_loss_equals_the_naive_loop(batch):
    model = matching_model()
    out = run(model, batch)
    terms = []
    for b in range(4):
        product = out["text_pooled"][b] * out["region_pooled"][b]
        broken, whole = (model.match_head.weight @ product + model.match_head.bias).tolist()
        right, wrong = (whole, broken) if MATCHED[b] else (broken, whole)
        terms.append(math.log(1 + math.exp(wrong - right)))
    assert matching_loss(model, out, MATCHED).item() == pytest.approx(sum(terms) / 4, rel=1e-5)


def test_broken_pairs_take_no_part_in_the_contrastive_loss(model, batch):
    out = run(model, batch)
    text, region = out["text_contrastive"].detach(), out["region_contrastive"].detach()
    expected = naive_nt_xent(region[[0, 3]], text[[0, 3]], 0.3)
    assert contrastive_loss(out, 0.3, MATCHED).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(contrastive_loss(out, 0.3, torch.ones(4)), contrastive_loss(out, 0.3))


def test_matching_is_a_loss_where_pairs_are_broken_and_acts_on_the_retrieval_vectors(batch):
    model = matching_model()
    out = run(model, batch)
    assert "itm" not in pretext_losses(model, batch, out)
    out["text_pooled"].retain_grad()
    out["region_pooled"].retain_grad()
    losses = pretext_losses(model, batch | {"matched": MATCHED}, out)
    assert list(losses) == ["mlm", "mrp", "contrastive", "itm"]
    losses["itm"].backward()
    assert all(out[name].grad.abs().sum() > 0 for name in ("text_pooled", "region_pooled"))


def test_region_targets_may_be_half_precision(model, batch):
    """The region store holds float16; squares of its features must not overflow."""
    out = run(model, batch)
    targets = torch.full((4, 4, 10), 300.0)
    half = masked_region_loss(model, out, batch["region_labels"], targets.half())
    torch.testing.assert_close(half, masked_region_loss(model, out, batch["region_labels"], targets))


def test_one_batch_is_overfitted(model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        losses = pretext_losses(model, batch, run(model, batch))
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["mlm"] < 0.05 and losses["mrp"] < 0.05 and losses["contrastive"] < 0.05
    words = model.predict_words(run(model, batch)["text_sequence"])
    masked = batch["mlm_labels"] >= 0
    assert torch.equal(words[masked].argmax(-1), batch["mlm_labels"][masked])
    assert F.cross_entropy(words[masked], batch["mlm_labels"][masked]) < 0.05
