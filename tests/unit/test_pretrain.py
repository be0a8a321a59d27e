"""The training loop: one batch learnt, interruptions that change no bit, and the same seed, the same weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import TOY, TOY_BATCHES, files_below, sixteen_pairs
from transformers import BertConfig, BertModel

from capture_lib.model.capture import Capture
from capture_lib.training import pretrain
from capture_lib.training.batches import Pairs
from capture_lib.training.pretrain import PretrainSettings

SETTINGS = PretrainSettings(epochs=3, batch=6, learning_rate=3e-3, keep_every=3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return sixteen_pairs(tmp_path_factory.mktemp("tokenizer"))


def run(pairs: Pairs, folder: Path, seed: int = 0, **changes) -> tuple[Capture, list[dict[str, float]]]:
    folder.mkdir(exist_ok=True)
    model = pretrain.build_model(TOY, pairs, seed)
    return model, pretrain.train(model, pairs, TOY_BATCHES, replace(SETTINGS, **changes), folder, seed)


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(pairs, folder)
    return folder


# ---- parts


def test_weight_decay_is_on_matrices_alone_and_every_parameter_is_trained_once(pairs):
    model = pretrain.build_model(TOY, pairs, 0)
    decayed, rest = pretrain.make_optimiser(model, SETTINGS).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, rest)]
    assert groups[0] | groups[1] == set(names.values()) and not groups[0] & groups[1]
    assert groups[1] == {name for name in names.values() if name.endswith("bias") or "norm" in name}


def our_groups(model: Capture, weight_decay: float) -> list[dict]:
    return pretrain.make_optimiser(model, replace(SETTINGS, weight_decay=weight_decay)).param_groups


def released_groups(model: Capture, weight_decay: float) -> list[dict]:
    """The released code's grouping of what starts from BERT's weights: decay where BERT's recipe has none."""
    spared = ("bias", "norm")
    return [{"params": [p for name, p in model.named_parameters() if any(part in name for part in spared)],
             "weight_decay": weight_decay},
            {"params": [p for name, p in model.named_parameters() if not any(part in name for part in spared)],
             "weight_decay": 0.0}]


@pytest.mark.parametrize(("groups", "shrinking"), [(our_groups, "weights"),
                                                   (released_groups, "biases and norms")])
def test_the_released_code_decays_what_we_spare(pairs, groups, shrinking):
    """Without any gradient, a step of AdamW moves what weight decay acts on, and nothing else."""
    model = pretrain.build_model(TOY, pairs, 0)
    torch.nn.init.ones_(model.text_layers[0].attention.out.bias)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in (optimiser := torch.optim.AdamW(groups(model, 0.01))).param_groups:
        group["lr"] = 0.1
    optimiser.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    spared = {name for name in before if "bias" in name or "norm" in name}
    if shrinking == "weights":
        assert moved == before.keys() - spared and len(moved) > 20
    else:
        assert moved <= spared and {"text_embedding.norm.weight", "text_layers.0.attention.out.bias"} <= moved
    for name in moved:
        torch.testing.assert_close(model.state_dict()[name], before[name] * (1 - 0.1 * 0.01))


@pytest.mark.parametrize(("warmup", "steps"), [(3, 30), (0, 5), (1, 1), (5, 5), (0, 1), (10, 100)])
def test_every_step_has_a_rate_and_the_highest_comes_once_after_the_warm_up(warmup, steps):
    settings = replace(SETTINGS, learning_rate=1.0, warmup=warmup / steps)
    rates = [pretrain.learning_rate(step, steps, settings) for step in range(steps)]
    assert min(rates) > 0 and max(rates) <= 1
    assert rates.index(max(rates)) == min(warmup, steps - 1)
    assert rates == sorted(rates[:warmup]) + sorted(rates[warmup:], reverse=True)


def pairs_of_steps(pairs: Pairs, count: int, batch: int, steps: range, seed: int = 0) -> list[list[int]]:
    """Which of the first `count` pairs the steps' batches hold: each has a caption of its own."""
    few = replace(pairs, tokens=pairs.tokens[:count], rows=pairs.rows[:count])
    settings, unmasked = replace(SETTINGS, batch=batch), replace(TOY_BATCHES, masked_tokens=0.0)
    tokens = [pretrain.step_batch(step, few, unmasked, settings, seed)["input_ids"].tolist() for step in steps]
    return [[pairs.tokens.tolist().index(row) for row in rows] for rows in tokens]


@pytest.mark.parametrize(("count", "batch", "sizes"), [(16, 6, [6, 6]), (12, 6, [6, 6]), (4, 6, [4]), (1, 64, [1])])
def test_an_epoch_has_full_batches_of_pairs_once_each(pairs, count, batch, sizes):
    steps = len(sizes)
    epoch = pairs_of_steps(pairs, count, batch, range(2 * steps, 3 * steps))
    assert [len(chosen) for chosen in epoch] == sizes
    found = sum(epoch, [])
    assert len(set(found)) == len(found) and set(found) <= set(range(count))


def test_epochs_and_seeds_are_shuffled_apart(pairs):
    first, epoch = pairs_of_steps(pairs, 16, 16, range(2))
    assert first == pairs_of_steps(pairs, 16, 16, range(1))[0]
    assert len({tuple(order) for order in (first, epoch, pairs_of_steps(pairs, 16, 16, range(1), seed=1)[0])}) == 3


def test_a_fresh_model_has_the_sizes_of_the_data_and_follows_its_seed(pairs):
    model, same, other = (pretrain.build_model(TOY, pairs, seed) for seed in (0, 0, 1))
    assert model.settings == replace(TOY, vocabulary=pairs.special["size"], region_features=8)
    words = [built.text_embedding.words.weight for built in (model, same, other)]
    assert torch.equal(words[0], words[1]) and not torch.equal(words[0], words[2])


def test_a_fresh_model_starts_its_text_side_from_bert(pairs, tmp_path):
    sizes = BertConfig(vocab_size=pairs.special["size"], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=32, max_position_embeddings=32)
    bert = BertModel(sizes)
    bert.save_pretrained(tmp_path)
    model, plain = pretrain.build_model(TOY, pairs, 0, bert=str(tmp_path)), pretrain.build_model(TOY, pairs, 0)
    assert torch.equal(model.text_embedding.words.weight, bert.embeddings.word_embeddings.weight)
    assert torch.equal(model.joint_positions.weight, plain.joint_positions.weight)


# ---- training


def test_one_batch_is_overfitted(pairs, tmp_path):
    few = replace(pairs, tokens=pairs.tokens[:6], rows=pairs.rows[:6])
    wide = replace(TOY, width=32, output=32, text_ffn=64, visual_ffn=64, dropout=0.0)
    settings = replace(SETTINGS, epochs=200, keep_every=100)
    history = pretrain.train(pretrain.build_model(wide, few, 2), few, TOY_BATCHES, settings, tmp_path, 2)
    first, last = ({name: np.mean([step[name] for step in part]) for name in pretrain.TASKS}
                   for part in (history[:10], history[-10:]))
    assert len(history) == 200
    assert last["contrastive"] < first["contrastive"] / 4
    assert last["mlm"] < first["mlm"] / 2 and last["mrp"] < 0.9 * first["mrp"]


def test_a_run_leaves_a_checkpoint_its_losses_and_nothing_else(pairs, whole):
    assert sorted(files_below(whole)) == ["config.json", "history.json", "model.safetensors"]
    loaded = Capture.from_pretrained(whole)
    with torch.inference_mode():
        batch = pairs.batch(np.arange(16))
        assert loaded(**batch)["text_pooled"].isfinite().all()


def test_the_trained_model_is_the_saved_one_and_ready(pairs, tmp_path):
    model, history = run(pairs, tmp_path)
    loaded = Capture.from_pretrained(tmp_path)
    assert not model.training and [set(step) for step in history] == [set(pretrain.TASKS)] * 6
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_the_same_seed_gives_the_same_bytes_and_another_others(pairs, whole, tmp_path):
    torch.rand(17)  # what ran before does not matter
    run(pairs, tmp_path / "again")
    run(pairs, tmp_path / "other", seed=1)
    assert files_below(tmp_path / "again") == files_below(whole)
    assert files_below(tmp_path / "other")["model.safetensors"] != files_below(whole)["model.safetensors"]


def test_the_first_step_already_learns(pairs, tmp_path):
    """A schedule that starts at a rate of 0, as the usual one does, wastes a batch and one step of Adam's averages."""
    model, _ = run(pairs, tmp_path, epochs=1, batch=16, warmup=1.0)  # one step, and that of the warm-up
    fresh = pretrain.build_model(TOY, pairs, 0).state_dict()
    assert not torch.equal(model.state_dict()["text_embedding.words.weight"], fresh["text_embedding.words.weight"])


def test_the_learning_rate_rises_for_a_tenth_and_falls_to_the_end(pairs, tmp_path, monkeypatch):
    rates, real = [], pretrain.step

    def step(objective, batch, optimiser):
        rates.append(optimiser.param_groups[0]["lr"] / SETTINGS.learning_rate)
        return real(objective, batch, optimiser)

    monkeypatch.setattr(pretrain, "step", step)
    run(pairs, tmp_path, epochs=10)
    assert rates == pytest.approx([1 / 3, 2 / 3] + [1 - i / 18 for i in range(18)])


def test_only_the_tasks_asked_for_are_trained(pairs, tmp_path):
    model, history = run(pairs, tmp_path, tasks=("mrp",), epochs=2, weight_decay=0.0)
    fresh = pretrain.build_model(TOY, pairs, 0).state_dict()
    assert [set(step) for step in history] == [{"mrp"}] * 4
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])}
    assert {"region_decoder.weight", "text_embedding.words.weight"} <= changed
    assert not any(name.startswith(("word_", "text_contrastive", "region_contrastive")) for name in changed)


def test_matching_is_learnt_and_kept(pairs, tmp_path):
    """Which caption goes with which photo, of 6 pairs, can be learnt by heart; guessing gives ln 2 = 0.69."""
    few = replace(pairs, tokens=pairs.tokens[:6], rows=pairs.rows[:6])
    sizes = replace(TOY, width=32, output=32, text_ffn=64, visual_ffn=64, dropout=0.0)
    settings = replace(SETTINGS, tasks=("itm",), epochs=200, keep_every=100)
    unmasked = replace(TOY_BATCHES, masked_tokens=0.0, masked_regions=0.0)
    model = pretrain.build_model(sizes, few, 2, settings.tasks)
    history = [step["itm"] for step in pretrain.train(model, few, unmasked, settings, tmp_path, 2)]
    assert np.mean(history[:20]) > 0.6 and np.mean(history[-20:]) < 0.35
    assert torch.equal(Capture.from_pretrained(tmp_path).match_head.weight, model.match_head.weight)


def test_matching_joins_the_other_tasks_and_the_default_has_no_part_of_it(pairs, whole, tmp_path):
    tasks = (*pretrain.TASKS, "itm")
    model = pretrain.build_model(TOY, pairs, 0, tasks)
    history = pretrain.train(model, pairs, TOY_BATCHES, replace(SETTINGS, tasks=tasks), tmp_path, 0)
    assert [set(step) for step in history] == [set(tasks)] * 6 and np.isfinite([sum(s.values()) for s in history]).all()
    assert "itm" not in PretrainSettings().tasks
    assert not any("match" in name for name in Capture.from_pretrained(whole).state_dict())


def test_a_step_follows_the_sum_of_its_losses(pairs):
    batch = pairs.masked_batch(np.arange(6), TOY_BATCHES, torch.Generator().manual_seed(0))
    model = pretrain.build_model(replace(TOY, dropout=0.0), pairs, 0).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    objective = pretrain.Objective(model, SETTINGS)
    losses = [sum(pretrain.step(objective, batch, optimiser).values()).item() for _ in range(8)]
    assert losses[-1] < losses[0]
    norm = torch.sqrt(sum((p.grad ** 2).sum() for p in model.parameters() if p.grad is not None))
    assert norm <= 1.001  # clipped
