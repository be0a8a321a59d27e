"""README quotes no figure that the reference run does not hold, and names no file that is not there."""

import json
import re

from capture_lib.pages import markdown_table
from capture_lib.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = (("standard", "mAP@10"), ("standard", "mAR@10"), ("released", "mAP@10"))


def test_the_results_are_those_of_the_reference_run():
    figures = json.loads((ROOT / "reports" / "reference" / "cpu" / "05_retrieval.json").read_text(encoding="utf-8"))
    assert markdown_table(figures["methods"], COLUMNS) in README


def test_what_it_links_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_map_names_every_module():
    modules = {file.stem for file in (ROOT / "capture_lib").glob("*.py")} - {"__init__"}
    modules |= {folder.name for folder in (ROOT / "capture_lib").iterdir() if (folder / "__init__.py").is_file()}
    named = set(re.findall(r"`(\w+)`", README[README.index("## The map"):]))
    assert modules <= named, modules - named
