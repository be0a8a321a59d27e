"""The report of a run: `index.html`, its story on one page, and all figures as `figures.csv` and `figures.html`.

The pages open offline from disk, need no script, and escape every text. They are made of what the notebooks left:
`metrics/*.json` and the executed notebooks, from which the first cell tagged `picture` is shown.
"""

import base64
import json
import re
from collections import Counter
from math import ceil
from operator import itemgetter
from pathlib import Path

from capture_lib.report.execute import duration, read_timings
from capture_lib.report.figures import KNOW_NOTHING, with_font
from capture_lib.report.table import DEFINITIONS, figures_table, interval_of, methods_of
from capture_lib.utils import InputError, write_atomically

# jinja2 and nbformat are imported where they are used

TEMPLATES = Path(__file__).with_name("templates")
COLUMNS = [(figure, definition) for definition in DEFINITIONS for figure in ("mAP@10", "mAR@10", "Prec@10")]
CAPTURE = "capture-chosen/instance"  # the method that the index and the summary name beside the best
LEFT_OUT = ("ablation/", " without ")  # methods that the index leaves to figures.html
SIGNS = {"reproduced": "✓", "partly": "◐", "not reproduced": "×"}
MAX_PICTURES = 4  # of a notebook
PHOTO = re.compile(r"data:image/(?:webp|png|jpeg);base64,[A-Za-z0-9+/=]+")


def build(out: Path) -> Path:
    """Write `index.html`, `figures.html` and `figures.csv` to a run's folder; return the index.

    Raises:
        InputError: a file in `out/metrics/` is not JSON, or an executed notebook none.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    out = Path(out)
    metrics = read_metrics(out / "metrics")
    notebooks = [describe(file, out) for file in executed(out / "notebooks")]
    figures = figures_table(metrics)
    site = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                       lstrip_blocks=True, undefined=StrictUndefined)
    site.filters["percent"] = percent
    pages = {"index.html": overview(out, metrics, notebooks), "figures.html": {"rows": figures.to_dict("records")}}
    for name, content in pages.items():
        page = site.get_template(f"{name}.j2").render(content)
        with write_atomically(out / name) as beside:
            beside.write_text(with_font(page), encoding="utf-8")
    with write_atomically(out / "figures.csv") as beside:
        figures.to_csv(beside, index=False, encoding="utf-8-sig")  # with the mark that spreadsheets look for
    return out / "index.html"


def summary(out: Path) -> list[str]:
    """Return the end of a run in a few lines: the best method, CAPTURE, the claims, the report."""
    metrics = read_metrics(out / "metrics")
    methods = main_methods(metrics)
    verdicts = Counter(claim["verdict"] for claim in claims_of(metrics))
    lines = []
    if methods:
        named = [methods[0], *(method for method in methods[1:] if method["name"] in (CAPTURE, "chance"))]
        figures = "; ".join(f"{method['name']} {percent(method['figures'][0])}" for method in named)
        lines.append(f"best of {len(methods)} methods by standard mAP@10, percent: {figures}")
    if verdicts:
        lines.append("claims: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    return [*lines, f"report: {out / 'index.html'}"]


def overview(out: Path, metrics: dict[str, dict], notebooks: list[dict]) -> dict:
    """Return what index.html shows."""
    claims = claims_of(metrics)
    ends = [abs(claim[end]) for claim in claims for end in ("low", "high") if claim[end] is not None]
    axis = 5 * max(1, ceil(100 * max(ends, default=0) / 5))  # points: all effects fit between ±axis
    for claim in claims:
        claim.update(effect=interval_of(claim), sign=SIGNS.get(claim["verdict"], "○"))
    origins = provenance(metrics)
    run = {name: ", ".join(origins.get(name, {})) for name in ("profile", "catalog", "seed", "commit")}
    run["date"] = max(origins.get("written", {}), default="")[:10]
    seconds = sum(timing.get("seconds", 0) for timing in read_timings(out).values())
    run["notebooks took"] = duration(seconds) if seconds else ""
    run = {name: text for name, text in run.items() if text}
    return {"run": run, "notebooks": notebooks, "methods": main_methods(metrics), "columns": COLUMNS,
            "definitions": DEFINITIONS, "capture": CAPTURE, "claims": claims, "axis": axis,
            "verdicts": Counter(claim["verdict"] for claim in claims), "provenance": origins}


def read_metrics(folder: Path) -> dict[str, dict]:
    """Return every `<stem>.json` of a folder, with an empty provenance where it has none."""
    metrics = {}
    for file in sorted(folder.glob("*.json")):
        try:
            metrics[file.stem] = {"provenance": {}, **json.loads(file.read_text(encoding="utf-8"))}
        except (ValueError, TypeError):
            raise InputError(f"{file}: not a JSON object; remove it and run its notebook again") from None
    return metrics


def executed(folder: Path) -> list[Path]:
    """Return the executed notebooks in order; of one that failed in its last run, what ran."""
    files = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    failed = {file.name for file in files if file.stem.endswith(".failed")}
    return [file for file in files if f"{file.stem}.failed.ipynb" not in failed]


def describe(file: Path, out: Path) -> dict:
    """Return what the index tells of an executed notebook: title, goal, cost, page, error and pictures."""
    import nbformat

    try:
        cells = nbformat.read(file, as_version=4).cells
    except ValueError:  # of nbformat too, where it is not JSON
        raise InputError(f"{file}: not a notebook; remove it and run it again") from None
    stem = file.stem.removesuffix(".failed")
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    title = re.search(r"^#\s+(.+)$", text, re.MULTILINE)
    goal = re.search(r"\*\*Goal\W*\*\*\W*(.+?[.!?])(?=\s|$)", text, re.DOTALL)
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    errors = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    seconds = read_timings(out).get(stem, {}).get("seconds")
    return {"name": stem, "failed": stem != file.stem, "error": " ".join(" ".join(errors[-1:]).split())[:300],
            "title": plain(title[1]) if title else stem, "goal": plain(goal[1]) if goal else "",
            "cost": duration(seconds) if seconds is not None else "",
            "href": f"notebooks/{file.stem}.html", "pictures": pictures(cells)}


def plain(markdown: str) -> str:
    """Return a line of Markdown without its marks."""
    return re.sub(r"[*`_$]", "", " ".join(markdown.split()))


def pictures(cells: list) -> list[str]:
    """Return the pictures of the first cell tagged `picture` that shows any, as data URIs."""
    for cell in cells:
        if "picture" not in cell.metadata.get("tags", []):
            continue
        found = []
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/svg+xml" in data:
                drawing = base64.b64encode(data["image/svg+xml"].encode()).decode()
                found.append(f"data:image/svg+xml;base64,{drawing}")
            else:
                found += PHOTO.findall(data.get("text/html", ""))
        if found:
            return found[:MAX_PICTURES]
    return []


def percent(figure: dict | None, signed: bool = False) -> str:
    """Return a fraction as `68.2 [65.9, 70.4]`, in percent or points; "not available" without a value."""
    if figure is None or None in figure.values():
        return "not available"
    form = "+.1f" if signed else ".1f"
    value, low, high = (f"{100 * figure[end]:{form}}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main_methods(metrics: dict[str, dict]) -> list[dict]:
    """Return baselines, CAPTURE and what goes beyond it, best first by standard mAP@10, with `COLUMNS`."""
    rows = []
    for name, method in methods_of(metrics).items():
        if not any(part in name for part in LEFT_OUT):
            cells = [interval_of(method[definition].get(figure)) for figure, definition in COLUMNS]
            best = cells[0]["value"] if cells[0] else None
            rows.append({"name": name, "figures": cells, "blind": name in KNOW_NOTHING, "order": -(best or 0)})
    return sorted(rows, key=itemgetter("order"))


def claims_of(metrics: dict[str, dict]) -> list[dict]:
    """Return the rows of the ledger."""
    return [dict(claim) for content in metrics.values() for claim in content.get("claims", [])]


def provenance(metrics: dict[str, dict]) -> dict[str, dict[str, list[str]]]:
    """Return everything that the figures were made with: by name the values, each with its notebooks."""
    origins: dict[str, dict[str, list[str]]] = {}
    for stem, content in metrics.items():
        for name, value in content["provenance"].items():
            if name != "stem":
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                origins.setdefault(name, {}).setdefault(text, []).append(stem)
    return origins
