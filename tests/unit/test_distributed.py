"""Two processes with half of a batch each are one process with the whole: losses, gradients, weights, the store."""

import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import TOY, files_below, make_catalog, random_pairs
from launched import launch
from torch import nn

from capture_lib import utils
from capture_lib.catalog.table import Catalog
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.detector import Detector, DetectorSettings
from capture_lib.proposals.region_encoder import CropEncoder, EncoderSettings
from capture_lib.proposals.region_store import RegionSettings
from capture_lib.training import pretrain
from capture_lib.training.batches import BatchSettings, Pairs
from capture_lib.training.pretrain import PretrainSettings

BATCHES = BatchSettings(text_length=8, masked_tokens=0.3, masked_regions=0.3)
MODEL = replace(TOY, dropout=0.0)
SETTINGS = PretrainSettings(epochs=3, batch=6, learning_rate=3e-3, keep_every=2)  # 17 pairs: 6, 6 and no rest: 6 steps
ALL = (*pretrain.TASKS, "itm")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """17 pairs whose captions become longer and longer, so that shards have unlike numbers of masked tokens."""
    captions = [" ".join(f"kind{i}" for i in range(1 + number // 4)) for number in range(17)]
    return random_pairs(captions, BATCHES, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process as in the others: float32, and gradients as they are."""
    monkeypatch.setattr(torch, "autocast", unchanged)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", unchanged)


def unchanged(*_: object, **__: object) -> nullcontext:
    return nullcontext()


def compute_in_float32() -> None:
    torch.autocast = nn.utils.clip_grad_norm_ = unchanged


# ---- one step


def steps(pairs: Pairs, settings: PretrainSettings, count: int = 3) -> dict:
    """A few steps of gradient descent: losses, this process's masked tokens, the last gradients, the weights."""
    compute_in_float32()
    model = pretrain.build_model(MODEL, pairs, 0, settings.tasks).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.02, weight_decay=0.1)
    objective, optimiser = utils.accelerator().prepare(pretrain.Objective(model, settings), optimiser)
    losses, masked = [], []
    for number in range(count):
        batch = pretrain.step_batch(number, pairs, BATCHES, settings, seed=0)
        masked.append(int((batch["mlm_labels"] != -1).sum()))
        step = pretrain.step(objective, batch, optimiser)
        losses.append({name: loss.item() for name, loss in step.items()})
    return {
        "losses": losses, "masked": masked, "weights": {n: p.detach().numpy() for n, p in model.named_parameters()},
        "gradients": {n: None if p.grad is None else p.grad.numpy() for n, p in model.named_parameters()}}


@pytest.mark.parametrize(("changes", "count"), [
    ({"tasks": ALL}, 3), ({"tasks": ("mrp",)}, 2), ({"tasks": ("itm", "mlm")}, 2),
    ({"contrast": pretrain.AFTER_JOINT}, 2)])
def test_losses_and_gradients_of_shards_are_those_of_the_whole(pairs, exact, changes, count):
    settings = replace(SETTINGS, **changes)
    whole, shards = steps(pairs, settings), launch(steps, pairs, settings, count=count)
    masked = np.array([shard["masked"] for shard in shards])
    assert masked.sum(0).tolist() == whole["masked"] and (masked[0] != masked[-1]).any()  # the same masks
    for shard in shards:
        for own, expected in zip(shard["losses"], whole["losses"], strict=True):
            assert own == pytest.approx(expected, rel=1e-5, abs=1e-6)
        for name, gradient in whole["gradients"].items():
            if gradient is None:  # nor may weight decay act on what no task reaches
                assert shard["gradients"][name] is None, name
            else:
                assert shard["gradients"][name] == pytest.approx(gradient, rel=1e-4, abs=1e-5), name
        assert shard["weights"] == {n: pytest.approx(value, abs=1e-5) for n, value in whole["weights"].items()}
        assert all(np.array_equal(value, shards[0]["weights"][n]) for n, value in shard["weights"].items())
    largest = max(np.abs(gradient).max() for gradient in whole["gradients"].values() if gradient is not None)
    assert largest > 1e-2  # there was something to compare


# ---- the training


def training(pairs: Pairs, folder: Path, killed_at: int = -1) -> list[dict]:
    """A training in float32; the main process is killed after so many steps."""
    compute_in_float32()
    real, taken = pretrain.step, []

    def step(*arguments):
        if len(taken) == killed_at and utils.is_main_process():
            os.kill(os.getpid(), signal.SIGKILL)
        taken.append(1)
        return real(*arguments)

    pretrain.step = step
    folder.mkdir(exist_ok=True)
    try:
        return pretrain.train(pretrain.build_model(MODEL, pairs, 0), pairs, BATCHES, SETTINGS, folder, 0)
    finally:
        pretrain.step = real


def test_a_training_of_two_processes_is_that_of_one_and_goes_on_where_one_was_killed(pairs, exact, tmp_path):
    one = training(pairs, tmp_path / "one")
    two, same = launch(training, pairs, tmp_path / "two")
    assert two == same and len(one) == 6
    for own, expected in zip(two, one, strict=True):
        assert own == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert list(files_below(tmp_path / "two")) == list(files_below(tmp_path / "one"))
    with pytest.raises(AssertionError, match=r"process 1:\n(.*\n)*RuntimeError"):
        launch(training, pairs, tmp_path / "killed", 5)
    states = sorted(path.name for path in (tmp_path / "killed").glob("state-*"))
    assert states == ["state-00000002", "state-00000004"]
    launch(training, pairs, tmp_path / "killed")
    assert files_below(tmp_path / "killed") == files_below(tmp_path / "two")


# ---- the region store


TINY = RegionSettings(max_regions=5, photo_size=64, batch=3, workers=0)


def extracting(catalog: Catalog, folder: Path, interrupted: int = 100) -> int:
    """Write a region store; return how many photos this process described. `interrupted` after so many batches."""
    torch.manual_seed(0)
    detector = Detector(DetectorSettings(
        backbone="test_resnet", size=48, search_sizes=(48,), channels=16, anchors=(12, 24, 36)))
    encoder = CropEncoder(EncoderSettings(backbone="test_resnet", crop=16, channels=4))
    described, real = [], regions.describe

    def describe(*arguments):
        if len(described) == interrupted:
            raise KeyboardInterrupt
        described.append(len(arguments[0]))
        return real(*arguments)

    regions.describe = describe
    folder.mkdir(exist_ok=True)
    try:
        regions.extract(catalog, TINY, detector.eval(), encoder.eval(), folder)
    except KeyboardInterrupt:
        utils.wait_for_everyone()  # the others are at their own interruption
    finally:
        regions.describe = real
    return sum(described)


def test_a_store_made_by_many_processes_is_that_of_one_and_goes_on_with_any_number(tmp_path):
    catalog = make_catalog(tmp_path / "catalog")  # 16 photos: six batches, the last of which has one
    assert extracting(catalog, tmp_path / "one") == 16
    assert launch(extracting, catalog, tmp_path / "three", count=3) == [6, 6, 4]
    assert launch(extracting, catalog, tmp_path / "parts", 2) == [6, 6]
    assert extracting(catalog, tmp_path / "parts") == 4
    one = files_below(tmp_path / "one")
    assert files_below(tmp_path / "three") == files_below(tmp_path / "parts") == one
    assert list(one) == ["boxes.npy", "counts.npy", "features.npy", "ids.txt", "meta.json", "scores.npy"]
