"""One GPU, one command: does it learn what a CPU learns, how fast is it, how far does profile gpu come in some minutes?

    python tests/benchmarks/bench_gpu.py [--minutes 12] [--out reports/gpu.json] [--toy]

The answer is one JSON file, written anew after each part. What profile gpu has made by then is kept: the same command,
or `capture run --profile gpu`, goes on there.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import bench_pretraining as speed
import torch

from capture_lib import profiles
from capture_lib.experiments import plan
from capture_lib.experiments.run import open_run
from capture_lib.model.capture import Capture
from capture_lib.training import pretrain
from capture_lib.utils import REPORTS, InputError, explain, origin, read_object, write_json

# the product of dense matrices in bfloat16, FLOP a second, by a part of the device's name: from NVIDIA's data sheets
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12}
TOY_MODEL = replace(profiles.TINY_CAPTURE, vocabulary=400, region_features=64)  # its dropout is 0
TOY_SIZES = speed.Sizes(batch=4, rounds=1, rows=16, matrix=64, regions=4, model=TOY_MODEL)
TOY_STEPS = 40
TOY_RATE = 3e-4
TOY_GAIN = 3.0  # of the first weights: with BERT's small ones, masks make no difference in so few steps
# On a CPU in bfloat16, no loss is further than 0.13% from float32's, of two such trainings. A GPU rounds as often, in
# another order: four times as much is allowed. A text mask that is not obeyed makes 0.6 to 1.1%, half the rate 20%.
TOLERANCE = 0.005
CPU = torch.device("cpu")
PATIENCE = 30  # seconds for what runs to end by itself when the time is over


def agreement(device: torch.device) -> dict:
    """Compare the losses of a toy pretraining: compiled in bfloat16 on the device, eager in float32 on the CPU."""
    settings = replace(speed.SETTINGS, learning_rate=TOY_RATE)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Capture(TOY_MODEL))
        for weight in models[-1].parameters():
            weight.data *= TOY_GAIN if weight.ndim > 1 else 1.0
    ours = speed.fast_step(models[0], device, settings)
    peer = speed.fast_step(models[1], CPU, settings, speed.PlainObjective)
    with TemporaryDirectory() as folder:
        pairs = speed.random_pairs(Path(folder), 32, 8, TOY_MODEL)
        batches = speed.stream(pairs, 32, CPU, TOY_STEPS)
        losses = torch.tensor([(ours(speed.on_device(batch, device)), peer(batch)) for batch in batches])  # (S, 2, 3)
    difference = (losses[:, 0] / losses[:, 1] - 1).abs()
    return {"steps": TOY_STEPS, "agrees": bool(difference.max() < TOLERANCE), "tolerance": TOLERANCE,
            "max_difference": difference.max().item(), "max_difference_first_step": difference[0].max().item(),
            "losses": pretrain.TASKS, "first": losses[0, 0].tolist(), "last": losses[-1, 0].tolist(),
            "last_on_the_cpu": losses[-1, 1].tolist()}


def compiles(device: torch.device) -> bool:
    """Return whether models can be compiled; where they cannot, they run as they are, and a line says so."""
    try:
        torch.compile(torch.square)(torch.ones(8, device=device))
    except Exception as error:  # no compiler for C or for Triton, each with an error of its own
        print(f"not compiled: {str(error).strip().splitlines()[0]:.200}", flush=True)
        torch._dynamo.config.suppress_errors = True
        return False
    return True


def rate(device: torch.device, sizes: speed.Sizes) -> dict:
    """Measure pretraining at the released size, with as large a batch as there is memory for."""
    while True:
        try:
            measured = speed.measure(device, sizes)
            break
        except torch.OutOfMemoryError:
            sizes = replace(sizes, batch=sizes.batch // 2)
            print(f"not enough memory; batch {sizes.batch} is tried", flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    torch.cuda.empty_cache()  # for the process that comes next
    known = next((peak for part, peak in PEAKS.items() if part in name), None)
    flop = measured["samples_per_s"] * measured["flop_per_sample"]
    return measured | {"device": name, "flop_per_s": flop, "known_peak_flop_per_s": known or "unknown",
                       "share_of_known_peak": flop / known if known else "unknown"}


def make(profile: str, file: Path) -> None:
    """Do the tasks of a run one after the other; note in a file what is done, in seconds, and what is under way."""
    os.setsid()  # a group of processes, which can be ended together
    signal.signal(signal.SIGINT, signal.default_int_handler)
    note: dict = {"tasks": "unknown", "seconds": {}}

    @contextmanager
    def task(name: str) -> Iterator[None]:
        write_json(file, note | {"under_way": name})
        started = time.perf_counter()
        yield
        note["seconds"][name] = round(time.perf_counter() - started, 1)

    try:
        with task("world"):
            run = open_run(profile)
        with task("plan"):
            tasks = plan.tasks_of(run)
        note["tasks"] = 2 + len(tasks)
        # the paper's line first, then what captions teach, then further trainings
        for name in sorted(tasks, key=lambda name: (", " in name, plan.CAPTIONS in name)):
            with task(name):
                tasks[name].work()
        write_json(file, note)
    except (Exception, KeyboardInterrupt) as error:
        line, code = explain(error)
        print(f"{profile}: {line}", file=sys.stderr, flush=True)
        sys.exit(code)


def within(seconds: float, work: Callable[[Path], None]) -> dict:
    """Return what `work(file)` has noted in its file, done by a process that is stopped when the time is over."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "note.json"
        child = get_context("spawn").Process(target=work, args=(file,))
        child.start()
        try:
            child.join(max(seconds, 0))
        finally:  # after an interrupt, too
            stopped = child.is_alive()
            if stopped:
                os.kill(child.pid, signal.SIGINT)
                child.join(PATIENCE)
            if child.is_alive():
                os.killpg(child.pid, signal.SIGKILL)
                child.join()
        return read_object(file) | {"stopped": stopped, "failed": not stopped and child.exitcode != 0}


def main(arguments: list[str] | None = None) -> int:
    """Write the answer; return 0 when all is well, 1 where a part failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser("bench_gpu.py", description="What one GPU does in some minutes.")
    parser.add_argument("--minutes", type=float, default=12, help="for all of it; profile gpu has what is left of them")
    parser.add_argument("--out", type=Path, default=REPORTS / "gpu.json", help="default: reports/gpu.json")
    parser.add_argument("--toy", action="store_true", help="the same in miniature, on the CPU, with profile smoke")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    answer: dict = {"toy": options.toy, "minutes": options.minutes, **origin()}
    try:
        if not options.toy and not torch.cuda.is_available():
            raise InputError("no CUDA device was found; --toy does all of it in miniature, on the CPU")
        device = CPU if options.toy else torch.device("cuda")
        answer["compiled"] = device.type == "cuda" and compiles(device)
        sizes, profile = (TOY_SIZES, "smoke") if options.toy else (speed.SIZES["cuda"], "gpu")
        end = started + 60 * options.minutes
        parts = {"agreement": lambda: agreement(device), "speed": lambda: rate(device, sizes),
                 "profile": lambda: within(end - time.perf_counter(), partial(make, profile))}
        for name, work in parts.items():
            try:
                answer[name] = work()
            except Exception as error:  # a fault in one part does not cost the others
                answer[name] = {"failed": explain(error)[0]}
            print(name, json.dumps(answer[name], indent=1), flush=True)
            write_json(options.out, answer | {"wall_time_s": round(time.perf_counter() - started, 1)})
    except (Exception, KeyboardInterrupt) as error:
        line, code = explain(error)
        print(f"{parser.prog}: {line}", file=sys.stderr)
        return code
    print(f"{options.out}: written")
    failed = [name for name in parts if answer[name].get("failed")]
    return 1 if failed or not answer["agreement"]["agrees"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
