"""The state of a training that may be killed at any moment: kept every so often, found again by the next start."""

import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from capture_lib.utils import InputError, write_atomically

KEPT = 2  # the last one may turn out to be broken


def kept_states(folder: Path) -> list[Path]:
    """The files of the kept states, oldest first."""
    return sorted(folder.glob("state-*.pt"))


def last_kept(folder: Path) -> str:
    """What a message says of what is kept."""
    states = kept_states(folder)
    return f"kept: {states[-1]}" if states else "no state was kept yet"


def keep(folder: Path, step: int, state: dict) -> None:
    """Keeps the state after `step` steps, and of the older ones the last; on disk when this returns.

    Raises:
        InputError: it cannot be written, as on a full disk; what was kept before is still there.
    """
    content = io.BytesIO()  # torch's own writing to a file hides what the system says of a full disk
    torch.save(state, content)
    try:
        with write_atomically(folder / f"state-{step:08d}.pt") as beside, beside.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        sync(folder)
    except OSError as error:
        raise InputError(f"{folder}: the state after step {step} needs {content.tell() / 1e6:,.1f} MB and cannot be "
                         f"written ({error.strerror}); make room and start again ({last_kept(folder)})") from None
    mine = folder / f"state-{step:08d}.pt"
    so_far = [file for file in kept_states(folder) if file <= mine]
    for old in set(kept_states(folder)) - set(so_far[-KEPT:]):  # a later one was skipped, and is of no use
        old.unlink()


def sync(folder: Path) -> None:
    """Brings the names in a folder to disk, so that a rename survives a power cut."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def last_state(folder: Path, check: Callable[[dict], None]) -> dict | None:
    """The last whole state that was kept and that `check` lets pass; a line for each that is skipped."""
    for file in reversed(kept_states(folder)):
        try:
            with zipfile.ZipFile(file) as archive:  # torch compares no checksums
                if archive.testzip():
                    raise ValueError("a checksum is wrong")
            state = torch.load(file, "cpu", weights_only=True)
            check(state)
            return state
        except Exception as error:  # a broken file raises whatever its bytes lead to
            reason = str(error).strip().splitlines() or [type(error).__name__]
            print(f"warning: {file}: skipped, no whole state of this training ({reason[0][:80]})", file=sys.stderr)
    return None


def forget(folder: Path) -> None:
    """Removes the kept states and what a kill left half written."""
    for file in [*kept_states(folder), *folder.glob(".state-*.part")]:
        file.unlink()
