"""README and the results quote no figure that the reference run does not hold, and names no file that is not there."""

import json
import re
from collections import Counter

from capture_lib.utils import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "reports" / "RESULTS.md").read_text(encoding="utf-8")
COLUMNS = (("standard", "mAP@10"), ("standard", "mAR@10"), ("released", "mAP@10"))


def brackets(value: float, low: float, high: float, form: str = ".1f") -> str:
    """A fraction with its interval as README's tables write it, 68.2 [65.9, 70.4]."""
    value, low, high = (f"{100 * number:{form}}" for number in (value, low, high))
    return f"{value} [{low}, {high}]"


def markdown_table(methods: dict, columns: tuple[tuple[str, str], ...]) -> str:
    """Methods by (definition, figure), in percent with 95% intervals."""
    lines = ["| method | " + " | ".join(f"{figure}, {definition}" for definition, figure in columns) + " |",
             "|---" * (len(columns) + 1) + "|"]
    for method, row in methods.items():
        cells = [brackets(**row[definition][figure]) for definition, figure in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_ledger(claims: list[dict]) -> str:
    """Each claim with its main comparison, our effect in points, and the verdict."""
    lines = ["| claim | compared, standard mAP@10 | our effect, points | verdict |", "|---|---|---|---|"]
    for claim in claims:
        effect = "not available" if claim["effect"] is None else brackets(
            claim["effect"], claim["low"], claim["high"], "+.1f")
        lines.append(f"| {claim['claim']} | {claim['compared']} | {effect} | {claim['verdict']} |")
    return "\n".join(lines)


def test_the_results_are_those_of_the_reference_run():
    file = ROOT / "reports" / "reference" / "cpu" / "05_retrieval.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert markdown_table(record["methods"], COLUMNS) in RESULTS


def test_the_baselines_and_the_ledger_are_those_of_the_thorough_run():
    folder = ROOT / "reports" / "reference" / "thorough"
    evaluated, ledger = (json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
                         for stem in ("06_ablations", "07_claims"))
    baselines = {name: row for name, row in evaluated["methods"].items()
                 if not name.startswith("ablation/") and not name.endswith("/image")}
    assert markdown_table(baselines, COLUMNS) in RESULTS
    assert markdown_ledger(ledger["claims"]) in RESULTS
    counts = Counter(claim["verdict"] for claim in ledger["claims"])
    assert (f"{counts['reproduced']} are reproduced, {counts['partly']} partly and {counts['not reproduced']} are not"
            in README)


def test_what_it_links_to_is_there():
    for folder, text in ((ROOT, README), (ROOT / "reports", RESULTS)):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (folder / target).exists(), target
    assert len(README.encode()) <= 9 * 1024  # a newcomer's first page


def test_the_map_of_rooms_names_every_module():
    rooms = ROOT / "capture_lib" / "README.md"
    named = set(re.findall(r"`(\w+)/?`", rooms.read_text(encoding="utf-8")))
    modules = {file.stem for file in (ROOT / "capture_lib").rglob("*.py") if "world" not in file.parts}
    assert modules - {"__init__", "__main__"} <= named, modules - named
