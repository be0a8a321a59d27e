"""The one error for whatever a user hands in that is wrong."""

ERRORS_SHOWN = 20


class InputError(ValueError):
    """What a user handed in is wrong: one line a fault, with file, line or field, and what to do."""


def raise_faults(faults: list[str]) -> None:
    """Raises one InputError with a line for each fault (the first 20 of them); does nothing without faults."""
    if len(faults) > ERRORS_SHOWN:
        faults = [*faults[:ERRORS_SHOWN], f"… and {len(faults) - ERRORS_SHOWN:,} more faults of this kind"]
    if faults:
        raise InputError("\n".join(faults))
