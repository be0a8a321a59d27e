"""The pretraining loop: masked language, masked region and contrastive losses on image-caption pairs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from capture_lib.batches import BatchSettings, Pairs
from capture_lib.bert import start_from_bert
from capture_lib.detector import pick_device
from capture_lib.faults import InputError
from capture_lib.losses import pretext_losses
from capture_lib.model import Capture, CaptureSettings
from capture_lib.paths import write_atomically
from capture_lib.progress import progress

TASKS = ("mlm", "mrp", "contrastive")  # the final recipe
MATCHING = "itm"  # image-text matching: the paper describes it and leaves it out


@dataclass(frozen=True)
class PretrainSettings:
    """Defaults of the cpu profile; `InputError` for a task that there isn't."""

    epochs: int = 9  # paper's code: 10
    batch: int = 64
    learning_rate: float = 1e-3  # paper's code: 1e-4, from BERT's weights
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    tasks: tuple[str, ...] = TASKS  # or with MATCHING too
    temperature: float = 0.07
    bert: str = ""  # a folder with bert-base-chinese in Hugging Face's form, for the text side; empty = a random start

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in (*TASKS, MATCHING):
                raise InputError(f"PretrainSettings: task {task!r} is unknown; use {', '.join((*TASKS, MATCHING))}")


def possible_tasks(captions: list[str], tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks that the data allows: without captions there is no word to mask and no pair to match."""
    return tasks if any(captions) else tuple(task for task in tasks if task == "mrp")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and embeddings, none on biases and LayerNorms, which have one dimension.

    The released code has it the wrong way round where it starts from BERT's weights.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def share_of_rate(step: int, warmup: int, steps: int) -> float:
    """The learning rate of a step (from 0) as a share of the highest: up in a line over `warmup` steps, then down.

    No step has a rate of 0: the first is one step up already, and 0 would come after the last.
    """
    return min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1))


def epoch_batches(pairs: int, batch: int, epoch: int, seed: int) -> Iterator[np.ndarray]:
    """A shuffled epoch's batches of pair numbers; a last one of less than half the size is left out."""
    order = np.random.default_rng([seed, 3, epoch]).permutation(pairs)
    for first in range(0, pairs, batch):
        chosen = order[first:first + batch]
        if len(chosen) >= min(batch, pairs) / 2:
            yield chosen


def train(model: Capture, pairs: Pairs, batches: BatchSettings, settings: PretrainSettings, folder: Path,
          seed: int) -> list[dict[str, float]]:
    """Pretrains `model` in place and saves it in `folder`; returns the losses of every step by name.

    The state is kept after each epoch, so that an interrupted run goes on from there and ends with the same weights.

    Raises:
        FloatingPointError: the loss is not finite; the last epoch's state is kept.
    """
    device = pick_device()
    model.to(device).train()
    optimiser = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), settings.learning_rate)
    steps = settings.epochs * sum(1 for _ in epoch_batches(len(pairs.tokens), settings.batch, 0, seed))
    matching = MATCHING in settings.tasks
    warmup = int(settings.warmup * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(share_of_rate, warmup=warmup, steps=steps))
    history = resume(folder, model, optimiser, schedule)
    first = len(history) * settings.epochs // steps
    for epoch in progress(range(first, settings.epochs), "pretraining epochs", settings.epochs - first):
        torch.manual_seed(seed * 1000 + epoch)  # dropout
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)  # masking
        for chosen in epoch_batches(len(pairs.tokens), settings.batch, epoch, seed):
            batch = {name: value.to(device, non_blocking=True)
                     for name, value in pairs.masked_batch(chosen, batches, generator, matching).items()}
            losses = step(model, batch, optimiser, settings)
            schedule.step()
            history.append({name: loss.item() for name, loss in losses.items()})
            wrong = [f"{name} is {value}" for name, value in history[-1].items() if not np.isfinite(value)]
            if wrong:
                raise FloatingPointError(f"pretraining: the loss {wrong[0]} at step {len(history)} of {steps}; "
                                         f"lower learning_rate; the state before epoch {epoch + 1} is kept")
        keep(folder, model, optimiser, schedule, history)
    model.eval().save_pretrained(folder)
    (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")
    (folder / "state.pt").unlink(missing_ok=True)
    return history


def step(model: Capture, batch: dict[str, Tensor], optimiser: torch.optim.Optimizer, settings: PretrainSettings
         ) -> dict[str, Tensor]:
    """One optimiser step on a masked batch; returns its losses by name (each has weight 1, as released)."""
    inputs = ("input_ids", "text_mask", "region_features", "region_locations", "region_mask")
    with torch.autocast(batch["region_features"].device.type, torch.bfloat16):
        out = model(**{name: batch[name] for name in inputs})
        losses = pretext_losses(model, batch, out, settings.temperature)
    losses = {name: losses[name] for name in settings.tasks}
    optimiser.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return losses


def keep(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer,
         schedule: torch.optim.lr_scheduler.LRScheduler, history: list) -> None:
    """Writes the training state beside the checkpoint and renames it."""
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
             "history": history}
    with write_atomically(folder / "state.pt") as beside:
        torch.save(state, beside)


def resume(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer,
           schedule: torch.optim.lr_scheduler.LRScheduler) -> list[dict[str, float]]:
    """Restores the training state, if there is one; returns the history so far."""
    if not (folder / "state.pt").is_file():
        return []
    state = torch.load(folder / "state.pt", map_location=pick_device(), weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return state["history"]


def build_model(settings: CaptureSettings, pairs: Pairs, seed: int, tasks: tuple[str, ...] = TASKS, bert: str = ""
                ) -> Capture:
    """A fresh model for the tasks, with the data's vocabulary and feature width; `bert` as in `PretrainSettings`."""
    torch.manual_seed(seed)
    sizes = {"vocabulary": pairs.special["size"], "region_features": pairs.store.features.shape[-1],
             "matching": MATCHING in tasks}
    model = Capture(CaptureSettings(**{**settings.__dict__, **sizes}))
    if bert:
        start_from_bert(model, bert)
    return model
