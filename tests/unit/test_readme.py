"""README and the results quote no figure that the reference run does not hold, and names no file that is not there."""

import json
import re
from collections import Counter
from pathlib import Path

from capture_lib.report.record import results
from capture_lib.utils import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "reports" / "RESULTS.md").read_text(encoding="utf-8")
CPU = ROOT / "reports" / "reference" / "cpu" / "metrics"


def record(file: Path) -> dict:
    """What a notebook of a reference run recorded."""
    return json.loads(file.read_text(encoding="utf-8"))


def brackets(value: float, low: float, high: float, form: str = ".1f") -> str:
    """A fraction with its interval as README's tables write it, 68.2 [65.9, 70.4]."""
    value, low, high = (f"{100 * number:{form}}" for number in (value, low, high))
    return f"{value} [{low}, {high}]"


def test_the_results_are_those_of_the_records():
    assert results() == RESULTS


def test_readme_quotes_the_reference_run():
    claims = record(CPU / "06_ablations.json")["claims"]
    measured = [result for claim in claims for result in claim["comparisons"] if result["effect"] is not None]
    effects = [(result["effect"], result["low"], result["high"]) for result in measured]
    gains = record(CPU / "07_beyond.json")
    effects += [tuple(gains[name].values()) for name in ("gain", "gain_instance", "gain_held_out", "gain_unseen")]
    known = {brackets(*effect, form) for effect in effects for form in (".1f", "+.1f")}
    section = README.partition("## What came out")[2].partition("## ")[0]
    quoted = re.findall(r"[-+]?[\d.]+ \[[-+\d., ]+\]", section)
    assert len(quoted) > 5 and set(quoted) <= known
    shown = {brackets(claim["effect"], claim["low"], claim["high"]) for claim in claims
             if claim["verdict"] == "reproduced" and claim["effect"] is not None}
    beaten = section.partition("**CAPTURE beats**")[2].partition(". ")[0]
    assert set(re.findall(r"[\d.]+ \[.+?\]", beaten)) <= shown and "[" in beaten
    verdicts = Counter(claim["verdict"] for claim in claims if claim["of"] == "paper")
    assert (f"Of {verdicts.total()} claims of the paper, {verdicts['reproduced']} are reproduced, "
            f"{verdicts['contradicted']} contradicted, {verdicts['not shown']} not shown and "
            f"{verdicts['not testable at this size']} not testable at this size") in README


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
