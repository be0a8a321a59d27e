"""The report of a run: `index.html`, the run on one page, and all figures as `figures.csv` and `figures.html`.

They open offline from disk and escape every text; the index needs no script, the figures one to be searched and sorted.
"""

import base64
import re
from collections import Counter
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from capture_lib.experiments.search import NAMES
from capture_lib.report import NUMBERED
from capture_lib.report.figures import KNOW_NOTHING, percent, with_font
from capture_lib.report.schedule import duration
from capture_lib.report.table import figures_table
from capture_lib.utils import InputError, read_object, write_atomically

CAPTURE = "capture-chosen/instance"  # the method that the index and the summary name beside the best
BASELINES = ("image-only", "text-only", "late-fusion")
GROUPS = {  # of methods, by how their names begin; all others are ours
    "Know nothing of the query": KNOW_NOTHING,
    "Baselines without CAPTURE": BASELINES,
    "[ours] An image-text model that others pretrained": ("foundation-",),
    "[paper] CAPTURE": ("capture/", "capture-chosen/", "capture-raw-product/"),
    "[paper] Other models of the same blocks, pairs and steps": (
        "one-stream", "two-stream", "dual-encoder", "image-stream", "text-stream")}
OURS = "[ours] CAPTURE beside raw vectors; captions that teach the regions"
WORDS = NAMES | {  # the parts of a method's name, for readers
    "instance": ", per product", "image": ", per photo", "captions": "captions taught the regions",
    "augmented gallery": "gallery vectors averaged with neighbours"}
MAX_PICTURES = 4  # of a notebook
PHOTO = re.compile(r"data:image/(?:webp|png|jpeg);base64,[A-Za-z0-9+/=]+")


def environment(folder: Path) -> Environment:
    """Return the templates of a folder; every text is escaped."""
    return Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                       undefined=StrictUndefined)


def build(out: Path) -> Path:
    """Write the report to a run's folder, from `metrics/*.json` and executed notebooks; return `index.html`."""
    metrics = read_metrics(out)
    latest = {}  # of a notebook that failed in its last run, what ran
    for file in sorted((out / "notebooks").glob(NUMBERED), key=lambda file: file.stem):
        latest[file.stem.removesuffix(".failed")] = file
    figures = figures_table(metrics)
    notebooks = [describe(file, stem) for stem, file in latest.items()]
    methods = methods_of(metrics)
    content = {
        "metrics": metrics, "methods": methods, "groups": grouped(methods), "rows": figures.to_dict("records"),
        "notebooks": notebooks, "sources": {notebook["name"]: notebook["recorded"] for notebook in notebooks},
        "made_in": {name: stem for stem, found in metrics.items() for name in found["methods"]},
        "best_baseline": next((name for name in methods if name in BASELINES), ""),
        "timings": read_object(out / "timings.json"), "capture": CAPTURE, "blind": KNOW_NOTHING,
    }
    site = environment(Path(__file__).with_name("templates"))
    site.filters |= {"duration": duration, "in_words": in_words}
    for name in ("index.html", "figures.html"):
        page = site.get_template(f"{name}.j2").render(content)
        with write_atomically(out / name) as beside:
            beside.write_text(with_font(page), encoding="utf-8")
    with write_atomically(out / "figures.csv") as beside:
        figures.to_csv(beside, index=False, encoding="utf-8-sig")  # with the mark that spreadsheets look for
    return out / "index.html"


def summary(out: Path) -> list[str]:
    """Return the end of a run in a few lines: the best method, CAPTURE, the claims, the report."""
    metrics = read_metrics(out)
    methods = methods_of(metrics)
    lines = []
    if methods:
        named = [name for name in methods if name in (next(iter(methods)), CAPTURE, "chance")]
        figures = "; ".join(f"{name} {percent(methods[name]['standard']['mAP@10'])}" for name in named)
        boxes = methods.get(CAPTURE, {}).get("instance")
        by_box = f"; by box {CAPTURE} {percent(boxes['mAP@10'])}" if boxes else ""
        lines.append(f"standard mAP@10, best of {len(methods)} methods first: {figures}{by_box}")
    verdicts = Counter(claim["verdict"] for content in metrics.values() for claim in content["claims"])
    if verdicts:
        lines.append("claims: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    return [*lines, f"report: {out / 'index.html'}"]


def read_metrics(out: Path) -> dict[str, dict]:
    """Return what each notebook recorded, by its name."""
    files = sorted((out / "metrics").glob("*.json"))
    return {file.stem: {"provenance": {}, "methods": {}, "claims": []} | read_object(file) for file in files}


def methods_of(metrics: dict[str, dict]) -> dict[str, dict]:
    """Return the methods but for ablations, best first: `{method: {definition: {figure: …}}}`, the latest figures."""
    methods = {}
    for content in metrics.values():
        for name, figures in content["methods"].items():
            if not name.startswith("ablation/") and " without " not in name:
                methods[name] = figures
    return dict(sorted(methods.items(), key=lambda pair: -pair[1]["standard"]["mAP@10"]["value"]))


def grouped(methods: dict[str, dict]) -> dict[str, dict]:
    """Return methods by their groups, in the order of these."""
    groups = {title: {} for title in (*GROUPS, OURS)}
    for name, figures in methods.items():
        titles = [title for title, begins in GROUPS.items() if name.startswith(begins) and " + " not in name]
        groups[titles[0] if titles else OURS][name] = figures
    return groups


def in_words(method: str) -> str:
    """Return the name of a method for readers."""
    name, *added = method.split(" + ")
    first, _, level = name.partition("/")
    words = WORDS.get(first, first) + WORDS.get(level, level)
    words = ", ".join([words, *(WORDS.get(part, part) for part in added)])
    return words[:1].upper() + words[1:]


def describe(file: Path, stem: str) -> dict:
    """Return what the index says of an executed notebook; "recorded" leads to the cell that recorded its figures."""
    import nbformat  # slow, and the explorer needs the templates alone
    try:
        cells = nbformat.read(file, as_version=4).cells
    except ValueError:  # of nbformat too, where it is not JSON
        raise InputError(f"{file}: not a notebook; remove it and run it again") from None
    first = next((cell.source for cell in cells if cell.source.startswith("# ")), "")  # behind papermill's word
    head = re.sub(r"[*`$]", "", first)
    page = file.with_suffix(".html")
    href = f"notebooks/{(page if page.is_file() else file).name}"
    last = next((f"#cell-id={cell.get('id')}" for cell in reversed(cells) if "run.record(" in cell.source), "")
    errors = [output for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]
    return {"name": stem, "href": href, "recorded": href + last, "failed": stem != file.stem,
            "error": f"{errors[0].ename}: {errors[0].evalue}"[:300] if errors else "",
            "title": head.partition("\n")[0].removeprefix("# "),
            "goal": head.partition("Goal. ")[2].partition("\n\n")[0],
            "pictures": pictures(cells)}


def pictures(cells: list) -> list[str]:
    """Return the pictures of the first cell tagged `picture` that shows any, as data URIs."""
    for cell in cells:
        shown = []
        for output in cell.get("outputs", ()) if "picture" in cell.metadata.get("tags", []) else ():
            data = output.get("data", {})
            if "image/svg+xml" in data:
                drawing = base64.b64encode(data["image/svg+xml"].encode()).decode()
                shown.append(f"data:image/svg+xml;base64,{drawing}")
            shown += PHOTO.findall(data.get("text/html", ""))
        if shown:
            return shown[:MAX_PICTURES]
    return []
