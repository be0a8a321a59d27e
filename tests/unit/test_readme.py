"""README and the results quote no figure that the reference run does not hold, and names no file that is not there."""

import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from capture_lib.report.figures import brackets
from capture_lib.report.record import results
from capture_lib.utils import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "reports" / "RESULTS.md").read_text(encoding="utf-8")


def record(file: Path) -> dict:
    """What a notebook of a reference run recorded."""
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_results_are_those_of_the_records():
    assert results() == RESULTS


def test_readme_quotes_the_records():
    verdict = README.partition("**The verdict**")[2].partition("```sh")[0]
    verdict = " ".join(verdict.split())
    metrics = [record(file) for file in (ROOT / "reports" / "reference").glob("*/metrics/0[67]_[ab]*.json")]
    known = {brackets(figures[name]) for figures in metrics for name in figures if name.startswith("gain")}
    every = [claim for figures in metrics for claim in figures.get("claims", [])]
    measured = [result for claim in every for result in claim["comparisons"] if result["effect"] is not None]
    known |= {brackets(figure) for figure in measured}
    elsewhere = pd.read_csv(ROOT / "reports" / "reference" / "cpu-elsewhere.csv")
    known |= {brackets(row) for row in elsewhere.to_dict("records")}
    weights = record(ROOT / "reports" / "reference" / "cpu" / "metrics" / "08_real_photos.json")["by_weights"]
    known |= {brackets(figure) for vectors in weights.values() for figure in vectors.values()}
    known |= {brackets(part["mAP@10"]) for figures in metrics for part in figures.get("parts", {}).values()}
    claims = record(ROOT / "reports" / "reference" / "cpu" / "metrics" / "06_ablations.json")["claims"]
    claims = [claim for claim in claims if claim["of"] == "paper"]
    of_code = sum(claim["source"].startswith("released") for claim in claims)
    counts = Counter(claim["verdict"] for claim in claims)
    assert (f"{len(claims)} claims, {len(claims) - of_code} of the paper and {of_code} of its code, "
            f"{counts['reproduced']} are reproduced, "
            f"{counts['contradicted']} contradicted, {counts['not shown']} not shown and "
            f"{counts['not testable at this size']} not testable at this size") in verdict
    quoted = re.findall(r"[-+]?[\d.]+ \[[-+\d., ]+\]", verdict)
    assert len(quoted) > 5 and set(quoted) <= known
    large = record(ROOT / "reports" / "reference" / "full" / "metrics" / "06_ablations.json")["methods"]
    assert f"two-stream, there {100 * large['two-stream/instance']['standard']['mAP@10']['value']:.1f}" in verdict
    photos = [record(file) for file in (ROOT / "reports" / "reference" / "photos").glob("*.json")]
    real = {brackets(row["mAP@10"]) for figures in photos for row in figures["by_method"].values()}
    real |= {brackets(recall) for figures in photos for recall in figures["recall"].values()}
    real |= {brackets(row["difference"]) for row in record(ROOT / "reports" / "reference" / "size.json")["sizes"]}
    limits = re.findall(r"[\d.]+ \[[\d., ]+\]", " ".join(README.partition("## Limits")[2].split()))
    assert limits and set(limits) <= real
    seconds = record(ROOT / "reports" / "reference" / "cpu" / "timings.json")["the whole run"]["seconds"]
    assert f"{seconds / 60:.0f} minutes on two cores" in README


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
