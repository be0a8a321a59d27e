"""States of a training that may be killed at any moment: accelerate writes and reads them.

A state is a folder `state-<training>-<steps>` beside the model to come; it has a hidden name until it is whole.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from capture_lib import utils
from capture_lib.utils import InputError

MAX_STATES = 2  # the last one may turn out to be broken
HISTORY_FILE = "history.json"


def name_training(*parts: object) -> str:
    """Return a name for what a training depends on: another training's states have another one."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def kept_states(folder: Path, training: str = "*") -> list[Path]:
    """Return the folders of the states, oldest first."""
    return sorted(folder.glob(f"state-{training}-*"))


def describe_last(folder: Path) -> str:
    """Return what a message says of the last state."""
    states = kept_states(folder)
    return f"kept: {states[-1]}" if states else "no state was kept yet"


def remove_state(state: Path) -> None:
    """Remove a state; where this is interrupted, no part of it is taken for one."""
    utils.remove(state.rename(state.with_name(f".{state.name}")))


@contextmanager
def explain_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Raise `InputError` with one line where `what` cannot be written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder}: {what} cannot be written ({reason}); "
            f"make room and start again ({describe_last(folder)})") from None


def keep_state(folder: Path, training: str, history: list[dict[str, float]]) -> None:
    """Keep the state of what accelerate has prepared, and of the older ones the last."""
    state = folder / f"state-{training}-{len(history):08d}"
    hidden = folder / f".{state.name}"
    with explain_full_disk(folder, f"the state after step {len(history)}"):
        # each process writes its own files
        utils.accelerator().save_state(hidden)
        utils.wait_for_everyone()
        if utils.is_main_process():
            losses = json.dumps(history)
            (hidden / HISTORY_FILE).write_text(losses, encoding="utf-8")
            hidden.rename(state)
    if utils.is_main_process():
        for old in kept_states(folder)[:-MAX_STATES]:
            remove_state(old)


def load_last_state(folder: Path, training: str) -> list[dict[str, float]]:
    """Load the last state into what accelerate has prepared; return the losses so far, none without a state.

    What was half written, and the states of other trainings, are removed. Raises `InputError` where none can be read.
    """
    states = kept_states(folder, training)
    utils.wait_for_everyone()
    if utils.is_main_process():
        for useless in {*folder.glob(".state-*"), *kept_states(folder)} - {*states}:
            utils.remove(useless)
    for state in reversed(states):
        try:
            losses = (state / HISTORY_FILE).read_text(encoding="utf-8")
            utils.accelerator().load_state(state)
            return json.loads(losses)
        except Exception as error:  # a broken file raises whatever its bytes lead to
            if utils.is_main_process():
                reason = type(error).__name__
                print(f"warning: {state}: removed, cannot be read ({reason})", file=sys.stderr)
                remove_state(state)
    if states:  # the model may be half loaded
        raise InputError(f"{folder}: no state of the training could be read; start again")
    return []
