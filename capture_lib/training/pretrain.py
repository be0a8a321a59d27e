"""The pretraining loop: masked language, masked region and contrastive losses on image-caption pairs."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from capture_lib import utils
from capture_lib.model.bert import start_from_bert
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import NOT_PREDICTED, contrastive_loss, pretext_losses
from capture_lib.training import resume
from capture_lib.training.batches import Batch, BatchSettings, Pairs

TASKS = ("mlm", "mrp", "contrastive")  # the paper's final recipe
MATCHING = "itm"  # image-text matching; in the paper, but not in its recipe
BEFORE_CROSS = "before cross"  # where the contrastive loss sits; paper: before
AFTER_JOINT = "after joint"
INPUTS = ("input_ids", "text_mask", "region_features", "region_locations", "region_mask")


@dataclass(frozen=True)
class PretrainSettings:
    """Defaults of the cpu profile."""

    epochs: int = 9  # paper's code: 10
    batch: int = 64
    learning_rate: float = 1e-3  # paper's code: 1e-4, from BERT
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    tasks: tuple[str, ...] = TASKS  # or with MATCHING too
    temperature: float = 0.07
    contrast: str = BEFORE_CROSS  # or AFTER_JOINT
    keep_every: int = 100  # steps after which the state is kept
    bert: str = ""  # folder or hub name of bert-base-chinese; empty = random


def build_model(settings: CaptureSettings, pairs: Pairs, seed: int,
                tasks: tuple[str, ...] = TASKS, bert: str = "") -> Capture:
    """Return a fresh model of the data's sizes for the tasks, or one whose text side starts from BERT."""
    torch.manual_seed(seed)
    model = Capture(replace(
        settings, vocabulary=pairs.special["size"], matching=MATCHING in tasks,
        region_features=pairs.store.features.shape[-1]))
    if bert:
        start_from_bert(model, bert)
    return model


def train(model: Capture, pairs: Pairs, batches: BatchSettings, settings: PretrainSettings,
          folder: Path, seed: int) -> list[dict[str, float]]:
    """Pretrain `model` and save it in `folder`, this training's alone; return the losses of each step.

    One that was stopped goes on from its last state there, and on a CPU ends with the same bytes.
    """
    # the parts that accelerate trains, and whose state it keeps
    accelerator = utils.accelerator()
    accelerator.free_memory()  # of an earlier training
    device = accelerator.device
    on_gpu = device.type == "cuda"
    model.train()
    if on_gpu:
        torch._dynamo.config.suppress_errors = True  # if there is no compiler
        model.compile()
    optimiser = make_optimiser(model, settings)
    objective, optimiser = accelerator.prepare(Objective(model, settings), optimiser)
    # go on from the last state; what is random in a step follows from its number
    history = resume.load_last_state(folder)
    steps = settings.epochs * (len(pairs.tokens) // min(settings.batch, len(pairs.tokens)))
    stream = torch.utils.data.DataLoader(
        range(len(history), steps), batch_size=None, pin_memory=on_gpu,
        collate_fn=lambda step: step_batch(step, pairs, batches, settings, seed),
        num_workers=8 * on_gpu, multiprocessing_context="fork" if on_gpu else None)

    def note() -> str:
        return ", ".join(f"{name} {loss:.3f}" for name, loss in history[-1].items())

    for batch in utils.progress(stream, "pretraining steps", len(stream), note):
        batch = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
        rate = learning_rate(len(history), steps, settings)
        for group in optimiser.param_groups:
            group["lr"] = rate
        dropout = np.random.default_rng([seed, 5, len(history), utils.process_index()])
        torch.manual_seed(int(dropout.integers(2**63)))
        losses = step(objective, batch, optimiser)
        history.append({name: loss.item() for name, loss in losses.items()})
        if not np.isfinite(sum(history[-1].values())):
            raise FloatingPointError(f"pretraining: step {len(history)} has a loss that is "
                                     f"not finite ({note()}); lower learning_rate")
        if len(history) % settings.keep_every == 0:
            resume.keep_state(folder, history)
    model.eval()
    if utils.is_main_process():
        model.save_pretrained(folder)
        utils.write_json(folder / "history.json", history)
        resume.remove_states(folder, kept=0)
    utils.wait_for_everyone()
    return history


def step(objective: nn.Module, batch: Batch, optimiser: AdamW) -> dict[str, Tensor]:
    """Take one optimiser step on a masked batch; return its losses by name, each of weight 1."""
    accelerator = utils.accelerator()
    # forward
    losses = objective(batch)
    # backward
    optimiser.zero_grad()
    accelerator.backward(sum(losses.values()))
    # clip the gradients, then move the weights
    accelerator.clip_grad_norm_(objective.parameters(), 1.0)
    optimiser.step()
    # of many processes, the mean of their losses
    values = torch.stack(list(losses.values())).detach()
    return dict(zip(losses, accelerator.reduce(values, "mean"), strict=True))


class Objective(nn.Module):
    """CAPTURE with its losses: to average gradients, all of them must arise in one forward."""

    def __init__(self, model: Capture, settings: PretrainSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the tasks on a masked batch, by name."""
        inputs = {name: batch[name] for name in INPUTS}
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16):
            out = self.model(**inputs)
            if self.settings.contrast == AFTER_JOINT:
                # between H_TXT and H_IMG, which have seen each other
                out["text_contrastive"] = out["text_pooled"]
                out["region_contrastive"] = out["region_pooled"]
            losses = pretext_losses(self.model, batch, out, self.settings.temperature)
            losses = {name: losses[name] for name in self.settings.tasks}
            if utils.process_count() > 1:
                complete(losses, batch, out, self.settings.temperature)
        return losses


def complete(losses: dict[str, Tensor], batch: Batch, out: Batch, temperature: float) -> None:
    """Change losses of some rows so that their mean over the processes is that of the whole batch."""
    accelerator = utils.accelerator()
    # rows with many masked tokens or regions count for more
    masked = {"mlm": batch["mlm_labels"] != NOT_PREDICTED, "mrp": batch["region_labels"] == 1}
    for name in masked.keys() & losses.keys():
        count = masked[name].sum().float()
        mean = accelerator.reduce(count, "mean").clamp(min=1e-9)
        losses[name] = losses[name] * count / mean
    # negatives come from all processes
    if "contrastive" in losses:
        gathered = {}
        for name in ("text_contrastive", "region_contrastive"):
            rows = out[name].float()
            # the loss of all rows has gradients of these alone; they are averaged later
            rows.register_hook(lambda gradient: gradient * utils.process_count())
            shards = list(accelerator.gather(rows.detach()).split(len(rows)))
            shards[utils.process_index()] = rows
            gathered[name] = torch.cat(shards)
        matched = accelerator.gather(batch["matched"]) if "matched" in batch else None
        losses["contrastive"] = contrastive_loss(gathered, temperature, matched)


def make_optimiser(model: nn.Module, settings: PretrainSettings) -> AdamW:
    """Return AdamW with weight decay on matrices and embeddings, none on biases and LayerNorms."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    decay = settings.weight_decay
    optimiser = AdamW(matrices, settings.learning_rate, weight_decay=decay, fused=True)
    optimiser.add_param_group({"params": vectors, "weight_decay": 0.0})
    return optimiser


def learning_rate(step: int, steps: int, settings: PretrainSettings) -> float:
    """Return the rate of a step: up in a line over the warm-up, then down; never 0."""
    warmup = int(settings.warmup * steps)
    up = (step + 1) / (warmup + 1)
    down = (steps - step) / max(steps - warmup, 1)
    return settings.learning_rate * min(up, down)


def step_batch(step: int, pairs: Pairs, batches: BatchSettings,
               settings: PretrainSettings, seed: int) -> Batch:
    """Return this process's rows of the masked batch of a step."""
    # the step's pairs in the shuffled order of its epoch; a rest that fills no batch is left out
    size = min(settings.batch, len(pairs.tokens))
    epoch, place = divmod(step, len(pairs.tokens) // size)
    order = np.random.default_rng([seed, 3, epoch]).permutation(len(pairs.tokens))
    chosen = order[place * size:][:size]
    # masks for all of them, and even parts for the processes
    masks = np.random.default_rng([seed, 4, step])
    rng = torch.Generator().manual_seed(int(masks.integers(2**63)))
    share = size // utils.process_count()
    if not share:
        raise utils.InputError(f"a batch has {size} pairs, fewer than processes")
    first = share * utils.process_index()
    rows = slice(first, first + share)
    return pairs.masked_batch(chosen, batches, rng, MATCHING in settings.tasks, rows)

