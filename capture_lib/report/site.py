"""The report site: `index.html`, the whole story of a run on one page, and `results.html`, every figure.

Both open offline from disk, need no script, and escape every text. They are made of what the notebooks left:
`metrics/*.json`, the executed notebooks, and `previous/`, the figures before. Pictures come from the outputs of cells
with the tag `picture`; those of notebook 00 stand on top.
"""

import json
import re
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import jinja2
import nbformat
from nbformat import NotebookNode

from capture_lib.report import changes, results
from capture_lib.report.execute import read_timings
from capture_lib.report.figures import KNOW_NOTHING
from capture_lib.report.page import TEMPLATES, with_font
from capture_lib.report.pictures import pictures_of, write_pictures
from capture_lib.utils import InputError, write_atomically

LEADING = ("05_retrieval", "06_ablations", "07_claims", "08_beyond")  # what a reader of results.html looks for first
UNFOLDED = 16  # rows of a table that stand open in results.html
COLUMNS = tuple((definition, figure) for definition in results.DEFINITIONS
                for figure in ("mAP@10", "mAR@10", "Prec@10"))
ABOUT = {  # what a method is, for who has read nothing yet
    "capture/instance": "CAPTURE as the paper reads it, H_IMG × H_TXT; one query a product",
    "capture/image": "CAPTURE as the paper reads it; one query a photo",
    "capture-chosen/instance": "CAPTURE read by the vectors that val chose; one query a product",
    "capture-chosen/image": "CAPTURE read by the vectors that val chose; one query a photo",
    "image-only": "region features alone, no CAPTURE",
    "text-only": "character n-grams of the captions",
    "late-fusion": "similarities of image-only and text-only added",
    "two-stream/instance": "rival, as ViLBERT or LXMERT",
    "one-stream/instance": "rival, as UNITER",
    "dual-encoder/instance": "rival, as CLIP",
    "image-stream": "the dual encoder's image side alone",
    "text-stream": "the dual encoder's text side alone",
    "paper, product": "CAPTURE as the paper reads it, in notebook 08",
    "paper, chosen": "CAPTURE read by the vectors that val chose, in notebook 08",
    "paper, blend": "CAPTURE beside region features and n-grams, shares as val chose",
    "paper, beyond": "ours: CAPTURE beside raw vectors, matched, smoothed, its lists yielding",
    **{f"{name}, matched": "whitened by pairs that nobody labelled (ours)" for name in (
        "paper, product", "paper, chosen", "paper, blend", "late-fusion", "image-only", "text-only")},
    "popularity": "one list for every query, what train shows most",
    "chance": "a random order",
}
SIGNS = {"reproduced": "✓", "partly": "◐", "not reproduced": "×"}


def build(out: Path) -> Path:
    """Writes `out/index.html`, `out/results.html` and `out/pictures/`; returns the index.

    Raises:
        InputError: a file in `out/metrics/` or `out/previous/` is not JSON.
    """
    out = Path(out)
    metrics = read_metrics(out / "metrics")
    books = read_notebooks(out / "notebooks")
    order = sorted(metrics, key=lambda stem: (stem not in LEADING, stem))
    pages = {"results.html": {"pages": [results.results_of(stem, metrics[stem]) for stem in order], "most": UNFOLDED},
             "index.html": overview(out, metrics, books)}
    site = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    site.filters["percent"] = results.percent
    for name, content in pages.items():
        with write_atomically(out / name) as beside:
            beside.write_text(with_font(site.get_template(f"{name}.j2").render(content)), encoding="utf-8")
    return out / "index.html"


def summary(out: Path) -> list[str]:
    """The end of a run in five lines or fewer: the best method, CAPTURE, the claims, what differs, the report."""
    metrics, said = read_metrics(out / "metrics"), []
    methods = results.main_methods(metrics)
    told = {name: results.interval_of(method["standard"].get("mAP@10")) for name, method in methods.items()}
    best = next(iter(told), None)
    if best:
        chosen = [name for name in ("capture-chosen/instance", "chance") if told.get(name) and name != best]
        said.append(f"best of {len(told)} methods: {best}, mAP@10 {results.percent(told[best])}" + "".join(
            f"; {name} {results.percent(told[name])}" for name in chosen) + " (percent, standard definition)")
    if claims := claims_of(metrics):
        counts = results.count_verdicts(claims)
        said.append("claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    said.append(changes.said(changes.compare(read_metrics(out / changes.KEPT), metrics)))
    return [*said, f"report: {out / 'index.html'}"]


def read_metrics(folder: Path) -> dict[str, dict]:
    """Every `<stem>.json` of a folder, with an empty provenance where it has none."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file.stem] = {"provenance": {}, **json.loads(file.read_text(encoding="utf-8"))}
        except (ValueError, TypeError):
            raise InputError(f"{file}: not a JSON object; remove it and run its notebook again") from None
    return found


def read_notebooks(folder: Path) -> dict[str, NotebookNode]:
    """The executed notebooks by stem in order; one that failed in its last run by its stem with `.failed`."""
    found = {file.stem: file for file in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    return {stem: read_notebook(file) for stem, file in found.items() if f"{stem}.failed" not in found}


def read_notebook(file: Path) -> NotebookNode:
    """An executed notebook."""
    try:
        return nbformat.read(file, as_version=4)
    except ValueError:  # of nbformat too, where it is not JSON
        raise InputError(f"{file}: not a notebook; remove it and run it again") from None


def overview(out: Path, metrics: dict[str, dict], books: dict[str, NotebookNode]) -> dict:
    """What index.html shows. Pictures are written to `out/pictures/`."""
    notebooks = list(describe(out, books))
    executed = {stem: book for stem, book in books.items() if not stem.endswith(".failed")}
    shown = write_pictures({stem: pictures_of(book) for stem, book in executed.items()}, out)
    tour = [{**card, "pictures": row} for stem, cards in shown.items() if stem.startswith("00") for card in cards
            for row in card["rows"]]
    claims = claims_of(metrics)
    before = read_metrics(out / changes.KEPT)
    compared = changes.compare(before, metrics)
    return {
        "run": run_of(metrics, read_timings(out)), "notebooks": notebooks,
        "failed": [notebook for notebook in notebooks if notebook["failed"]],
        "tour": tour, "cards": [card for stem, cards in shown.items() if not stem.startswith("00") for card in cards],
        "columns": COLUMNS, "meaning": results.DEFINITIONS,
        "methods": list(describe_methods(results.main_methods(metrics))), "beside": results.beside(metrics),
        "claims": ledger(claims), "axis": axis(claims), "verdicts": results.count_verdicts(claims), "signs": SIGNS,
        "changes": compared, "changed": changes.said(compared), "figures": len(changes.all_figures(metrics)),
        "provenance": provenance(metrics),
        "ledger_page": next((notebook["href"] for notebook in notebooks if notebook["name"] == "07_claims"), ""),
    }


# ------------------------------------------------------------------------------------- the run, in a line


def run_of(metrics: dict[str, dict], timings: dict[str, dict]) -> dict[str, str]:
    """The run in a few words by what they are; several values where notebooks come from several runs."""
    all_of = [content["provenance"] for content in metrics.values() if content["provenance"]]

    def values(name: str) -> str:
        return ", ".join(dict.fromkeys(str(each[name]) for each in all_of if name in each))

    written = max((each["written"] for each in all_of if "written" in each), default="")
    machines = dict.fromkeys(machine(each["hardware"]) for each in all_of if each.get("hardware"))
    seconds = sum(timing["seconds"] for timing in timings.values())
    told = {"profile": values("profile"), "catalog": values("catalog"), "seed": values("seed"),
            "commit": values("commit"), "date": written.replace("T", " ").removesuffix("Z"),
            "notebooks took": results.duration(seconds) if seconds else "",
            "hardware": "; ".join(filter(None, machines))}
    return {name: text for name, text in told.items() if text}


def machine(hardware: dict) -> str:
    """A machine in a few words."""
    gpus = ", ".join(hardware.get("gpus", [])) or "no GPU"
    threads = f", {hardware['threads']} threads" if "threads" in hardware else ""
    return f"{hardware['cores']} cores {hardware.get('machine', '')}{threads}, {gpus}" if "cores" in hardware else ""


def provenance(metrics: dict[str, dict]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Everything that the figures were made with: by name the values, each with the notebooks that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for stem, content in metrics.items():
        for name, text in results.rows_of(content["provenance"]):
            if name != "stem":
                found.setdefault(name, {}).setdefault(text["value"] if text else "none", []).append(stem)
    return [(name, list(values.items())) for name, values in found.items()]


def describe(out: Path, books: dict[str, NotebookNode]) -> Iterator[dict]:
    """Name, title, goal, cost, page and error of each notebook that was executed, or failed in its last run."""
    timings = read_timings(out)
    for name, book in books.items():
        stem = name.removesuffix(".failed")
        title, goal = headline(book)
        seconds = timings.get(stem, {}).get("seconds")
        page = next(file for file in (f"{name}.html", f"{name}.ipynb") if (out / "notebooks" / file).is_file())
        yield {"name": stem, "title": title or stem, "goal": goal, "failed": name != stem, "error": error_of(book),
               "cost": results.duration(seconds) if seconds is not None and name == stem else "",
               "href": f"notebooks/{page}"}


def headline(notebook: NotebookNode) -> tuple[str, str]:
    """The first heading of a notebook, and the sentence after a bold **Goal** (either may be empty)."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = re.search(r"^#\s+(.+)$", text, re.MULTILINE)
    goal = re.search(r"\*\*Goal\W*\*\*\W*(.+?[.!?])(?=\s|$)", text, re.DOTALL)
    plain = (re.sub(r"[*`_$]", "", " ".join(found[1].split())) if found else "" for found in (title, goal))
    return tuple(plain)


def error_of(notebook: NotebookNode) -> str:
    """What a notebook stopped with; empty where nothing raised."""
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    return " ".join(f"{errors[-1].ename}: {errors[-1].evalue}".split())[:300] if errors else ""


# ---------------------------------------------------------------------------------- methods and the ledger


def describe_methods(methods: dict[str, dict]) -> Iterator[dict]:
    """A row for each method: its figures, and where they lie on a scale of 0 to 100 percent."""
    for name, method in methods.items():
        yield {"name": name, "about": ABOUT.get(name, ""), "blind": name in KNOW_NOTHING,
               "bars": {definition: place(method[definition].get("mAP@10"), 0, 100) for definition in method},
               "cells": [method[definition].get(figure) for definition, figure in COLUMNS]}


def place(figure: object, low: float, high: float) -> dict[str, float] | None:
    """Where a fraction and its interval lie on a scale of low to high points, as percent of its width."""
    found = results.interval_of(figure)
    if found is None or None in found.values():
        return None
    return {name: min(100.0, max(0.0, 100 * (100 * value - low) / (high - low))) for name, value in found.items()}


def claims_of(metrics: dict[str, dict]) -> list[dict]:
    """The rows of the ledger."""
    return [claim for content in metrics.values() for claim in content.get("claims", [])]


def axis(claims: list[dict]) -> int:
    """The points at which a scale around zero ends that all effects fit on: a multiple of five."""
    ends = [abs(claim[end]) for claim in claims for end in ("low", "high") if claim[end] is not None]
    return 5 * max(1, ceil(100 * max(ends, default=0) / 5))


def ledger(claims: list[dict]) -> list[dict]:
    """The rows of the ledger with a bar each, and how many of a claim's comparisons hold."""
    end, rows = axis(claims), []
    for claim in claims:
        measured = [one["outcome"] for one in claim.get("comparisons", []) if one["outcome"] != "not measured"]
        rows.append({**results.claim_row(claim), "bar": place(claim, -end, end),
                     "sign": SIGNS.get(claim["verdict"], "○"),
                     "held": f"{measured.count('holds')} of {len(measured)} hold" if len(measured) > 1
                     else "", "why": re.sub(r"\*+", "", claim.get("looked_into") or ""),
                     "unless": claim.get("rule", "").startswith("holds unless")})
    return rows
