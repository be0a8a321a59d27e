"""Pretraining in `make bench`: samples a second at the released size, beside an eager float32 peer in the same run."""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from capture_lib.model.capture import Capture
from capture_lib.model.config import CaptureSettings
from capture_lib.model.losses import NOT_PREDICTED, contrastive_loss
from capture_lib.proposals import region_store as regions
from capture_lib.training import pretrain
from capture_lib.training.batches import BatchSettings, Pairs, ahead, masked_on
from capture_lib.training.pretrain import PretrainSettings

PRODUCT1M = 1_132_830  # training pairs
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
SETTINGS = PretrainSettings(epochs=1_000)  # the epochs of a run are made up by repeating the rows
PEER = ("the same model and losses, eager in float32, as the released code does it: words and regions decoded at every "
        "position, attention written out, AdamW tensor by tensor")


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the model has the released sizes. Ours and the peer take turns, `rounds` times."""

    model: CaptureSettings = CaptureSettings()
    regions: int = 36
    batch: int = 64
    rows: int = 512  # of the region store, on disk
    rounds: int = 3
    steps: int = 1  # of ours, in a round
    peer_steps: int = 1
    matrix: int = 2048  # side of the square matrices whose product gives the peak


SIZES = {"cpu": Sizes(rounds=6), "cuda": Sizes(batch=512, rows=200_000, steps=50, peer_steps=5, matrix=8192)}


def pretraining(sizes: dict[str, Sizes] = SIZES) -> dict[str, dict]:
    """The figures of each device there is; `measure` says what they are."""
    return {name: measure(torch.device(name), size) for name, size in sizes.items()
            if name == "cpu" or torch.cuda.is_available()}


def measure(device: torch.device, sizes: Sizes) -> dict:
    """Training steps on random pairs that come from a memory-mapped store in random order, as in `pretrain.train`.

    Each round starts with no batch made ahead, so that its first is waited for in full. A FLOP is an addition or a
    multiplication in a matrix product or in attention, forward and backward; nothing else is counted, and nothing
    twice. The peak is that of one large product of matrices in the same run.
    """
    with TemporaryDirectory() as folder:
        pairs = random_pairs(Path(folder), sizes)
        torch.manual_seed(0)
        model = Capture(sizes.model)
        flop = count_flop(model, pairs, min(sizes.batch, 8))
        fast, plain = fast_step(model, device), plain_step(Capture(sizes.model), device)
        run_steps(pairs, sizes.batch, device, fast, 1), run_steps(pairs, sizes.batch, device, plain, 1)  # warming up
        turns = [(run_steps(pairs, sizes.batch, device, fast, sizes.steps),
                  run_steps(pairs, sizes.batch, device, plain, sizes.peer_steps)) for _ in range(sizes.rounds)]
        representation, rows = read_rows(pairs, sizes.batch), len(pairs.rows)
    peaks = {str(dtype).split(".")[1]: peak(device, dtype, sizes.matrix) for dtype in (torch.bfloat16, torch.float32)}
    rates = [sizes.batch * sizes.steps / seconds for (seconds, _), _ in turns]
    peer_rates = [sizes.batch * sizes.peer_steps / seconds for _, (seconds, _) in turns]
    (rate, spread), (peer_rate, peer_spread) = middle(rates), middle(peer_rates)
    ratio, ratio_spread = middle([ours / peer for ours, peer in zip(rates, peer_rates, strict=True)])
    waiting, _ = middle([waited / seconds for (seconds, waited), _ in turns])
    return {
        "samples_per_s": rate, "samples_per_s_range": spread, "product1m_epoch_minutes": PRODUCT1M / rate / 60,
        "peer_samples_per_s": peer_rate, "peer_samples_per_s_range": peer_spread,
        "ratio": ratio, "ratio_range": ratio_spread,  # of each round, whose two halves ran one after the other
        "flop_per_sample": flop, "share_of_peak": rate * flop / peaks["bfloat16"], "peak_flop_per_s": peaks,
        "share_waiting_for_data": waiting, **representation, "rows": rows, "batch": sizes.batch,
        "threads": torch.get_num_threads(), "parameters": sum(weights.numel() for weights in model.parameters()),
        "peer": PEER,
    }


def middle(values: list[float]) -> tuple[float, list[float]]:
    """The median, and the lowest and the highest."""
    return statistics.median(values), [min(values), max(values)]


# ------------------------------------------------------------------------------------------------- data


def random_pairs(folder: Path, sizes: Sizes) -> Pairs:
    """Pairs of random tokens, 20 to all of them real, and random regions, in a region store on disk.

    It takes half of the free disk at most: an epoch is made up by repeating the rows.
    """
    rng, model = np.random.default_rng(0), sizes.model
    rows = min(sizes.rows, shutil.disk_usage(folder).free // (4 * sizes.regions * model.region_features))  # float16
    features = open_memmap(folder / "features.npy", "w+", np.float16, (rows, sizes.regions, model.region_features))
    block = rng.standard_normal((min(rows, 512), *features.shape[1:]), np.float32).astype(np.float16)
    for first in range(0, rows, len(block)):
        features[first:first + len(block)] = block[:rows - first]
    features.flush()
    low = rng.random((rows, sizes.regions, 2), np.float32) / 2
    np.save(folder / "boxes.npy", np.concatenate([low, low + 0.5], -1))
    np.save(folder / "scores.npy", np.ones((rows, sizes.regions), np.float32))
    np.save(folder / "counts.npy", np.full(rows, sizes.regions, np.int32))
    (folder / "ids.txt").write_text("".join(f"{row}\n" for row in range(rows)))
    tokens = rng.integers(len(SPECIAL), model.vocabulary, (rows, model.text_length))
    lengths = rng.integers(min(20, model.text_length), model.text_length + 1, (rows, 1))
    places = np.arange(model.text_length)
    tokens[:, 0] = SPECIAL["[CLS]"]
    tokens = np.where(places == lengths - 1, SPECIAL["[SEP]"], np.where(places < lengths, tokens, SPECIAL["[PAD]"]))
    return Pairs(tokens, np.arange(rows), regions.open_store(folder), SPECIAL | {"size": model.vocabulary})


def stream(pairs: Pairs, batch: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Masked batches in random order, as `pretrain.train` takes them."""
    settings = PretrainSettings(epochs=SETTINGS.epochs, batch=batch)
    return ahead(masked_on(device, pretrain.drawn_batches(pairs, BatchSettings(), settings, 0)))


def read_rows(pairs: Pairs, batch: int, repeats: int = 20) -> dict[str, float]:
    """Bytes a second at which `Pairs.draw` makes batches, and at which memory is copied that lies in one piece."""
    rng, settings, generator = np.random.default_rng(1), BatchSettings(), torch.Generator()
    lists = iter([rng.integers(len(pairs.rows), size=batch) for _ in range(repeats + 1)])
    drawn = fastest(lambda: pairs.draw(next(lists), settings, generator), repeats)
    whole = pairs.draw(np.arange(batch) % len(pairs.rows), settings, generator)["features"]
    copied = fastest(whole.numpy().copy, repeats)
    return {"draw_bytes_per_s": whole.nbytes / drawn, "copy_bytes_per_s": whole.nbytes / copied}


# ------------------------------------------------------------------------------------------------ steps


def fast_step(model: Capture, device: torch.device) -> Callable[[dict[str, Tensor]], object]:
    """The step of `pretrain.train`, without its schedule; the host waits for the losses once, as there."""
    pretrain.make_ready(model, device)
    optimiser = pretrain.make_optimiser(model, SETTINGS)
    return lambda batch: torch.stack(list(pretrain.step(model, batch, optimiser, SETTINGS).values())).tolist()


def plain_step(model: Capture, device: torch.device) -> Callable[[dict[str, Tensor]], object]:
    """The step of the peer."""
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), SETTINGS.learning_rate, foreach=False)

    def step(batch: dict[str, Tensor]) -> None:
        loss = plain_loss(model, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def plain_loss(model: Capture, batch: dict[str, Tensor]) -> Tensor:
    """The sum of the three losses, equal to ours, with everything decoded at every position."""
    out = model(*(batch[name] for name in pretrain.INPUTS), attention=True)
    words = model.predict_words(out["text_sequence"])  # (B, L, V)
    found, masked = model.predict_regions(out["region_sequence"][:, 1:]), batch["region_labels"][..., None]  # (B, R, ·)
    errors = (found - batch["region_targets"]) ** 2 * masked
    mlm = F.cross_entropy(words.flatten(0, 1), batch["mlm_labels"].flatten(), ignore_index=NOT_PREDICTED)
    return mlm + errors.sum() / (masked.sum() * found.shape[-1]).clamp(min=1) + contrastive_loss(out)


def run_steps(pairs: Pairs, batch: int, device: torch.device, step: Callable[[dict[str, Tensor]], object], count: int
              ) -> tuple[float, float]:
    """Seconds that a number of steps took, and how many of these were spent waiting for a batch."""
    batches, waited, started = stream(pairs, batch, device), 0.0, time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        masked = next(batches)
        waited += time.perf_counter() - asked
        step(masked)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, waited


def count_flop(model: Capture, pairs: Pairs, batch: int) -> float:
    """FLOP of a sample, forward and backward, counted on a small batch."""
    masked = pairs.masked_batch(np.arange(batch), BatchSettings(), torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        pretrain.step(model.train(), masked, torch.optim.SGD(model.parameters(), 0.0), SETTINGS)
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / batch


def peak(device: torch.device, dtype: torch.dtype, side: int, repeats: int = 10) -> float:
    """FLOP a second of a product of square matrices, the best of a few."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 2 * side ** 3 / fastest(product, repeats)


def fastest(work: Callable[[], object], repeats: int = 3) -> float:
    """The best of a few timings in seconds, after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
