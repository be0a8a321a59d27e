"""One process or many: `accelerate launch` starts many, each with a number, and they do one run together.

Without it there is one process, and nothing here does anything. Processes that share a folder write to different
files or different rows of one; the first alone does what is to be done once.
"""

import os
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

LONGEST_WAIT = timedelta(days=7)  # the others wait while the first trains a detector


def count() -> int:
    """How many processes do this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def first() -> bool:
    """True in the process that writes and does what is to be done once."""
    return number() == 0


@cache
def accelerator():  # noqa: ANN201 (accelerate is imported only where there are many)
    """Accelerate's view of the many processes, on the GPU of each or on the CPU."""
    from accelerate import Accelerator, InitProcessGroupKwargs, PartialState

    PartialState._reset_state()  # of the one process that this one may be a fork of, as in a notebook
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no",
                       kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)])


def wait() -> None:
    """Returns when all processes have come here."""
    if count() > 1:
        accelerator().wait_for_everyone()


def leave() -> None:
    """Ends the processes' connection."""
    if count() > 1:
        accelerator().end_training()


def part(rows: int) -> slice:
    """The rows of a batch that are this process's."""
    return slice(rows * number() // count(), rows * (number() + 1) // count())


def averaging(model: nn.Module, unused: bool = False) -> nn.Module:
    """The model, so wrapped that gradients are averaged over the processes; `unused`: some weights may get none."""
    from accelerate import DistributedDataParallelKwargs

    accelerator().ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
    return accelerator().prepare_model(model)


def mean(values: Tensor) -> Tensor:
    """The mean over the processes, without gradient."""
    return values if count() == 1 else accelerator().reduce(values, "mean")


def together(rows: Tensor) -> Tensor:
    """The rows (n, …) of all processes, in their order: (sum of n, …); gradients flow back to each process's rows."""
    if count() == 1:
        return rows
    sizes = accelerator().gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    exact = rows.float() if rows.is_floating_point() else rows  # gradients of many processes are summed
    return Together.apply(exact, sum(sizes[:number()]), sum(sizes))


class Together(torch.autograd.Function):
    """Rows laid into one tensor by a sum, which takes parts of any size.

    Each process computes a loss of all rows. Backward sums what the processes' losses say of a row; averaged over the
    processes, as gradients of weights are, that is the gradient of the mean of their losses.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, start: int, total: int) -> Tensor:
        ctx.mine = slice(start, start + len(rows))
        whole = rows.new_zeros(total, *rows.shape[1:])
        whole[ctx.mine] = rows
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        whole = gradient.contiguous().clone()
        dist.all_reduce(whole)
        return whole[ctx.mine], None, None
