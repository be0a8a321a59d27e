"""Folders `state-<steps>` beside the model to come, for a training that may be stopped at any moment."""

import json
from pathlib import Path

from capture_lib import utils

HIDDEN = ".state"  # until it is whole


def keep_state(folder: Path, history: list[dict[str, float]]) -> None:
    """Keep the state of what accelerate has prepared, and the losses so far."""
    utils.accelerator().save_state(folder / HIDDEN)
    utils.wait_for_everyone()  # each process writes files of its own
    if utils.is_main_process():
        utils.write_json(folder / HIDDEN / "history.json", history)
        (folder / HIDDEN).rename(folder / f"state-{len(history):08d}")
        remove_states(folder, kept=2)  # the last may turn out to be broken


def remove_states(folder: Path, kept: int) -> None:
    """Remove all states but the last; hidden first, so that no part is taken for a state."""
    states = sorted(folder.glob("state-*"))
    for state in states[:len(states) - kept]:
        utils.remove(state.rename(folder / HIDDEN))


def load_last_state(folder: Path) -> list[dict[str, float]]:
    """Load the last state into what accelerate has prepared; return the losses so far."""
    states = sorted(folder.glob("state-*"))
    utils.wait_for_everyone()
    if utils.is_main_process():
        utils.remove(folder / HIDDEN)
    for state in reversed(states):
        try:
            utils.accelerator().load_state(state)
            return json.loads((state / "history.json").read_text(encoding="utf-8"))
        except Exception as error:  # whatever broken bytes lead to
            utils.say(f"warning: {state}: removed, cannot be read ({type(error).__name__})")
            if utils.is_main_process():
                utils.remove(state)
    if states:  # the model may be half loaded
        raise utils.InputError(f"{folder}: no state could be read; start again")
    return []
