"""The speed of pretraining: samples a second at the released size, against an eager float32 peer in the same run."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import NOT_PREDICTED, contrastive_loss, pretext_losses
from capture_lib.proposals.region_store import RegionStore
from capture_lib.training import pretrain
from capture_lib.training.batches import Batch, BatchSettings, Pairs
from capture_lib.training.pretrain import PretrainSettings

SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
SETTINGS = PretrainSettings(epochs=1_000)  # the rows are repeated as often as it takes
PEER = ("the same model and losses, eager in float32, as the released code does it: words and regions decoded at "
        "every position, attention written out, AdamW tensor by tensor")


@dataclass(frozen=True)
class Sizes:
    """How much is measured: ours and the peer take turns, `rounds` times."""

    batch: int = 64
    rounds: int = 6
    steps: int = 1  # in a round
    rows: int = 512  # of the region store, on disk
    matrix: int = 2048  # side of the square matrices whose product gives the peak
    regions: int = 36
    model: CaptureSettings = CaptureSettings()  # as released


SIZES = {"cpu": Sizes(), "cuda": Sizes(512, 3, 40, 20_000, 8192)}


def pretraining() -> dict[str, dict]:
    """Measure each device that is there."""
    return {name: measure(torch.device(name), sizes) for name, sizes in SIZES.items()
            if name == "cpu" or torch.cuda.is_available()}


def measure(device: torch.device, sizes: Sizes) -> dict:
    """Take training steps on random pairs that come from a memory-mapped store, as in `pretrain.train`.

    A FLOP is an addition or a multiplication in a matrix product or in attention, forward and backward. The peak is
    that of one large product of matrices in bfloat16 in the same run.
    """
    with TemporaryDirectory() as folder:
        pairs = random_pairs(Path(folder), sizes.rows, sizes.regions, sizes.model)
        check_peer(pairs, sizes.model)
        flop = count_flop(Capture(sizes.model), pairs)
        steps = {"ours": fast_step(Capture(sizes.model), device), "peer": plain_step(Capture(sizes.model), device)}
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        for turn in range(1 + sizes.rounds):
            for name, step in steps.items():
                seconds = run_steps(stream(pairs, sizes.batch, device, sizes.steps), device, step)
                if turn:  # the first warms up
                    rates[name].append(sizes.batch * sizes.steps / seconds)
        # the same batch again and again, which lies on the device: what batches cost is the difference
        batch = on_device(next(iter(stream(pairs, sizes.batch, device, 1))), device)
        resident = sizes.batch * sizes.steps / run_steps([batch] * sizes.steps, device, steps["ours"])
    ratios = [ours / peer for ours, peer in zip(rates["ours"], rates["peer"], strict=True)]
    rate = statistics.median(rates["ours"])
    top = peak(device, sizes.matrix)
    return {"samples_per_s": rate, "peer_samples_per_s": statistics.median(rates["peer"]),
            "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
            "samples_per_s_without_loading": resident,
            "flop_per_sample": flop, "peak_flop_per_s": top, "share_of_peak": rate * flop / top,
            "batch": sizes.batch, "threads": torch.get_num_threads(), "peer": PEER}


def random_pairs(folder: Path, rows: int, regions: int, settings: CaptureSettings) -> Pairs:
    """Return pairs of random tokens, 20 to all of them valid, and random regions in a store on disk."""
    rng = np.random.default_rng(0)
    shape = (rows, regions, settings.region_features)
    features = open_memmap(folder / "features.npy", "w+", np.float16, shape)
    for first in range(0, rows, 512):
        part = features[first:first + 512]
        part[:] = rng.standard_normal(part.shape, np.float32)
    low = rng.random((rows, regions, 2), np.float32) / 2
    boxes = np.concatenate([low, low + 0.5], -1)
    scores = np.ones((rows, regions), np.float32)
    store = RegionStore(features, boxes, scores, np.full(rows, regions, np.int32), [str(row) for row in range(rows)])

    length = BatchSettings().text_length
    tokens = rng.integers(len(SPECIAL), settings.vocabulary, (rows, length))
    ends = rng.integers(20, length + 1, (rows, 1)) - 1
    places = np.arange(length)
    tokens[:, 0] = SPECIAL["[CLS]"]
    tokens[places > ends] = SPECIAL["[PAD]"]
    tokens[places == ends] = SPECIAL["[SEP]"]
    return Pairs(tokens, np.arange(rows), store, SPECIAL | {"size": settings.vocabulary})


# ---- steps


class PlainObjective(pretrain.Objective):
    """The losses of the peer: in float32, with everything decoded at every position."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the three losses on a masked batch, by name."""
        out = self.model(**{name: batch[name] for name in pretrain.INPUTS}, attention=True)
        words = self.model.predict_words(out["text_sequence"])  # (B, L, V)
        regions = self.model.predict_regions(out["region_sequence"][:, 1:])  # (B, R, F)
        masked = batch["region_labels"][..., None]
        errors = (regions - batch["region_targets"]) ** 2 * masked
        mlm = F.cross_entropy(words.flatten(0, 1), batch["mlm_labels"].flatten(), ignore_index=NOT_PREDICTED)
        mrp = errors.sum() / (masked.sum() * regions.shape[-1]).clamp(min=1)
        return {"mlm": mlm, "mrp": mrp, "contrastive": contrastive_loss(out)}


def fast_step(model: Capture, device: torch.device, settings: PretrainSettings = SETTINGS,
              form: type[pretrain.Objective] = pretrain.Objective) -> Callable[[Batch], list[float]]:
    """Return the step of `pretrain.train`, without its schedule; the host waits for the losses once, as there."""
    model.to(device).train()
    if device.type == "cuda":
        model.compile()
    optimiser = pretrain.make_optimiser(model, settings)
    objective = form(model, settings)
    return lambda batch: torch.stack(list(pretrain.step(objective, batch, optimiser).values())).tolist()


def plain_step(model: Capture, device: torch.device) -> Callable[[Batch], object]:
    """Return the step of the peer."""
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), SETTINGS.learning_rate, foreach=False)
    objective = PlainObjective(model, SETTINGS)

    def step(batch: Batch) -> None:
        optimiser.zero_grad()
        sum(objective(batch).values()).backward()
        optimiser.step()

    return step


def check_peer(pairs: Pairs, settings: CaptureSettings) -> None:
    """Fail unless the peer minimises the same losses."""
    model = Capture(replace(settings, dropout=0.0)).eval()
    batch = pairs.masked_batch(np.arange(8), BatchSettings(), torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = pretext_losses(model, batch, model(**{name: batch[name] for name in pretrain.INPUTS}))
        torch.testing.assert_close(PlainObjective(model, SETTINGS)(batch), losses, rtol=1e-4, atol=1e-4)


def stream(pairs: Pairs, batch: int, device: torch.device, count: int) -> DataLoader:
    """Return so many masked batches, made as in `pretrain.train`."""
    settings, gpu = replace(SETTINGS, batch=batch), device.type == "cuda"
    return DataLoader(
        range(count), batch_size=None, num_workers=8 * gpu, pin_memory=gpu,
        multiprocessing_context="fork" if gpu else None,
        collate_fn=lambda number: pretrain.step_batch(number, pairs, BatchSettings(), settings, 0))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on the device, where it may arrive while the host goes on."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def run_steps(batches: Iterable[Batch], device: torch.device, step: Callable[[Batch], object]) -> float:
    """Return the seconds that a step on each batch took, waiting for the batches included."""
    started = time.perf_counter()
    for batch in batches:
        step(on_device(batch, device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def count_flop(model: Capture, pairs: Pairs, batch: int = 8) -> float:
    """Return the FLOP of a sample, forward and backward."""
    masked = pairs.masked_batch(np.arange(batch), BatchSettings(), torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        objective = pretrain.Objective(model.train(), SETTINGS)
        pretrain.step(objective, masked, torch.optim.SGD(model.parameters(), 0.0))
    return counter.get_total_flops() / batch


def peak(device: torch.device, side: int) -> float:
    """Return the FLOP a second of a product of square matrices in bfloat16."""
    a, b = torch.randn(2, side, side, device=device).bfloat16()

    def product() -> None:
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 2 * side ** 3 / fastest(product, 10)


def fastest(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the best of a few timings in seconds, after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
