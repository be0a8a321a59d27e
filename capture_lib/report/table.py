"""All figures of a run as one tidy table: what every `metrics/*.json` holds, a row for each number."""

from collections.abc import Iterator

import pandas as pd

COLUMNS = ["notebook", "figure", "method", "definition", "value", "low", "high", "unit"]


def figures_table(metrics: dict[str, dict]) -> pd.DataFrame:
    """Return the numbers of `{notebook: metrics}` as a table of `COLUMNS`; texts and nulls are left out."""
    rows = []
    for notebook, content in metrics.items():
        for path, value, low, high in numbers({**content, "provenance": None}, ()):
            unit = "s" if path[-1].endswith("_s") else "count" if isinstance(value, int) else "fraction"
            place = ("", "")
            if path[0] == "methods" and len(path) > 3:
                place, path = path[1:3], path[3:]
            rows.append([notebook, " · ".join(path), *place, value, low, high, unit])
    return pd.DataFrame(rows, columns=COLUMNS)


def numbers(value: object, path: tuple[str, ...]) -> Iterator[tuple]:
    """Yield each number below a value: its path, itself, and the ends of its 95% interval or NaN."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value, start=1)}
    if isinstance(value, dict):
        middle = next((name for name in ("value", "mean", "effect") if name in value and "low" in value), "")
        if middle and value[middle] is not None:
            yield path, value[middle], value["low"], value["high"]
        for name, item in value.items():
            if not middle or name not in (middle, "low", "high"):
                yield from numbers(item, (*path, name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value, float("nan"), float("nan")
