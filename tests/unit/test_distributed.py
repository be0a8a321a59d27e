"""Two processes with half the batch each are one process with the whole: losses, gradients, weights, and the store."""

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
from torch import Tensor, nn

from capture_lib.catalog.table import Catalog
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.detector import Detector, DetectorSettings
from capture_lib.proposals.region_encoder import CropEncoder, EncoderSettings
from capture_lib.proposals.region_store import RegionSettings
from capture_lib.training import distributed as ranks
from capture_lib.training import pretrain
from capture_lib.training.batches import BatchSettings, Pairs, hide
from capture_lib.training.pretrain import PretrainSettings
from capture_lib.utils import InputError, process_count, process_index, wait_for_everyone

BATCHES = BatchSettings(text_length=8, masked_tokens=0.3, masked_regions=0.3)
MODEL = replace(TOY, dropout=0.0)
SETTINGS = PretrainSettings(epochs=3, batch=7, learning_rate=3e-3, keep_every=2)  # 17 pairs: 7, 7 and no rest: 6 steps
ALL = (*pretrain.TASKS, "itm")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """17 pairs whose captions and regions become more and more, so that halves of a batch are uneven."""
    captions = [" ".join(f"kind{i}" for i in range(1 + number // 4)) for number in range(17)]
    return random_pairs(captions, BATCHES, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process as in the others: float32, and gradients as they are."""
    monkeypatch.setattr(torch, "autocast", unchanged)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", unchanged)


def unchanged(*_: object, **__: object) -> nullcontext:
    return nullcontext()


def in_float32() -> None:
    torch.autocast, nn.utils.clip_grad_norm_ = unchanged, unchanged


# ------------------------------------------------------------------------------------------------ one step


def steps(pairs: Pairs, tasks: tuple[str, ...], count: int = 4) -> dict:
    """A few steps of gradient descent: losses, this process's masked tokens, the last gradients, the weights."""
    in_float32()
    settings = replace(SETTINGS, tasks=tasks)
    wait_for_everyone()
    model = pretrain.build_model(MODEL, pairs, 0, tasks).train()
    trained = pretrain.averaging(model, settings) if process_count() > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), 0.02, weight_decay=0.1)
    losses, masked = [], []
    for number in range(count):
        drawn = pairs.draw(np.arange(number, number + 7), BATCHES, torch.Generator().manual_seed(number),
                           "itm" in tasks, ranks.part(7))
        masked.append(int((drawn["mlm_labels"] != -1).sum()))
        found = pretrain.step(trained, hide(drawn), optimiser, settings)
        losses.append({name: loss.item() for name, loss in found.items()})
    return {"losses": losses, "masked": masked, "weights": {n: p.detach().numpy() for n, p in model.named_parameters()},
            "gradients": {n: None if p.grad is None else p.grad.numpy() for n, p in model.named_parameters()}}


@pytest.mark.parametrize(("tasks", "count"), [(pretrain.TASKS, 2), (ALL, 2), (pretrain.TASKS, 3), (("mrp",), 2),
                                              (("contrastive",), 2), (("itm", "mlm"), 3)])
def test_losses_and_gradients_of_parts_are_those_of_the_whole(pairs, exact, tasks, count):
    whole, parts = steps(pairs, tasks), launch(steps, pairs, tasks, count=count)
    masked = np.array([part["masked"] for part in parts])
    assert masked.sum(0).tolist() == whole["masked"] and (masked[0] != masked[-1]).any()  # same masks, uneven halves
    for part in parts:
        for mine, all_in_one in zip(part["losses"], whole["losses"], strict=True):
            assert mine == pytest.approx(all_in_one, rel=1e-5, abs=1e-6)
        for name, gradient in whole["gradients"].items():
            if gradient is None:  # nor may weight decay act on what no task reaches
                assert part["gradients"][name] is None
            else:
                assert part["gradients"][name] == pytest.approx(gradient, rel=1e-4, abs=1e-5), name
        assert part["weights"] == {n: pytest.approx(value, abs=1e-5) for n, value in whole["weights"].items()}
        assert all(np.array_equal(value, parts[0]["weights"][n]) for n, value in part["weights"].items())
    largest = max(np.abs(gradient).max() for gradient in whole["gradients"].values() if gradient is not None)
    assert largest > 1e-2  # there was something to compare


def gathered(sizes: list[int]) -> tuple[Tensor, Tensor]:
    wait_for_everyone()
    rows = torch.full((sizes[process_index()], 2), float(process_index() + 1), requires_grad=True)
    whole = ranks.together(rows)
    (whole * torch.arange(1.0, len(whole) + 1)[:, None] * (process_index() + 1)).sum().backward()
    return whole.detach().numpy(), rows.grad.numpy()


def test_rows_of_all_processes_come_together_in_order_and_gradients_go_back_to_their_rows():
    for number, (whole, gradient) in enumerate(launch(gathered, [2, 3])):
        assert whole[:, 0].tolist() == [1, 1, 2, 2, 2]
        places = np.arange(1, 6)[:2] if number == 0 else np.arange(1, 6)[2:]
        assert gradient[:, 0].tolist() == (3 * places).tolist()  # 1 + 2: what both processes say of it


def test_parts_of_a_batch_are_the_batch():
    def part(number: int, rows: int) -> list[int]:
        patch.setenv("RANK", str(number))
        return list(range(rows))[ranks.part(rows)]

    with pytest.MonkeyPatch.context() as patch:
        for count in (1, 2, 3, 8):
            patch.setenv("WORLD_SIZE", str(count))
            for rows in (8, 9, 17, 64):
                parts = [part(number, rows) for number in range(count)]
                assert sum(parts, []) == list(range(rows))
                assert max(map(len, parts)) - min(map(len, parts)) <= 1


# ------------------------------------------------------------------------------------------------ the training


def training(pairs: Pairs, folder: Path, interrupted: int = 0, killed: int = -1) -> list[dict]:
    """A training in float32; after so many steps all processes are interrupted, or one is killed."""
    in_float32()
    real, taken = pretrain.step, []

    def step(*arguments):
        if interrupted and len(taken) == interrupted:
            if killed == process_index():
                os.kill(os.getpid(), signal.SIGKILL)
            if killed < 0:
                raise KeyboardInterrupt
        taken.append(1)
        return real(*arguments)

    pretrain.step = step
    folder.mkdir(exist_ok=True)
    try:
        return pretrain.train(pretrain.build_model(MODEL, pairs, 0), pairs, BATCHES, SETTINGS, folder, 0)
    except KeyboardInterrupt:
        return []
    finally:
        pretrain.step = real


def test_a_training_of_two_processes_is_that_of_one_and_goes_on_after_an_interruption(pairs, exact, tmp_path):
    one = training(pairs, tmp_path / "one")
    two, same = launch(training, pairs, tmp_path / "two")
    assert two == same and len(one) == 6
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert list(files_below(tmp_path / "two")) == list(files_below(tmp_path / "one"))
    launch(training, pairs, tmp_path / "parts", 5)
    assert list(files_below(tmp_path / "parts")) == ["state-00000002.pt", "state-00000004.pt"]
    launch(training, pairs, tmp_path / "parts")
    assert files_below(tmp_path / "parts") == files_below(tmp_path / "two")


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_process_is_killed_the_other_ends_and_the_next_start_goes_on(pairs, tmp_path, killed):
    launch(training, pairs, tmp_path / "whole")
    with pytest.raises(AssertionError, match=rf"process {1 - killed}:\n(.*\n)*RuntimeError"):
        launch(training, pairs, tmp_path / "parts", 3, killed)
    assert list(files_below(tmp_path / "parts")) == ["state-00000002.pt"]
    launch(training, pairs, tmp_path / "parts")
    assert files_below(tmp_path / "parts") == files_below(tmp_path / "whole")


def test_a_batch_must_have_a_pair_for_every_process(pairs, exact, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(InputError, match="batch 7 of 17 pairs is too small for 5 processes"):
        training(pairs, tmp_path)


# ------------------------------------------------------------------------------------------------ the region store


TINY = RegionSettings(max_regions=5, photo_size=64, batch=3, workers=0)


def extracting(catalog: Catalog, folder: Path, interrupted: int = 100, old: Path | None = None,
               places: np.ndarray | None = None) -> int:
    """Writes a region store; returns how many photos this process described. `interrupted` after so many batches."""
    torch.manual_seed(0)
    network = Detector(DetectorSettings(backbone="test_resnet", size=48, search_size=48, channels=16, anchors=(12, 24, 36)))
    describer = CropEncoder(EncoderSettings(backbone="test_resnet", crop=16, channels=4))
    described, real = [], regions.describe

    def describe(*arguments):
        if len(described) == interrupted:
            raise KeyboardInterrupt
        described.append(len(arguments[0]))
        return real(*arguments)

    regions.describe = describe
    folder.mkdir(exist_ok=True)
    try:
        regions.extract(catalog, TINY, network.eval(), describer.eval(), folder, old, places)
    except KeyboardInterrupt:
        wait_for_everyone()  # the others are at their own interruption
    finally:
        regions.describe = real
    return sum(described)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """16 photos: six batches, the last of which has one."""
    return make_catalog(tmp_path_factory.mktemp("catalog"))


def test_a_store_made_by_many_processes_is_that_of_one(catalog, tmp_path):
    assert extracting(catalog, tmp_path / "one") == 16
    assert launch(extracting, catalog, tmp_path / "two") == [9, 7]
    assert launch(extracting, catalog, tmp_path / "three", count=3) == [6, 6, 4]
    one = files_below(tmp_path / "one")
    assert files_below(tmp_path / "two") == files_below(tmp_path / "three") == one
    assert list(one) == ["boxes.npy", "counts.npy", "features.npy", "ids.txt", "meta.json", "scores.npy"]


@pytest.mark.parametrize("later", [1, 2, 3])
def test_an_interrupted_store_goes_on_with_any_number_of_processes(catalog, tmp_path, later):
    extracting(catalog, tmp_path / "one")
    assert launch(extracting, catalog, tmp_path / "parts", 2) == [6, 6]
    assert not (tmp_path / "parts" / "meta.json").exists()
    rest = launch(extracting, catalog, tmp_path / "parts", count=later) if later > 1 else [
        extracting(catalog, tmp_path / "parts")]
    assert sum(rest) == 4 and files_below(tmp_path / "parts") == files_below(tmp_path / "one")


def test_a_store_is_extended_by_many_processes(catalog, tmp_path):
    extracting(catalog, tmp_path / "one")
    places = np.array([0, 1, -1, 3, 4, 5, -1, -1, -1, 9, 10, 11, 12, 13, -1, 15])
    extracting(catalog, tmp_path / "alone", old=tmp_path / "one", places=places)
    assert launch(extracting, catalog, tmp_path / "two", 100, tmp_path / "one", places) == [3, 2]
    assert files_below(tmp_path / "two") == files_below(tmp_path / "alone")
