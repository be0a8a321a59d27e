"""README quotes no figure that the reference run does not hold, and names no file that is not there."""

import json
import re
from collections import Counter

import pytest

from capture_lib.report import figures
from capture_lib.utils import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRANSFER = ROOT / "reports" / "reference" / "transfer"
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
    figures = json.loads((ROOT / "reports" / "reference" / "cpu" / "05_retrieval.json").read_text(encoding="utf-8"))
    assert markdown_table(figures["methods"], COLUMNS) in README


def test_the_rivals_and_the_ledger_are_those_of_the_thorough_run():
    folder = ROOT / "reports" / "reference" / "thorough"
    evaluated, ledger = (json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
                      for stem in ("06_ablations", "07_claims"))
    baselines = {name: row for name, row in evaluated["methods"].items()
              if not name.startswith("ablation/") and not name.endswith("/image")}
    assert markdown_table(baselines, COLUMNS) in README
    assert markdown_ledger(ledger["claims"]) in README
    counts = Counter(claim["verdict"] for claim in ledger["claims"])
    assert (f"{counts['reproduced']} are reproduced, {counts['partly']} partly and {counts['not reproduced']} are not"
            in README)


def test_what_lies_beyond_the_paper_is_as_in_the_reference():
    found = json.loads((ROOT / "reports" / "reference" / "thorough" / "08_beyond.json").read_text(encoding="utf-8"))
    ranked = sorted(found["methods"], key=lambda name: -found["methods"][name]["standard"]["mAP@10"]["value"])
    assert markdown_table({name: found["methods"][name] for name in ranked}, COLUMNS) in README
    quoted = [*(found[groups][kind]["mAP@10"] for groups in ("groups", "groups_plain") for kind in ("all", "unseen")),
              found["gain"], found["gain_unseen"], found["groups"]["held-out brand"]["mAP@10"],
              found["groups"]["all"]["mAR@10"], found["to"]["paper, product"]["mAP@10"],
              *(found["matching"][name]["mAP@10"] for name in ("late-fusion", "text-only", "paper, product")),
              *found["parts"]["beyond without CAPTURE"].values()]
    said = " ".join(README.replace("−", "-").replace("+", "").split())
    for figure in quoted:
        mean, low, high = (f"{100 * figure[end]:.1f}" for end in ("mean", "low", "high"))
        assert f"{mean} [{low}, {high}]" in said
    for name, row in found["parts"].items():
        assert f"{mean_of(row['mAP@10'])} | {mean_of(row['mAR@10'])}" in README, name
    assert f"{found['cost']['time_ratio']:.2f} times the time of a training" in said


def mean_of(figure: dict) -> str:
    """A difference as README's tables write it, +1.2 [−0.1, +2.5]."""
    mean, low, high = (f"{100 * figure[end]:+.1f}" for end in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]".replace("-", "−")


@pytest.mark.parametrize("name, file", [("frozen", "photos"), ("trained on photos", "photos"),
                                        ("CAPTURE, untrained", "pairs"), ("CAPTURE, pretrained on pairs", "pairs")])
def test_what_training_on_real_photos_does_is_as_in_the_reference(name, file):
    found = json.loads((TRANSFER / f"grocery-trained-{file}.json").read_text(encoding="utf-8"))[file]["rows"][name]
    cells = [figures.percent(found[figure]) for figure in ("mAP", "R@1")]
    assert f"| {name} | {cells[0]} | {cells[1]} |" in README


@pytest.mark.parametrize("name, file", [
    ("from a random start, drawn scenes", "fridge"), ("from a random start, photos of scenes too", "fridge-scenes"),
    ("ImageNet backbone, drawn scenes", "fridge-pretrained"),
    ("ImageNet backbone, photos of scenes too", "fridge-pretrained-scenes")])
def test_the_recalls_on_real_photos_are_those_of_the_reference(name, file):
    found = json.loads((TRANSFER / f"{file}.json").read_text(encoding="utf-8"))["proposals"]["rows"]
    cells = [figures.percent(found[f"searched at {side} px"][f"recall@0.5, {count} boxes"])
             for count, side in ((10, 640), (36, 448), (36, 640), (36, 896))]
    assert f"| {name} | {' | '.join(cells)} |" in README


def test_the_identities_on_real_photos_are_those_of_the_reference():
    found = json.loads((TRANSFER / "grocery-pretrained.json").read_text(encoding="utf-8"))["identity"]["rows"]
    for kind, row in found.items():
        cells = [figures.percent(row[f"{figure} in the gallery"]) for figure in ("mAP", "R@1")]
        assert f"| {kind} | {cells[0]} | {cells[1]} |" in README


def test_what_it_links_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_map_names_every_module():
    modules = {file.stem for file in (ROOT / "capture_lib").glob("*.py")} - {"__init__"}
    modules |= {folder.name for folder in (ROOT / "capture_lib").iterdir() if (folder / "__init__.py").is_file()}
    named = set(re.findall(r"`(\w+)`", README[README.index("## The map"):]))
    assert modules <= named, modules - named
