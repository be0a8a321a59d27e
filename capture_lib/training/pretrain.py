"""The pretraining loop: masked language, masked region and contrastive losses on image-caption pairs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from capture_lib import utils
from capture_lib.model.bert import start_from_bert
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import NOT_PREDICTED, contrastive_loss, pretext_losses
from capture_lib.training import resume
from capture_lib.training.batches import Batch, BatchSettings, Pairs, prefetch
from capture_lib.utils import InputError

TASKS = ("mlm", "mrp", "contrastive")  # the paper's final recipe
MATCHING = "itm"  # image-text matching: the paper describes it and leaves it out
BEFORE_CROSS = "before cross"  # where the contrastive loss sits in the paper
AFTER_JOINT = "after joint"
MASKING, DROPOUT = 4, 5  # what a seed is for
INPUTS = ("input_ids", "text_mask", "region_features", "region_locations", "region_mask")  # of the model, in a batch


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
    log: str = ""  # a folder for TensorBoard's logs; empty = none
    bert: str = ""  # a folder with bert-base-chinese, or its name on the hub, for the text side; empty = a random start

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in (*TASKS, MATCHING):
                raise InputError(f"PretrainSettings: task {task!r} is unknown; use {', '.join((*TASKS, MATCHING))}")
        if self.contrast not in (BEFORE_CROSS, AFTER_JOINT):
            raise InputError(f"PretrainSettings: contrast is {self.contrast!r}; give {BEFORE_CROSS!r} or "
                             f"{AFTER_JOINT!r}")


def settings_of_result(settings: PretrainSettings) -> PretrainSettings:
    """Return the settings that the result depends on: how often it is kept and logged is left out."""
    return replace(settings, keep_every=0, log="")


def possible_tasks(captions: list[str], tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tasks that the data allows: without captions there is no word to mask, no pair to match."""
    return tasks if any(captions) else tuple(task for task in tasks if task == "mrp")


# ---- the training


def train(model: Capture, pairs: Pairs, batches: BatchSettings, settings: PretrainSettings, folder: Path,
          seed: int) -> list[dict[str, float]]:
    """Pretrain `model` in place and save it in `folder`; return the losses of every step by name.

    The state is kept every `keep_every` steps: a run that was stopped, in whatever way, goes on from there
    and, on a CPU, ends with the same bytes.

    Raises:
        FloatingPointError: a loss or a weight is not finite.
        InputError: a batch has fewer pairs than there are processes, or something cannot be written.
    """
    steps = settings.epochs * len(list(epoch_batches(len(pairs.tokens), settings.batch, 0, seed)))
    device = utils.accelerator().device
    make_ready(model, device)
    optimiser = make_optimiser(model, settings)
    schedule = make_schedule(optimiser, steps, settings)
    parallel, optimiser, schedule = prepare(model, optimiser, schedule)

    # go on from the last state, if there is one
    training = describe_training(model, pairs, batches, settings, seed)
    history = resume.load_last_state(folder, training)
    log = start_log(settings.log, len(history))

    drawn = drawn_batches(pairs, batches, settings, seed, first=len(history))
    stream = utils.progress(prefetch(drawn, device), "pretraining steps", steps - len(history),
                            lambda: describe_losses(history[-1]))
    for batch in stream:
        # the same dropout, whether the run was stopped or not
        torch.manual_seed(seed_of(seed, DROPOUT, len(history), utils.process_index()))
        losses = step(parallel, batch, optimiser, settings)
        rate = schedule.get_last_lr()[0]
        schedule.step()
        # record
        values = torch.stack(list(losses.values())).tolist()
        history.append(dict(zip(losses, values, strict=True)))
        check_finite(model, history, folder)
        log(history[-1] | {"learning_rate": rate}, step=len(history))
        if len(history) % settings.keep_every == 0:
            resume.keep_state(folder, training, history)

    utils.accelerator().free_memory()
    model.eval()
    if utils.is_main_process():
        save(model, history, folder)
    utils.wait_for_everyone()
    return history


def step(model: nn.Module, batch: Batch, optimiser: Optimizer, settings: PretrainSettings) -> dict[str, Tensor]:
    """Take one optimiser step on a masked batch; return its losses by name (each has weight 1, as released).

    Of many processes, each has its shard of the batch; losses and step are those of the whole batch.
    """
    accelerator = utils.accelerator()
    losses = losses_of(model, batch, settings)
    # backward
    optimiser.zero_grad()
    accelerator.backward(sum(losses.values()))
    # clip, and step
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    values = accelerator.reduce(torch.stack(list(losses.values())).detach(), "mean")
    return dict(zip(losses, values, strict=True))


def losses_of(model: nn.Module, batch: Batch, settings: PretrainSettings) -> dict[str, Tensor]:
    """Return the losses of the tasks on a masked batch, by name."""
    heads = utils.accelerator().unwrap_model(model)
    with torch.autocast(batch["region_features"].device.type, torch.bfloat16):
        # forward
        out = model(**{name: batch[name] for name in INPUTS})
        if settings.contrast == AFTER_JOINT:  # between H_TXT and H_IMG, which have seen each other
            out = out | {"text_contrastive": out["text_pooled"], "region_contrastive": out["region_pooled"]}
        losses = pretext_losses(heads, batch, out, settings.temperature)
        if utils.process_count() > 1:
            losses |= whole_batch_losses(losses, batch, out, settings)
    return {name: losses[name] for name in settings.tasks}


def whole_batch_losses(losses: dict[str, Tensor], batch: Batch, out: Batch, settings: PretrainSettings
                       ) -> dict[str, Tensor]:
    """Return losses of a shard whose mean over the processes is the loss of the whole batch."""
    accelerator = utils.accelerator()
    # a shard with many masked tokens or regions counts for more
    counts = torch.stack([(batch["mlm_labels"] != NOT_PREDICTED).sum(), batch["region_labels"].sum()]).float()
    weights = counts / accelerator.reduce(counts, "mean").clamp(min=1e-9)
    # negatives come from all processes
    gathered = {name: gather_rows(out[name]) for name in ("text_contrastive", "region_contrastive")}
    matched = accelerator.gather(batch["matched"]) if "matched" in batch else None
    return {"mlm": losses["mlm"] * weights[0], "mrp": losses["mrp"] * weights[1],
            "contrastive": contrastive_loss(gathered, settings.temperature, matched)}


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (n, …) of all processes in their order; gradients flow to this process's rows.

    Each process computes the loss of all rows, and the mean of their gradients is taken: to have the sum
    of what all rows get, a row's gradient counts once for each process.
    """
    rows = rows.float()
    shards = list(utils.accelerator().gather(rows.detach()).split(len(rows)))
    if rows.requires_grad:
        rows.register_hook(lambda gradient: gradient * utils.process_count())
    shards[utils.process_index()] = rows
    return torch.cat(shards)


# ---- its parts


def build_model(settings: CaptureSettings, pairs: Pairs, seed: int, tasks: tuple[str, ...] = TASKS, bert: str = ""
                ) -> Capture:
    """Return a fresh model for the tasks, with the data's vocabulary and feature width; `bert` as in `PretrainSettings`."""
    torch.manual_seed(seed)
    model = Capture(replace(settings, vocabulary=pairs.special["size"], matching=MATCHING in tasks,
                            region_features=pairs.store.features.shape[-1]))
    if bert:
        start_from_bert(model, bert)
    return model


def make_ready(model: nn.Module, device: torch.device) -> None:
    """Bring a model to its device to be trained; compile it on a GPU (on a CPU, that takes longer than it saves)."""
    model.to(device).train()
    if device.type == "cuda":
        torch._dynamo.config.suppress_errors = True  # without a compiler it runs as it is
        model.compile()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Put weight decay on matrices and embeddings, none on biases and LayerNorms, which have one dimension.

    The released code has it the wrong way round where it starts from BERT's weights.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def make_optimiser(model: nn.Module, settings: PretrainSettings) -> Optimizer:
    """Return AdamW, in one pass over the weights ("fused")."""
    return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), settings.learning_rate, fused=True)


def make_schedule(optimiser: Optimizer, steps: int, settings: PretrainSettings) -> LRScheduler:
    """Return the schedule of the learning rate: up in a line over the warm-up, then down; no step has a rate of 0."""
    warmup = int(settings.warmup * steps)

    def share(step: int) -> float:
        return min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1))

    return LambdaLR(optimiser, share)


def prepare(model: Capture, optimiser: Optimizer, schedule: LRScheduler) -> tuple:
    """Return the three as accelerate trains and keeps them; with many processes, gradients are averaged."""
    from accelerate import DistributedDataParallelKwargs  # heavy

    accelerator = utils.accelerator()
    accelerator.free_memory()  # an earlier training's
    accelerator.step_scheduler_with_optimizer = False  # one step a batch, however many processes share it
    # the heads are called outside of forward, and a task may leave some unused
    accelerator.ddp_handler = DistributedDataParallelKwargs(static_graph=True)
    return accelerator.prepare(model, optimiser, schedule)


def epoch_batches(pairs: int, batch: int, epoch: int, seed: int) -> Iterator[np.ndarray]:
    """Yield a shuffled epoch's batches of pair numbers; a rest that fills no batch is dropped."""
    order = np.random.default_rng([seed, 3, epoch]).permutation(pairs)
    size = min(batch, pairs)
    for first in range(0, pairs - size + 1, size):
        yield order[first:first + size]


def drawn_batches(pairs: Pairs, batches: BatchSettings, settings: PretrainSettings, seed: int, first: int = 0
                  ) -> Iterator[Batch]:
    """Yield this process's shard of what `Pairs.draw` draws for every step from number `first` on.

    It follows from seed and step alone: masks are drawn for the whole batch, however many processes share it.
    """
    step = 0
    for epoch in range(settings.epochs):
        for chosen in epoch_batches(len(pairs.tokens), settings.batch, epoch, seed):
            if step >= first:
                generator = torch.Generator().manual_seed(seed_of(seed, MASKING, step))
                yield pairs.draw(chosen, batches, generator, MATCHING in settings.tasks, shard(len(chosen)))
            step += 1


def shard(rows: int) -> slice:
    """Return which rows of a batch are this process's: even parts; a rest is dropped."""
    size = rows // utils.process_count()
    if not size:
        raise InputError(f"PretrainSettings: a batch of {rows} pairs is too small for {utils.process_count()} processes")
    return slice(size * utils.process_index(), size * (utils.process_index() + 1))


def seed_of(*numbers: int) -> int:
    """Return one seed made of several numbers."""
    return int(np.random.default_rng(numbers).integers(2**63))


def describe_training(model: Capture, pairs: Pairs, batches: BatchSettings, settings: PretrainSettings, seed: int) -> str:
    """Return what tells a training from others: a state of another one is of no use."""
    parts = [asdict(part) for part in (settings_of_result(settings), batches, model.settings)]
    return json.dumps([*parts, len(pairs.tokens), seed, utils.process_count()])


def describe_losses(losses: dict[str, float]) -> str:
    """Return the losses as the progress bar shows them."""
    return ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())


def check_finite(model: Capture, history: list[dict[str, float]], folder: Path) -> None:
    """Raise `FloatingPointError` where one of the last step's losses is not finite."""
    for name, value in history[-1].items():
        if not np.isfinite(value):
            raise FloatingPointError(f"pretraining: the loss {name} is {value} at step {len(history)}; "
                                     f"lower learning_rate ({resume.describe_last(folder)})")


def start_log(folder: str, first: int) -> Callable[..., None]:
    """Return what logs figures by name, and by `step` from `first` on, for TensorBoard, in the main process.

    Raises:
        InputError: TensorBoard is not installed.
    """
    if not folder:
        return lambda figures, step: None
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("pretraining", folder, purge_step=first + 1)
    try:
        tracker.start()
    except ImportError:
        raise InputError("PretrainSettings: log needs TensorBoard; `pip install tensorboard`, or leave log empty"
                         ) from None
    return tracker.log


def save(model: Capture, history: list[dict[str, float]], folder: Path) -> None:
    """Write the trained model and its losses; the states are no longer needed then."""
    with resume.explain_full_disk(folder, "the trained model"):
        model.save_pretrained(folder)
        with utils.write_atomically(folder / "history.json") as beside:
            beside.write_text(json.dumps(history), encoding="utf-8")
    for state in resume.kept_states(folder):
        utils.remove(state)
