"""Figures: photos with boxes, galleries, pictures of a search, text of a catalog."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import drawn
import numpy as np
import pytest
from PIL import Image

from capture_lib.experiments.search import Answer, Hit
from capture_lib.report import figures
from capture_lib.utils import InputError


def test_a_gallery_escapes_and_frames():
    photo = np.zeros((20, 30, 3), np.uint8)
    shown = figures.gallery([photo, photo], ["<b>", "ok"], [figures.RIGHT, figures.WRONG]).data
    assert "&lt;b&gt;" in shown and figures.RIGHT in shown and figures.WRONG in shown
    assert shown.count("data:image/webp;base64,") == 2


def test_boxes_are_drawn_where_they_are():
    photo = np.full((40, 60, 3), 200, np.uint8)
    drawn_boxes = figures.draw_boxes(photo, np.array([[0.5, 0.25, 1, 1]]), colour="#d55e00", fractions=True)
    assert drawn_boxes.shape == (80, 120, 3) and (photo == 200).all()
    assert drawn_boxes[40, 60].tolist() == [0xD5, 0x5E, 0] and (drawn_boxes[:10] == 200).all()
    in_pixels = figures.draw_boxes(photo, np.array([[30, 10, 60, 40]]), colour="#d55e00")
    assert (in_pixels == drawn_boxes).all()


def test_a_label_with_control_codes_leaves_an_svg_whole(tmp_path: Path):
    photo, boxes = drawn.draw([1, 2])
    Image.fromarray(photo).save(tmp_path / "hit.png")
    hit = Hit("a", tmp_path / "hit.png", "caption", ["\x1b]0;x\x07\x1b[31mred"], 0.5, "other")
    answer = Answer("image-only", "regions", "image alone", photo, boxes / 96, np.ones(2), [[hit], [hit]])
    figures.draw_answer(answer, tmp_path / "out.svg")
    assert ElementTree.parse(tmp_path / "out.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("name, kind", [("out.png", "PNG"), ("out.jpg", "JPEG")])
def test_an_answer_is_drawn_in_the_format_of_its_name(tmp_path: Path, name: str, kind: str):
    photo, boxes = drawn.draw([1, 2])
    Image.fromarray(photo).save(tmp_path / "hit.png")
    hit = Hit("a", tmp_path / "hit.png", "caption", ["$面霜"], 0.5, "other")
    compared = "image-only", "regions", "image alone, $H$"
    answer = Answer(*compared, photo, boxes / 96, np.ones(2), [[hit] * 6, [replace(hit, mark="unknown")]])
    figures.draw_answer(answer, tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.format == kind
    nothing = Answer(*compared, photo, boxes[:0], np.ones(0), [])
    figures.draw_answer(nothing, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(InputError, match="a folder stands where a file is to be written"):
        figures.draw_answer(answer, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hit.png", name]


def test_percent():
    assert figures.percent({"value": 0.682, "low": 0.6588, "high": 0.704}) == "68.2% [65.9, 70.4]"
    assert figures.percent(None) == "not available"


def test_constants_are_cheap():
    """A notebook's first cell imports this module; matplotlib comes when something is drawn."""
    code = ("import sys; from capture_lib.report import figures; heavy = {'matplotlib', 'seaborn', 'fontTools'};"
            "sys.exit(f'{heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)")
    subprocess.run([sys.executable, "-c", code], check=True)
