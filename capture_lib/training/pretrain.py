"""The pretraining loop: masked language, masked region and contrastive losses on image-caption pairs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from capture_lib import utils
from capture_lib.model.bert import start_from_bert
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import NOT_PREDICTED, contrastive_loss, pretext_losses
from capture_lib.training import resume
from capture_lib.training.batches import Batch, BatchSettings, Pairs, prefetch
from capture_lib.utils import InputError

TASKS = ("mlm", "mrp", "contrastive")  # the paper's final recipe
# image-text matching: the paper describes it and leaves it out
MATCHING = "itm"
# where the contrastive loss sits; paper: before
BEFORE_CROSS = "before cross"
AFTER_JOINT = "after joint"
INPUTS = ("input_ids", "text_mask", "region_features", "region_locations", "region_mask")
MASKING = 4  # what a seed is for
DROPOUT = 5


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
    contrast: str = BEFORE_CROSS  # or AFTER_JOINT
    keep_every: int = 100  # steps after which the state is kept
    log: str = ""  # a folder for TensorBoard's logs
    bert: str = ""  # folder or hub name of bert-base-chinese; empty = random

    def __post_init__(self) -> None:
        known = (*TASKS, MATCHING)
        for task in self.tasks:
            if task not in known:
                raise InputError(f"PretrainSettings: task {task!r} is unknown; use {', '.join(known)}")
        if self.contrast not in (BEFORE_CROSS, AFTER_JOINT):
            raise InputError(f"PretrainSettings: contrast is {self.contrast!r}; "
                             f"give {BEFORE_CROSS!r} or {AFTER_JOINT!r}")


def settings_of_result(settings: PretrainSettings) -> PretrainSettings:
    """Return the settings that the result depends on: not how often it is kept and logged."""
    return replace(settings, keep_every=0, log="")


def possible_tasks(captions: list[str], tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tasks that the data allows: without captions, only regions can be predicted."""
    if any(captions):
        return tasks
    return tuple(task for task in tasks if task == "mrp")


def train(model: Capture, pairs: Pairs, batches: BatchSettings, settings: PretrainSettings,
          folder: Path, seed: int) -> list[dict[str, float]]:
    """Pretrain `model` in place and save it in `folder`; return the losses of every step by name.

    The state is kept every `keep_every` steps: a run that was stopped, in whatever way, goes on from there
    and, on a CPU, ends with the same bytes. Raises `FloatingPointError` where a loss or a weight is not
    finite, `InputError` where there are more processes than pairs or something cannot be written.
    """
    device = utils.accelerator().device
    make_ready(model, device)
    # the parts that accelerate trains, and whose state it keeps
    count = len(pairs.tokens)
    steps = settings.epochs * (count // min(settings.batch, count))
    optimiser = make_optimiser(model, settings)
    schedule = make_schedule(optimiser, steps, settings)
    objective = Objective(model, settings)
    objective, optimiser, schedule = prepare(objective, optimiser, schedule)
    # go on from the last state of this training, if there is one
    parts = (model.settings, batches, settings_of_result(settings))
    training = resume.name_training(*map(asdict, parts), count, seed, utils.process_count())
    history = resume.load_last_state(folder, training)
    log = start_log(settings.log, len(history))

    def note() -> str:
        return ", ".join(f"{name} {loss:.3f}" for name, loss in history[-1].items())

    drawn = drawn_batches(pairs, batches, settings, seed, first=len(history))
    stream = prefetch(drawn, device)
    for batch in utils.progress(stream, "pretraining steps", steps - len(history), note):
        # the same dropout, whether the run was stopped or not
        torch.manual_seed(seed_of(seed, DROPOUT, len(history), utils.process_index()))
        losses = step(objective, batch, optimiser, settings)
        rate = schedule.get_last_lr()[0]
        schedule.step()
        # record
        values = torch.stack(list(losses.values())).tolist()
        history.append(dict(zip(losses, values, strict=True)))
        log(history[-1] | {"learning_rate": rate}, step=len(history))
        check_finite("loss", history[-1], len(history), folder)
        if len(history) % settings.keep_every == 0:
            check_finite("weight", model.state_dict(), len(history), folder)
            resume.keep_state(folder, training, history)

    if utils.is_main_process():
        save(model.eval(), history, folder)
    utils.wait_for_everyone()
    return history


def step(model: nn.Module, batch: Batch, optimiser: Optimizer, settings: PretrainSettings) -> dict[str, Tensor]:
    """Take one optimiser step on a masked batch; return its losses by name (each has weight 1, as released).

    Of many processes, each has its shard of the batch; losses and step are those of the whole batch.
    """
    accelerator = utils.accelerator()
    if isinstance(model, Capture):
        model = Objective(model, settings)
    # forward
    losses = model(batch)
    # backward
    optimiser.zero_grad()
    accelerator.backward(sum(losses.values()))
    # clip the gradients, and move the weights
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    # what the whole batch costs
    values = torch.stack(list(losses.values())).detach()
    values = accelerator.reduce(values, "mean")
    return dict(zip(losses, values, strict=True))


class Objective(nn.Module):
    """A model that returns its losses: to average gradients, all of them must arise in one forward."""

    def __init__(self, model: Capture, settings: PretrainSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return losses_of(self.model, batch, self.settings)


def losses_of(model: Capture, batch: Batch, settings: PretrainSettings) -> dict[str, Tensor]:
    """Return the losses of the tasks on a masked batch, by name."""
    inputs = {name: batch[name] for name in INPUTS}
    with torch.autocast(inputs["region_features"].device.type, torch.bfloat16):
        out = model(**inputs)
        if settings.contrast == AFTER_JOINT:
            # between H_TXT and H_IMG, which have seen each other
            out["text_contrastive"] = out["text_pooled"]
            out["region_contrastive"] = out["region_pooled"]
        losses = pretext_losses(model, batch, out, settings.temperature)
        losses = {name: losses[name] for name in settings.tasks}
        if utils.process_count() > 1:
            complete(losses, batch, out, settings.temperature)
    return losses


def complete(losses: dict[str, Tensor], batch: Batch, out: Batch, temperature: float) -> None:
    """Change a shard's losses so that their mean over the processes is the loss of the whole batch."""
    accelerator = utils.accelerator()
    # a shard with many masked tokens or regions counts for more
    words = batch["mlm_labels"] != NOT_PREDICTED
    regions = batch["region_labels"]
    counts = {"mlm": words.sum().float(), "mrp": regions.sum().float()}
    for name in counts.keys() & losses.keys():
        mean = accelerator.reduce(counts[name], "mean").clamp(min=1e-9)
        losses[name] = losses[name] * counts[name] / mean
    # negatives come from all processes
    if "contrastive" in losses:
        gathered = {name: gather_rows(out[name]) for name in ("text_contrastive", "region_contrastive")}
        matched = accelerator.gather(batch["matched"]) if "matched" in batch else None
        losses["contrastive"] = contrastive_loss(gathered, temperature, matched)


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (n, …) of all processes in their order; gradients flow to this process's rows."""
    rows = rows.float()
    # every process has the loss of all rows, but gradients of its own; these are averaged later
    rows.register_hook(lambda gradient: gradient * utils.process_count())
    shards = list(utils.accelerator().gather(rows.detach()).split(len(rows)))
    shards[utils.process_index()] = rows
    return torch.cat(shards)


def prepare(objective: Objective, optimiser: Optimizer, schedule: LambdaLR) -> tuple:
    """Return the three as accelerate trains and keeps them; of many processes, gradients are averaged."""
    from accelerate import DistributedDataParallelKwargs  # heavy

    accelerator = utils.accelerator()
    accelerator.free_memory()  # of an earlier training
    # one step a batch, however many processes share it
    accelerator.step_scheduler_with_optimizer = False
    # some tasks leave weights unused, the same in every step
    accelerator.ddp_handler = DistributedDataParallelKwargs(static_graph=True)
    return accelerator.prepare(objective, optimiser, schedule)


def shard(rows: int) -> slice:
    """Return which rows of a batch are this process's: even parts; a rest is dropped."""
    count = utils.process_count()
    if rows < count:
        raise InputError(f"PretrainSettings: a batch of {rows} pairs is too small for {count} processes")
    size = rows // count
    first = size * utils.process_index()
    return slice(first, first + size)


def build_model(settings: CaptureSettings, pairs: Pairs, seed: int,
                tasks: tuple[str, ...] = TASKS, bert: str = "") -> Capture:
    """Return a fresh model for the tasks, with the data's vocabulary and feature width, or started from BERT."""
    torch.manual_seed(seed)
    settings = replace(
        settings, vocabulary=pairs.special["size"],
        region_features=pairs.store.features.shape[-1], matching=MATCHING in tasks)
    model = Capture(settings)
    if bert:
        start_from_bert(model, bert)
    return model


def make_ready(model: nn.Module, device: torch.device) -> None:
    """Bring a model to its device to be trained; compile it on a GPU (on a CPU, that takes longer than it saves)."""
    model.to(device).train()
    if device.type == "cuda":
        # without a compiler it runs as it is
        torch._dynamo.config.suppress_errors = True
        model.compile()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Put weight decay on matrices and embeddings, none on biases and LayerNorms, which have one dimension."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def make_optimiser(model: nn.Module, settings: PretrainSettings) -> Optimizer:
    """Return AdamW, in one pass over the weights ("fused")."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, settings.learning_rate, fused=True)


def make_schedule(optimiser: Optimizer, steps: int, settings: PretrainSettings) -> LambdaLR:
    """Return the schedule of the learning rate: up in a line over the warm-up, then down; never 0."""
    warmup = int(settings.warmup * steps)

    def share(step: int) -> float:
        return min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1))

    return LambdaLR(optimiser, share)


def epoch_batches(pairs: int, batch: int, epoch: int, seed: int) -> Iterator[np.ndarray]:
    """Yield a shuffled epoch's batches of pair numbers; a rest that fills no batch is dropped."""
    order = np.random.default_rng([seed, 3, epoch]).permutation(pairs)
    size = min(batch, pairs)
    for first in range(0, pairs - size + 1, size):
        yield order[first:first + size]


def drawn_batches(pairs: Pairs, batches: BatchSettings, settings: PretrainSettings,
                  seed: int, first: int = 0) -> Iterator[Batch]:
    """Yield this process's shard of what `Pairs.draw` draws for every step from number `first` on, by seed and step."""
    matching = MATCHING in settings.tasks
    step = 0
    for epoch in range(settings.epochs):
        for chosen in epoch_batches(len(pairs.tokens), settings.batch, epoch, seed):
            if step >= first:
                generator = torch.Generator().manual_seed(seed_of(seed, MASKING, step))
                yield pairs.draw(chosen, batches, generator, matching, shard(len(chosen)))
            step += 1


def seed_of(*numbers: int) -> int:
    """Return one seed made of several numbers."""
    return int(np.random.default_rng(numbers).integers(2**63))


def check_finite(kind: str, values: dict, steps: int, folder: Path) -> None:
    """Raise `FloatingPointError` for a loss or a weight that is not finite."""
    for name, value in values.items():
        if not torch.as_tensor(value).isfinite().all():
            raise FloatingPointError(f"pretraining: the {kind} {name} is not finite at step {steps}; "
                                     f"lower learning_rate ({resume.describe_last(folder)})")


def start_log(folder: str, first: int) -> Callable[..., None]:
    """Return what logs figures by name, and by `step` from `first` on, for TensorBoard; `InputError` without it."""
    if not folder:
        return lambda figures, step: None
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("pretraining", folder, purge_step=first + 1)
    try:
        tracker.start()
    except ImportError:
        raise InputError("PretrainSettings: log needs TensorBoard; "
                         "`pip install tensorboard`, or leave log empty") from None
    return tracker.log


def save(model: Capture, history: list[dict[str, float]], folder: Path) -> None:
    """Write the trained model and its losses; the states are no longer needed then."""
    with resume.explain_full_disk(folder, "the trained model"):
        model.save_pretrained(folder)
        with utils.write_atomically(folder / "history.json") as beside:
            beside.write_text(json.dumps(history), encoding="utf-8")
    for state in resume.kept_states(folder):
        resume.remove_state(state)
