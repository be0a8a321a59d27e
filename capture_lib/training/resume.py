"""The states of a training that may be killed at any moment; accelerate writes and reads them.

A state is a folder `state-<steps>` beside the model to come. It is written under a hidden name and
renamed when it is whole.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from capture_lib import utils
from capture_lib.utils import InputError

MAX_STATES = 2
PROGRESS = "progress.json"  # which training this is, its losses so far, the sizes of the state's files


def kept_states(folder: Path) -> list[Path]:
    """Return the folders of the states, oldest first."""
    return sorted(folder.glob("state-*"))


def describe_last(folder: Path) -> str:
    """Return what a message says of the last state."""
    states = kept_states(folder)
    return f"kept: {states[-1]}" if states else "no state was kept yet"


@contextmanager
def explain_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Raise `InputError` with one line where `what` cannot be written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: {what} cannot be written ({reason}); make room and start again "
                         f"({describe_last(folder)})") from None


def keep_state(folder: Path, training: str, history: list[dict[str, float]]) -> None:
    """Keep what accelerate has prepared, and of the older states the last."""
    steps = len(history)
    hidden = folder / f".state-{steps:08d}"
    with explain_full_disk(folder, f"the state after step {steps}"):
        utils.accelerator().save_state(hidden)
        utils.wait_for_everyone()
        if not utils.is_main_process():
            return
        sizes = {file.name: file.stat().st_size for file in hidden.iterdir()}
        progress = {"training": training, "history": history, "sizes": sizes}
        (hidden / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
    # now it is whole
    hidden.rename(folder / f"state-{steps:08d}")
    for old in kept_states(folder)[:-MAX_STATES]:
        utils.remove(old)


def read_progress(state: Path, training: str) -> dict:
    """Return the progress of a state; raise where it is not whole or of another training."""
    progress = json.loads((state / PROGRESS).read_text(encoding="utf-8"))
    if progress["training"] != training:
        raise ValueError("it is of another training")
    for name, size in progress["sizes"].items():
        if (state / name).stat().st_size != size:
            raise ValueError(f"{name} is not whole")
    return progress


def load_last_state(folder: Path, training: str) -> list[dict[str, float]]:
    """Load the last state of this training into what accelerate has prepared; return the losses so far.

    States that are of no use are removed, with a line each. Without any, nothing changes.
    """
    if utils.is_main_process():
        for hidden in folder.glob(".state-*"):
            utils.remove(hidden)
        for state in kept_states(folder):
            try:
                read_progress(state, training)
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"warning: {state}: skipped, no whole state of this training ({error})", file=sys.stderr)
                utils.remove(state)
    utils.wait_for_everyone()
    states = kept_states(folder)
    if not states:
        return []
    try:
        utils.accelerator().load_state(states[-1])
    except Exception as error:  # a broken file raises whatever its bytes lead to
        raise InputError(f"{states[-1]}: cannot be read ({type(error).__name__}); remove it and start again") from None
    return read_progress(states[-1], training)["history"]
