"""The figures of a metrics file as a reader sees them: text, tables, a ledger; and those looked for first."""

from collections import Counter
from collections.abc import Iterator

SHORT = 8  # a list of more numbers is told by its length
MIDDLES = ("value", "mean", "effect")  # what the middle of an interval may be called
DEFINITIONS = {
    "standard": "average precision over the hits that were possible, min(N, positives)",
    "released": "as the authors' script computes: average precision over the hits that were found",
}
VERDICTS = ("reproduced", "partly", "not reproduced", "not testable here")
MAIN = (  # where a figure stands that is looked for first, beside the methods and the claims, and what it is
    ("03_detector", "proposals", "recall@0.5", "proposals, recall@0.5"),
    ("03_detector", "proposals", "recall@0.75", "proposals, recall@0.75"),
    ("03_detector", "encoder", "mAP", "crop features, mAP of nearest neighbours"),
)


# --------------------------------------------------------------------------------------- a figure as text


def interval_of(value: object) -> dict | None:
    """A figure with its 95% interval as `{"value", "low", "high"}`, whatever its middle is called; None of all else."""
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys():
        return None
    name = next((name for name in MIDDLES if name in value), None)
    return name and {"value": value[name], "low": value["low"], "high": value["high"]}


def middle(value: object) -> float:
    """The value of a figure with an interval, to sort by; below all others where it is not available."""
    figure = interval_of(value)
    return float("-inf") if figure is None or figure["value"] is None else figure["value"]


def shown(value: object, scale: float = 1, form: str = ".4g") -> dict[str, str] | None:
    """A figure as text, `{"value": "68.2", "interval": "[65.9, 70.4]"}`; None where it is not available."""
    if figure := interval_of(value):
        value, low, high = (shown(figure[name], scale, form) for name in ("value", "low", "high"))
        return value and {**value, "interval": f"[{low['value']}, {high['value']}]" if low and high else ""}
    if value is None:
        return None
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, int) and scale == 1:
        text = str(value)
    elif isinstance(value, int | float):
        text = f"{scale * value:{form}}"
    elif isinstance(value, list):
        few = [shown(item) or {"value": "not available"} for item in value[:SHORT]]
        text = ", ".join(item["value"] for item in few) if len(value) <= SHORT else f"{len(value)} values"
    else:
        text = str(value)
    return {"value": text, "interval": ""}


def percent(figure: dict | None, signed: bool = False) -> str:
    """A fraction as one line of text, `68.2 [65.9, 70.4]` in percent or points; "not available" without a value."""
    text = shown(figure, 100, "+.1f" if signed else ".1f")
    return f"{text['value']} {text['interval']}".strip() if text else "not available"


def leaves(figures: dict | list, above: str = "") -> Iterator[tuple[str, object]]:
    """Nested figures as pairs of a path ("train · loss") and a figure, a text or a list of such, in order.

    Claims and comparisons of a list go by their name, so that a path stays what it is when one is added before it.
    """
    for number, item in enumerate(figures, start=1):
        value = figures[item] if isinstance(figures, dict) else item
        named = value.get("claim") or value.get("compared") if isinstance(value, dict) else None
        name = item if isinstance(figures, dict) else named or number
        path = f"{above} · {name}" if above else str(name)
        if figure := interval_of(value):
            yield path, figure
            value = {key: more for key, more in value.items() if key not in (*MIDDLES, "low", "high")}
        if is_nested(value):
            yield from leaves(value, path)
        else:
            yield path, value


def is_nested(value: object) -> bool:
    """True for what holds figures by name, and for a list of such."""
    return any(isinstance(part, dict | list) for part in (value if isinstance(value, list) else [value]))


def duration(seconds: float) -> str:
    """Seconds for a reader: 8.2 s, 92 s, 12 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


# ------------------------------------------------------------------------- what a reader looks for first


def main_methods(metrics: dict[str, dict]) -> dict[str, dict]:
    """Baselines, CAPTURE and its rivals, best first by standard mAP@10; a later notebook's figures count.

    Left out are ablations, methods without one of their parts, and what rivals do with one query a photo.
    """
    found = {}
    for stem in sorted(metrics):
        for name, value in metrics[stem].items():
            found |= value if name == "methods" and is_methods(value) else {}
    kept = {name: method for name, method in found.items()
            if not name.startswith("ablation/") and " without " not in name
            and (name.startswith("capture") or not name.endswith("/image"))}
    return dict(sorted(kept.items(), key=lambda pair: -middle(pair[1]["standard"].get("mAP@10"))))


def beside(metrics: dict[str, dict]) -> dict[str, dict]:
    """Figures looked for first, beside those of methods and claims: `MAIN`, and what tops a metrics file."""
    found = {what: (metrics.get(stem, {}).get(group) or {}).get(name) for stem, group, name, what in MAIN}
    found |= {f"{stem}, {name}": value for stem, content in metrics.items() for name, value in content.items()}
    return available(found)


def main_figures(metrics: dict[str, dict]) -> dict[str, dict]:
    """All figures looked for first by what they are, standard mAP@10 of the methods before those beside them."""
    found = {f"{name}, mAP@10": method["standard"].get("mAP@10") for name, method in main_methods(metrics).items()}
    return available(found) | beside(metrics)


def available(figures: dict[str, object]) -> dict[str, dict]:
    """Those of some figures that have a value and an interval."""
    found = {what: interval_of(value) for what, value in figures.items()}
    return {what: figure for what, figure in found.items() if figure and figure["value"] is not None}


def count_verdicts(claims: list[dict]) -> dict[str, int]:
    """How many claims have each verdict, in the order of `VERDICTS`; those that none has are left out."""
    counts = Counter(claim["verdict"] for claim in claims)
    return {verdict: counts[verdict] for verdict in (*VERDICTS, *sorted(counts.keys() - set(VERDICTS)))
            if counts[verdict]}


# ------------------------------------------------------------------------------- tables, and the ledger


def results_of(stem: str, content: dict) -> dict:
    """What results.html shows of a metrics file: methods, the ledger of claims, all else in groups."""
    tables, claims, groups = [], [], {"": []}
    for name, value in content.items():
        if name == "provenance":
            continue
        if is_methods(value):
            tables += [methods_table(name, definition, value) for definition in DEFINITIONS]
        elif name == "claims":
            claims = [claim_row(claim) for claim in value]
        elif interval_of(value) or not is_nested(value):
            groups[""] += rows_of({name: value})
        else:
            groups[name] = rows_of(value)
    return {"stem": stem, "methods": tables, "claims": claims, "origin": origin(content["provenance"]),
            "groups": {name: rows for name, rows in groups.items() if rows},
            "provenance": rows_of(content["provenance"])}


def rows_of(figures: dict | list) -> list[tuple[str, dict[str, str] | None]]:
    """Nested figures as a table of two columns: path and text."""
    return [(path, shown(value)) for path, value in leaves(figures)]


def is_methods(value: object) -> bool:
    """True for `{method: {"released": {…}, "standard": {…}}}`."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(method, dict) and DEFINITIONS.keys() <= method.keys() for method in value.values())


def methods_table(name: str, definition: str, methods: dict) -> dict:
    """Methods by figures, in percent."""
    columns = list(dict.fromkeys(figure for method in methods.values() for figure in method[definition]))
    rows = [(method, [shown(figures[definition].get(column), 100, ".1f") for column in columns])
            for method, figures in methods.items()]
    return {"name": f"{name}.{definition}", "heading": f"{name}, {definition} definition",
            "meaning": DEFINITIONS[definition], "columns": columns, "rows": rows}


def markdown_table(methods: dict, columns: tuple[tuple[str, str], ...]) -> str:
    """Methods by (definition, figure) as a Markdown table, in percent with 95% intervals."""
    lines = ["| method | " + " | ".join(f"{figure}, {definition}" for definition, figure in columns) + " |",
             "|---" * (len(columns) + 1) + "|"]
    for method, figures in methods.items():
        cells = [shown(figures[definition][figure], 100, ".1f") for definition, figure in columns]
        lines.append(f"| {method} | " + " | ".join(f"{cell['value']} {cell['interval']}" for cell in cells) + " |")
    return "\n".join(lines)


def markdown_ledger(claims: list[dict]) -> str:
    """The ledger as a Markdown table: each claim with its main comparison, our effect in points, and the verdict."""
    lines = ["| claim | compared, standard mAP@10 | our effect, points | verdict |", "|---|---|---|---|"]
    for claim in map(claim_row, claims):
        effect = f"{claim['effect']['value']} {claim['effect']['interval']}" if claim["effect"] else "not available"
        lines.append(f"| {claim['claim']} | {claim['compared']} | {effect} | {claim['verdict']} |")
    return "\n".join(lines)


def claim_row(claim: dict) -> dict:
    """One line of the ledger; our effect is a difference of fractions, shown in points."""
    effect = {name: claim[key] for name, key in (("value", "effect"), ("low", "low"), ("high", "high"))}
    paper = claim["paper"]
    if isinstance(paper, int | float):
        paper = f"{100 * paper:+.1f}"
    return {**claim, "paper": paper or "not available", "effect": shown(effect, 100, "+.1f")}


def origin(provenance: dict) -> str:
    """Where figures come from, in one line; what is not recorded is left out."""
    names = ("profile", "catalog", "seed", "commit")
    return " · ".join(f"{name} {provenance[name]}" for name in names if name in provenance)
