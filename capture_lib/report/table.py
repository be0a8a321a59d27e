"""All figures of a run as one tidy table: what every `metrics/*.json` holds, a row for each number."""

from collections.abc import Iterator

import pandas as pd

COLUMNS = ["notebook", "figure", "method", "definition", "value", "low", "high", "unit"]
DEFINITIONS = {
    "standard": "average precision over the hits that were possible, min(N, positives)",
    "released": "as the authors' script computes: average precision over the hits that were found",
}
MIDDLES = ("value", "mean", "effect")  # what the middle of an interval may be called


def interval_of(value: object) -> dict | None:
    """Return a figure with its 95% interval as `{"value", "low", "high"}`; None of all else."""
    if isinstance(value, dict) and {"low", "high"} <= value.keys():
        for name in MIDDLES:
            if name in value:
                return {"value": value[name], "low": value["low"], "high": value["high"]}
    return None


def methods_of(metrics: dict[str, dict]) -> dict[str, dict]:
    """Return every method with its figures, `{method: {definition: {figure: …}}}`; a later notebook's count."""
    methods: dict[str, dict] = {}
    for stem in sorted(metrics):
        methods |= metrics[stem].get("methods") or {}
    return methods


def figures_table(metrics: dict[str, dict]) -> pd.DataFrame:
    """Return all figures as a table of `COLUMNS`; fractions of one stay so, texts and nulls are left out."""
    methods = methods_of(metrics)
    rows = []
    for stem, content in metrics.items():
        figures = {name: value for name, value in content.items() if name != "provenance"}
        for path, figure in numbers(figures, ()):
            names = [part for part in path if part not in methods and part not in DEFINITIONS]
            rows.append({
                "notebook": stem,
                "figure": " · ".join(names).removeprefix("methods · "),
                "method": next((part for part in path if part in methods), ""),
                "definition": next((part for part in path if part in DEFINITIONS), ""),
                **figure,
                "unit": unit_of(path[-1], figure["value"]),
            })
    return pd.DataFrame(rows, columns=COLUMNS).astype({"low": float, "high": float})


def numbers(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Yield each number below a value with its path, as `{"value", "low", "high"}`, in order.

    Claims and comparisons of a list go by their name, so that a path stays when one is added before it.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield path, {"value": value, "low": None, "high": None}
    elif isinstance(value, list):
        for place, item in enumerate(value, start=1):
            name = item.get("claim") or item.get("compared") if isinstance(item, dict) else None
            yield from numbers(item, (*path, name or str(place)))
    elif isinstance(value, dict):
        figure = interval_of(value)
        if figure and figure["value"] is not None:
            yield path, figure
        for name, item in value.items():
            if figure is None or name not in (*MIDDLES, "low", "high"):
                yield from numbers(item, (*path, name))


def unit_of(name: str, value: float) -> str:
    """Return what a figure counts, as far as its name or its kind tells: s, count, fraction."""
    if name.endswith("_s") or "seconds" in name:
        return "s"
    return "count" if isinstance(value, int) else "fraction" if abs(value) <= 1 else ""
