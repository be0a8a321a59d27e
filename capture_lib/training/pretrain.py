"""The pretraining loop: masked language, masked region and contrastive losses on image-caption pairs."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from capture_lib.experiments.composed import TARGET, TASK, ComposedSettings, composed_loss
from capture_lib.model.bert import start_from_bert
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import NOT_PREDICTED, pretext_losses
from capture_lib.training import distributed as ranks
from capture_lib.training.batches import BatchSettings, Pairs, ahead, masked_on
from capture_lib.training.state import forget, keep, last_kept, last_state
from capture_lib.utils import (
    InputError,
    is_main_process,
    pick_device,
    process_count,
    process_index,
    progress,
    wait_for_everyone,
    write_atomically,
)

TASKS = ("mlm", "mrp", "contrastive")  # the final recipe
BEFORE_CROSS, AFTER_JOINT = "before cross", "after joint"  # where the contrastive loss sits; paper: before
PAPER, BEYOND = "paper", "beyond"  # recipes
MATCHING = "itm"  # image-text matching: the paper describes it and leaves it out
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
    contrast: str = BEFORE_CROSS  # where the contrastive loss sits; or AFTER_JOINT
    keep_every: int = 100  # steps after which the state is kept, so that a stopped run goes on from there
    log: str = ""  # a folder for TensorBoard's logs; empty = none
    bert: str = ""  # a folder with bert-base-chinese, or its name on the hub, for the text side; empty = a random start
    recipe: str = PAPER  # or BEYOND: the joint vector has a loss of its own (ours, `capture_lib.beyond`)
    composed: ComposedSettings | None = None  # of the recipe BEYOND; None: its defaults

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in (*TASKS, MATCHING):
                raise InputError(f"PretrainSettings: task {task!r} is unknown; use {', '.join((*TASKS, MATCHING))}")
        if self.contrast not in (BEFORE_CROSS, AFTER_JOINT):
            raise InputError(f"PretrainSettings: contrast is {self.contrast!r}; give {BEFORE_CROSS!r} or "
                             f"{AFTER_JOINT!r}")
        if self.recipe not in (PAPER, BEYOND):
            raise InputError(f"PretrainSettings: recipe is {self.recipe!r}; give {PAPER!r} or {BEYOND!r}")


def of_result(settings: PretrainSettings) -> PretrainSettings:
    """The settings that the result depends on: how often it is kept and logged is left out."""
    return replace(settings, keep_every=0, log="")


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


def make_ready(model: nn.Module, device: torch.device) -> None:
    """Brings a model to its device to be trained; compiled on a GPU (on a CPU, that took longer than it saved)."""
    model.to(device).train()
    if device.type == "cuda" and can_compile(device):
        model.compile()


def can_compile(device: torch.device) -> bool:
    """Whether PyTorch finds the compilers that it needs; if not, a line says so."""
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))
    except Exception as error:  # whatever the reason: training works without, only slower
        print(f"pretraining: the model is not compiled, which would be faster ({type(error).__name__})")
        return False
    return True


def make_optimiser(model: nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    """AdamW in one pass over the weights ("fused"), instead of one for each of its operations."""
    return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), settings.learning_rate, fused=True)


def make_schedule(optimiser: torch.optim.Optimizer, steps: int, settings: PretrainSettings
                  ) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate of every step, by `share_of_rate`."""
    share = partial(share_of_rate, warmup=int(settings.warmup * steps), steps=steps)
    return torch.optim.lr_scheduler.LambdaLR(optimiser, share)


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


def drawn_batches(pairs: Pairs, batches: BatchSettings, settings: PretrainSettings, seed: int, first: int = 0
                  ) -> Iterator[dict[str, Tensor]]:
    """What `Pairs.draw` draws for every step from number `first` on; of many processes, each gets its part.

    It follows from seed and step alone: masks are drawn for the whole batch, however many processes share it.
    """
    step = 0
    for epoch in range(settings.epochs):
        for chosen in epoch_batches(len(pairs.tokens), settings.batch, epoch, seed):
            if step >= first:
                generator = torch.Generator().manual_seed(seed_of(seed, MASKING, step))
                yield pairs.draw(chosen, batches, generator, MATCHING in settings.tasks, ranks.part(len(chosen)))
            step += 1


def seed_of(*numbers: int) -> int:
    """One seed made of several numbers."""
    return int(np.random.default_rng(numbers).integers(2**63))


def train(model: Capture, pairs: Pairs, batches: BatchSettings, settings: PretrainSettings, folder: Path,
          seed: int) -> list[dict[str, float]]:
    """Pretrains `model` in place and saves it in `folder`; returns the losses of every step by name.

    The state is kept every `keep_every` steps: a run that was stopped, in whatever way, goes on from there and, on a
    CPU, ends with the same bytes.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: the state or the model cannot be written.
    """
    check_size(settings, len(pairs.tokens))
    wait_for_everyone()  # each process then has its device
    device = pick_device()
    make_ready(model, device)
    steps = settings.epochs * sum(1 for _ in epoch_batches(len(pairs.tokens), settings.batch, 0, seed))
    parts = {"optimiser": make_optimiser(model, settings), "model": model}
    parts["schedule"] = make_schedule(parts["optimiser"], steps, settings)
    name = json.dumps([asdict(of_result(settings)), asdict(batches), seed, len(pairs.tokens)])
    history = restore(folder, parts, name)
    wait_for_everyone()  # the first may write over what the others read
    trained = averaging(model, settings) if process_count() > 1 else model
    log, note, left = log_in(settings.log, len(history)), pace(history, settings.batch), steps - len(history)
    stream = ahead(masked_on(device, drawn_batches(pairs, batches, settings, seed, len(history))))
    try:
        for batch in progress(stream, "pretraining steps", left, note):
            torch.manual_seed(seed_of(seed, DROPOUT, len(history), process_index()))
            losses = step(trained, batch, parts["optimiser"], settings)
            rate = parts["schedule"].get_last_lr()[0]
            parts["schedule"].step()
            history.append(dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True)))
            check_losses(history, steps, folder)
            log(history[-1] | {"learning_rate": rate}, step=len(history))
            if len(history) % settings.keep_every == 0 and is_main_process():
                keep(folder, len(history), state_of(parts, history, name))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"pretraining: interrupted at step {len(history)} of {steps}; the next start goes on "
                                f"({last_kept(folder)})") from None
    model.eval()
    if is_main_process():
        save(model, history, folder)
    wait_for_everyone()
    return history


def save(model: Capture, history: list[dict[str, float]], folder: Path) -> None:
    """Writes the trained model and its losses; the kept states are no longer needed then."""
    try:
        model.save_pretrained(folder)
        with write_atomically(folder / "history.json") as beside:
            beside.write_text(json.dumps(history), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: the trained model cannot be written ({error}); make room and start again "
                         f"({last_kept(folder)})") from None
    forget(folder)


def check_size(settings: PretrainSettings, pairs: int) -> None:
    """`InputError` where an epoch's last batch may have no pair for some process."""
    if process_count() > -(-min(settings.batch, pairs) // 2):
        raise InputError(f"PretrainSettings: batch {settings.batch} of {pairs:,} pairs is too small for "
                         f"{process_count()} processes: each needs a pair of every batch")


def check_losses(history: list[dict[str, float]], steps: int, folder: Path) -> None:
    """`FloatingPointError` where one of the last step's losses is not finite."""
    for name, value in history[-1].items():
        if not np.isfinite(value):
            raise FloatingPointError(f"pretraining: the loss {name} is {value} at step {len(history)} of {steps}; "
                                     f"lower learning_rate ({last_kept(folder)})")


def pace(history: list[dict[str, float]], batch: int) -> Callable[[], str]:
    """What the progress bar says whenever it is asked: the last losses, and samples a second from now on."""
    first, started = len(history), time.perf_counter()

    def said() -> str:
        speed = (len(history) - first) * batch / (time.perf_counter() - started)
        return f"{', '.join(f'{name} {loss:.3f}' for name, loss in history[-1].items())}; {speed:,.0f} samples/s"

    return said


def step(model: nn.Module, batch: dict[str, Tensor], optimiser: torch.optim.Optimizer, settings: PretrainSettings
         ) -> dict[str, Tensor]:
    """One optimiser step on a masked batch; returns its losses by name (each has weight 1, as released).

    Of many processes, each has its part of the batch and in place of `model` what `averaging` makes of it: losses
    and step are then those of the whole batch.
    """
    losses = losses_of(model, batch, settings) if isinstance(model, Capture) else model(batch)
    optimiser.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    values = ranks.mean(torch.stack(list(losses.values())).detach())
    return dict(zip(losses, values, strict=True))


def losses_of(model: Capture, batch: dict[str, Tensor], settings: PretrainSettings) -> dict[str, Tensor]:
    """The losses of the tasks on a masked batch, by name."""
    with torch.autocast(batch["region_features"].device.type, torch.bfloat16):
        out = model(**{name: batch[name] for name in INPUTS})
        if settings.contrast == AFTER_JOINT:  # between H_IMG and H_TXT, which have seen each other
            out |= {"text_contrastive": out["text_pooled"], "region_contrastive": out["region_pooled"]}
        losses = pretext_losses(model, batch, out, settings.temperature)
        losses = {name: losses[name] for name in settings.tasks}
        if TARGET in batch:
            losses[TASK] = composed_loss(model, batch, (settings.composed or ComposedSettings()).temperature)
    return of_whole_batch(losses, batch)


class Objective(nn.Module):
    """A model that gives its losses: what averages gradients must see all that leads to them, the heads too."""

    def __init__(self, model: Capture, settings: PretrainSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return losses_of(self.model, batch, self.settings)


def averaging(model: Capture, settings: PretrainSettings) -> nn.Module:
    """The model's objective, so wrapped that gradients are averaged over the processes."""
    whole = set(TASKS) <= set(settings.tasks) and settings.contrast == BEFORE_CROSS
    return ranks.averaging(Objective(model, settings), unused=not whole)


def of_whole_batch(losses: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses whose mean over the processes is the loss of the whole batch: means over a part are weighted by its size.

    A part with many masked tokens counts for more. The contrastive loss is that of the whole batch in every process.
    """
    if process_count() == 1:
        return losses
    sizes = {"mlm": (batch["mlm_labels"] != NOT_PREDICTED).sum(), "mrp": batch["region_labels"].sum(),
             "itm": torch.tensor(len(batch["input_ids"]))}
    own = torch.stack([sizes[name].to(loss.device) if name in sizes else loss.new_ones(()) for name, loss in
                       losses.items()]).float()
    shares = own / ranks.mean(own).clamp(min=1e-9)
    return {name: loss * share for (name, loss), share in zip(losses.items(), shares, strict=True)}


def log_in(folder: str, first: int) -> Callable[..., None]:
    """Logs figures by name, and by `step` from `first` on, for TensorBoard, in the first of many processes.

    Raises:
        InputError: TensorBoard is not installed.
    """
    if not folder:
        return lambda figures, step: None
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker

    PartialState(cpu=not torch.cuda.is_available())  # which process this is, as the tracker asks
    tracker = TensorBoardTracker("pretraining", folder, purge_step=first + 1)
    try:
        tracker.start()
    except ImportError:
        raise InputError("PretrainSettings: log needs TensorBoard; `pip install tensorboard`, or leave log empty"
                         ) from None
    return tracker.log


def state_of(parts: dict, history: list[dict[str, float]], name: str) -> dict:
    """What a training is taken up from: the states of its parts, its losses so far, and its name.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    if not all(weight.isfinite().all() for weight in parts["model"].parameters()):
        raise FloatingPointError(f"pretraining: a weight is not finite after step {len(history)}; lower learning_rate")
    return {**{part: holder.state_dict() for part, holder in parts.items()}, "history": history, "name": name}


def restore(folder: Path, parts: dict, name: str) -> list[dict[str, float]]:
    """Brings the parts back to the last state that was kept, if there is one; returns the losses so far."""

    def check(state: dict) -> None:
        if not isinstance(state, dict) or state.keys() != {*parts, "history", "name"} or state["name"] != name:
            raise ValueError("it is of another training")
        own = {weight: value.shape for weight, value in parts["model"].state_dict().items()}
        if {weight: value.shape for weight, value in state["model"].items()} != own:
            raise ValueError("it is of another model")

    state = last_state(folder, check)
    if state is None:
        return []
    for part, holder in parts.items():
        holder.load_state_dict(state[part])
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
