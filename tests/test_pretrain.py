"""The training loop: one batch learnt, interruptions that change no bit, and the same seed, the same weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import files_below, random_store

from capture_lib import batches, pretrain
from capture_lib.batches import BatchSettings, Pairs
from capture_lib.model import Capture, CaptureSettings
from capture_lib.pretrain import PretrainSettings

BATCHES = BatchSettings(text_length=8)
MODEL = CaptureSettings(text_length=8, max_positions=32, width=16, text_layers=1, text_heads=2, text_ffn=32,
                        visual_layers=1, visual_heads=2, visual_ffn=32, cross_layers=1, cross_heads=2, cross_width=16,
                        joint_layers=1, joint_heads=2, output=16, dropout=0.1)
SETTINGS = PretrainSettings(epochs=3, batch=6, learning_rate=3e-3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """16 pairs of a caption and random regions."""
    captions = [f"品{chr(0x4E00 + i)} kind{i} lot{i % 3}" for i in range(16)]
    table = pd.DataFrame({"sample_id": [f"photo-{i}" for i in range(16)], "caption": captions})
    tokenizer = batches.make_tokenizer(BATCHES, captions, tmp_path_factory.mktemp("tokenizer"))
    return batches.make_pairs(table, random_store(16), tokenizer, BATCHES)


def run(pairs: Pairs, folder: Path, seed: int = 0, **changes) -> tuple[Capture, list[dict[str, float]]]:
    folder.mkdir(exist_ok=True)
    model = pretrain.build_model(MODEL, pairs, seed)
    return model, pretrain.train(model, pairs, BATCHES, replace(SETTINGS, **changes), folder, seed)


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(pairs, folder)
    return folder


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(("captions", "tasks"), [(["", "a"], ("mlm", "mrp", "contrastive")), (["", ""], ("mrp",)),
                                                 ([], ("mrp",))])
def test_without_captions_only_regions_can_be_predicted(captions, tasks):
    assert pretrain.possible_tasks(captions, pretrain.TASKS) == tasks


def test_a_subset_of_tasks_stays_a_subset():
    assert pretrain.possible_tasks(["a"], ("contrastive",)) == ("contrastive",)
    assert pretrain.possible_tasks([""], ("mlm", "contrastive")) == ()


def test_weight_decay_is_on_matrices_alone_and_every_parameter_is_trained_once(pairs):
    model = pretrain.build_model(MODEL, pairs, 0)
    decayed, rest = pretrain.parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, rest)]
    assert groups[0] | groups[1] == set(names.values()) and not groups[0] & groups[1]
    assert groups[1] == {name for name in names.values() if name.endswith("bias") or "norm" in name}


@pytest.mark.parametrize(("count", "batch", "sizes"), [(16, 6, [6, 6, 4]), (14, 6, [6, 6]), (15, 6, [6, 6, 3]),
                                                       (4, 6, [4]), (12, 6, [6, 6]), (1, 64, [1])])
def test_an_epoch_deals_every_pair_once_but_for_a_small_rest(count, batch, sizes):
    epoch = list(pretrain.epoch_batches(count, batch, epoch=2, seed=0))
    assert [len(chosen) for chosen in epoch] == sizes
    dealt = np.concatenate(epoch)
    assert len(set(dealt.tolist())) == len(dealt) and set(dealt.tolist()) <= set(range(count))


def test_epochs_and_seeds_are_shuffled_apart():
    first, again, epoch, seed = (list(pretrain.epoch_batches(64, 64, e, s))[0].tolist()
                                 for e, s in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert first == again and len({tuple(order) for order in (first, epoch, seed)}) == 3


def test_a_fresh_model_has_the_sizes_of_the_data_and_follows_its_seed(pairs):
    model, same, other = (pretrain.build_model(MODEL, pairs, seed) for seed in (0, 0, 1))
    assert model.settings == replace(MODEL, vocabulary=pairs.special["size"], region_features=8)
    words = [built.text_embedding.words.weight for built in (model, same, other)]
    assert torch.equal(words[0], words[1]) and not torch.equal(words[0], words[2])


# ------------------------------------------------------------------------------------------------ training


def test_one_batch_is_overfitted(pairs, tmp_path):
    few = replace(pairs, tokens=pairs.tokens[:6], rows=pairs.rows[:6])
    wide = replace(MODEL, width=32, output=32, text_ffn=64, visual_ffn=64, dropout=0.0)
    settings = replace(SETTINGS, epochs=150)
    history = pretrain.train(pretrain.build_model(wide, few, 0), few, BATCHES, settings, tmp_path, 0)
    first, last = ({name: np.mean([step[name] for step in part]) for name in pretrain.TASKS}
                   for part in (history[:10], history[-10:]))
    assert len(history) == 150
    assert last["contrastive"] < first["contrastive"] / 4
    assert last["mlm"] < first["mlm"] / 2 and last["mrp"] < 0.9 * first["mrp"]


def test_a_run_leaves_a_checkpoint_its_losses_and_nothing_else(pairs, whole):
    assert sorted(files_below(whole)) == ["config.json", "history.json", "model.safetensors"]
    loaded = Capture.load(whole)
    with torch.inference_mode():
        batch = pairs.batch(np.arange(16))
        assert loaded(**batch)["text_pooled"].isfinite().all()


def test_the_trained_model_is_the_saved_one_and_ready(pairs, tmp_path):
    model, history = run(pairs, tmp_path)
    loaded = Capture.load(tmp_path)
    assert not model.training and [set(step) for step in history] == [set(pretrain.TASKS)] * 9
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_the_same_seed_gives_the_same_bytes_and_another_others(pairs, whole, tmp_path):
    torch.rand(17)  # what ran before does not matter
    run(pairs, tmp_path / "again")
    run(pairs, tmp_path / "other", seed=1)
    assert files_below(tmp_path / "again") == files_below(whole)
    assert files_below(tmp_path / "other")["model.safetensors"] != files_below(whole)["model.safetensors"]


@pytest.mark.parametrize("steps", [0, 2, 3, 4, 6, 8])
def test_an_interrupted_run_goes_on_from_its_last_epoch_and_ends_with_the_same_bytes(pairs, whole, tmp_path,
                                                                                     monkeypatch, steps):
    taken, real = [], pretrain.step

    def step(*arguments):
        if len(taken) == steps:
            raise KeyboardInterrupt
        taken.append(1)
        return real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pretrain, "step", step)
        run(pairs, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "state.pt").exists() == (steps >= 3)  # an epoch has three steps
    taken.clear()
    monkeypatch.setattr(pretrain, "step", lambda *arguments: (taken.append(1), real(*arguments))[1])
    run(pairs, tmp_path)
    assert len(taken) == 9 - steps // 3 * 3
    assert files_below(tmp_path) == files_below(whole)


def test_a_loss_that_is_not_finite_stops_and_the_last_epoch_is_kept(pairs, whole, tmp_path, monkeypatch):
    taken, real = [], pretrain.step

    def step(*arguments):
        taken.append(1)
        losses = real(*arguments)
        return losses | {"mrp": torch.tensor(float("nan"))} if len(taken) == 5 else losses

    with monkeypatch.context() as patched, pytest.raises(FloatingPointError, match=r"step 5 of 9.*before epoch 2"):
        patched.setattr(pretrain, "step", step)
        run(pairs, tmp_path)
    assert sorted(files_below(tmp_path)) == ["state.pt"]
    run(pairs, tmp_path)
    assert files_below(tmp_path) == files_below(whole)


def test_the_learning_rate_rises_for_a_tenth_and_falls_to_the_end(pairs, tmp_path, monkeypatch):
    rates, real = [], pretrain.step

    def step(model, batch, optimiser, settings):
        rates.append(optimiser.param_groups[0]["lr"] / settings.learning_rate)
        return real(model, batch, optimiser, settings)

    monkeypatch.setattr(pretrain, "step", step)
    run(pairs, tmp_path, epochs=10)
    assert rates == pytest.approx([0, 1 / 3, 2 / 3] + [1 - i / 27 for i in range(27)])


def test_only_the_tasks_asked_for_are_trained(pairs, tmp_path):
    model, history = run(pairs, tmp_path, tasks=("mrp",), epochs=2, weight_decay=0.0)
    fresh = pretrain.build_model(MODEL, pairs, 0).state_dict()
    assert [set(step) for step in history] == [{"mrp"}] * 6
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])}
    assert {"region_decoder.weight", "text_embedding.words.weight"} <= changed
    assert not any(name.startswith(("word_", "text_contrastive", "region_contrastive")) for name in changed)


def test_a_step_follows_the_sum_of_its_losses(pairs):
    batch = pairs.masked_batch(np.arange(6), BATCHES, torch.Generator().manual_seed(0))
    model = pretrain.build_model(replace(MODEL, dropout=0.0), pairs, 0).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    losses = [sum(pretrain.step(model, batch, optimiser, SETTINGS).values()).item() for _ in range(8)]
    assert losses[-1] < losses[0]
    norm = torch.sqrt(sum((p.grad ** 2).sum() for p in model.parameters() if p.grad is not None))
    assert norm <= 1.001  # clipped
