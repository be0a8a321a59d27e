"""What a run changed: each notebook's figures against those of its run before, and what both were made with."""

import json
import re
import shutil
from pathlib import Path

from capture_lib.report.results import interval_of, leaves, main_figures, percent, shown
from capture_lib.utils import write_atomically

KEPT = "previous"  # the folder below a report with what metrics/ held before
TIMED = re.compile(r"second|wall_time|written")  # differs from run to run
WORDS = " · looked_into"  # of a claim: other figures, in words


def keep(out: Path, stem: str) -> None:
    """Keeps a notebook's figures for comparison, before it is executed anew.

    After a try that failed they stay: what stood before that try is kept already. A damaged file is not kept.
    """
    file = out / "metrics" / f"{stem}.json"
    if is_object(file) and not (out / "notebooks" / f"{stem}.failed.ipynb").is_file():
        with write_atomically(out / KEPT / file.name) as beside:
            shutil.copyfile(file, beside)


def is_object(file: Path) -> bool:
    """True where a file is there and holds a JSON object."""
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (FileNotFoundError, ValueError):
        return False


def compare(before: dict[str, dict], now: dict[str, dict]) -> dict:
    """What differs between two sets of metrics by stem; notebooks that only one has are not compared.

    Returns:
        stems: the notebooks compared; since: when the latest of the old figures was written; compared: the number of
        figures; figures: those that differ, as of `difference`; outside: how many of these left their interval;
        main: all main figures, in percent; verdicts: (claim, then, now); origin: (name, then, now, stems) of
        commit, versions, hardware, seed and parameters; found only in one of the two: new, gone.
    """
    stems = sorted(before.keys() & now.keys())
    then, here = ({stem: metrics[stem] for stem in stems} for metrics in (before, now))
    old, new = (all_figures(metrics) for metrics in (then, here))
    both = [name for name in new if name in old]
    figures = [difference(name, old[name], new[name]) for name in both if old[name] != new[name]]
    old_main, new_main = main_figures(then), main_figures(here)
    return {
        "stems": stems, "compared": len(both), "figures": figures,
        "since": max((metrics["provenance"].get("written", "") for metrics in then.values()), default=""),
        "outside": sum(row["outside"] is True for row in figures),
        "main": [difference(name, old_main[name], new_main[name], 100) for name in new_main if name in old_main],
        "verdicts": [(claim, verdicts(then)[claim], verdict) for claim, verdict in verdicts(here).items()
                     if verdicts(then).get(claim, verdict) != verdict],
        "origin": origins(then, here), "new": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
    }


def all_figures(metrics: dict[str, dict]) -> dict[str, object]:
    """Every figure of some metrics by stem and path, without times and provenance."""
    return {f"{stem} · {path}": value for stem, content in metrics.items()
            for path, value in leaves({name: part for name, part in content.items() if name != "provenance"})
            if not TIMED.search(path) and not path.endswith(WORDS)}


def verdicts(metrics: dict[str, dict]) -> dict[str, str]:
    """The verdict on each claim."""
    return {claim["claim"]: claim["verdict"] for content in metrics.values() for claim in content.get("claims", [])}


def difference(name: str, then: object, now: object, scale: float = 1) -> dict:
    """One figure then and now, as text; `outside` tells whether it left its interval of then, None without one."""
    form = ".1f" if scale == 100 else ".4g"
    (low, old, high), new = bounds(then), bounds(now)[1]
    told = isinstance(old, int | float) and isinstance(new, int | float)
    left = low is not None and high is not None and told
    return {"name": name, "then": line(then, scale, form), "now": line(now, scale, form), "equal": then == now,
            "change": f"{scale * (new - old):+{form}}" if told and new != old else "",
            "outside": not low <= new <= high if left else None}


def bounds(value: object) -> tuple[object, object, object]:
    """Low, value and high of a figure; no bounds where it has no interval."""
    figure = interval_of(value)
    return (figure["low"], figure["value"], figure["high"]) if figure else (None, value, None)


def line(value: object, scale: float, form: str) -> str:
    """A figure or a text in one line."""
    if scale == 100:
        return percent(value)
    text = shown(value, scale, form)
    return f"{text['value']} {text['interval']}".strip() if text else "not available"


def origins(before: dict[str, dict], now: dict[str, dict]) -> list[tuple[str, str, str, list[str]]]:
    """What figures were made with, where it changed: name, then, now, and the notebooks."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for stem in now:
        then, here = (dict(leaves(metrics[stem]["provenance"])) for metrics in (before, now))
        for name in dict.fromkeys([*then, *here]):
            if then.get(name) != here.get(name) and not TIMED.search(name):
                told = (line(values[name], 1, ".6g") if name in values else "none" for values in (then, here))
                found.setdefault((name, *told), []).append(stem)
    return [(*key, stems) for key, stems in sorted(found.items(), key=lambda item: item[0][0].startswith("parameters"))]


def said(changes: dict) -> str:
    """What differs, in one line."""
    if not changes["stems"]:
        return "no earlier run in this folder to compare with"
    since = f"the previous run ({changes['since'].replace('T', ' ').removesuffix('Z')} UTC)"
    origin = "; ".join(f"{name} {then} → {now}" for name, then, now, _ in changes["origin"][:2])
    more = f" and {len(changes['origin']) - 2} more" if len(changes["origin"]) > 2 else ""
    made = f"; made with {origin}{more}" if origin else ""
    if not changes["figures"] and not changes["new"] and not changes["gone"]:
        return f"nothing differs from {since}: {changes['compared']:,} figures are equal{made}"
    added = "".join(f", {len(changes[kind]):,} are {kind}" for kind in ("new", "gone") if changes[kind])
    return (f"{len(changes['figures']):,} of {changes['compared']:,} figures differ from {since}, "
            f"{changes['outside']:,} outside their interval{added}{made}")
