"""The audit of a catalog: what is odd is counted whatever the catalog was made of, and nothing is overwritten by it."""

import csv
import shutil
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest
from drawn import make_catalog, refused
from PIL import Image

from capture_lib.catalog import quality
from capture_lib.catalog.labels import is_missing, is_unreadable, labels_of, listed, spelling
from capture_lib.catalog.table import Catalog, read_catalog, write_catalog

SPELLINGS = "labels that differ by case, width, spaces or punctuation alone"


def counts(catalog: Catalog) -> dict[tuple[str, str], int]:
    found = quality.audit(catalog)
    assert list(found.columns) == quality.COLUMNS
    return dict(zip(zip(found["what"], found["split"], strict=True), found["count"], strict=True))


def make(folder: Path, **columns: list) -> Catalog:
    """A catalog of one training photo, two of the gallery, one of val and two of test, with other cells."""
    table = make_catalog(folder, train=1, gallery=2, val=1, test=2).table
    plain = {"caption": [f"the text of {sample}" for sample in table["sample_id"]],
             "labels": [[], ["A"], ["B"], ["A"], ["A"], ["B"]],
             "boxes": [[]] * 6, "box_labels": [[]] * 6}
    cells = {name: pd.Series(values, dtype=object) for name, values in (plain | columns).items()}
    write_catalog(table.assign(**cells), folder)
    return read_catalog(folder)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """The six photos of such a catalog, all different."""
    paths = list(make(tmp_path).photos.values())
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path, "BMP")
    return paths


def test_a_clean_catalog_has_nothing_odd(tmp_path, photos):
    assert counts(read_catalog(tmp_path)) == {}


def test_labels_and_captions(tmp_path, photos):
    labels = [[], ["A", "gift"], ["B", "B"], [], ["Ａ"], ["a\u200b", "X"]]
    captions = ["plain", "one", "精", "one", "🍎", "three"]
    table = read_catalog(tmp_path).table.assign(labels=pd.Series(labels, dtype=object), caption=captions)
    write_catalog(table, tmp_path)
    assert counts(read_catalog(tmp_path)) == {
        ("samples without labels", "val"): 1, ("captions of one character", "test"): 1,
        ("several labels on a gallery photo", "gallery"): 1, ("the same label twice in one photo", "gallery"): 1,
        ("captions of one character", "gallery"): 1, ("caption that stands in val too", "gallery"): 1,
        (SPELLINGS, "all"): 1, ("labels of queries that the gallery lacks", "all"): 3}


def test_photos_of_the_same_bytes_within_and_across_splits(tmp_path, photos):
    train, first, second, val, test, _ = photos
    shutil.copyfile(first, second)
    shutil.copyfile(train, val)
    assert counts(read_catalog(tmp_path)) == {
        ("photos that another sample of the split has too", "gallery"): 1,
        ("photo that stands in train too", "val"): 1}
    shutil.copyfile(train, test)
    found = counts(read_catalog(tmp_path))
    assert found["photo that stands in train too", "test"] == 1
    assert found["photo that stands in val too", "test"] == 1
    assert found["photos of 3 samples or more that differ in text: placeholders?", "all"] == 1


def test_three_photos_of_one_product_are_no_placeholder(tmp_path, photos):
    for copy in photos[1:3]:
        shutil.copyfile(photos[0], copy)
    table = read_catalog(tmp_path).table
    same = table.assign(caption="a text", labels=pd.Series([["A"]] * 6, dtype=object))
    write_catalog(same, tmp_path)
    assert not [what for what, _ in counts(read_catalog(tmp_path)) if "placeholder" in what]


def test_texts_that_were_damaged_before_they_came_here(tmp_path, photos):
    labels = [["A"], ["A"], ["B"], ["A,B"], ["6.92165E+12"], ["A", "B | Z"]]
    table = read_catalog(tmp_path).table
    captions = ["one\ntwo", "\x1b[31mred", *table["caption"][2:]]
    write_catalog(table.assign(labels=pd.Series(labels, dtype=object), caption=captions), tmp_path)
    assert counts(read_catalog(tmp_path)) == {
        ("labels that are others joined by , ; or |", "all"): 2, ("ids and labels in scientific notation", "all"): 1,
        ("texts with control codes", "all"): 1, ("labels of queries that the gallery lacks", "all"): 3}


def test_boxes_that_no_photo_was_compared_with_when_the_table_was_read(tmp_path, photos):
    """Photos of addresses come later."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 10)).save(photos[0], "JPEG", exif=turned)
    table = read_catalog(tmp_path).table
    boxes = [[[0, 0, 10, 40]], [[0, 0, 9, 9]], [[0, 0, 40, 10]], [[0.1, 0.1, 0.5, 0.6]], [], []]
    named = [["A"], ["A"], ["B"], ["C"], [], []]
    write_catalog(table.assign(boxes=boxes, box_labels=named), tmp_path)
    wrong = {("photos whose boxes are within 0 to 1", "all"): 1,
             ("photos with labels of boxes that are none of theirs", "all"): 1}
    strayed = ("boxes that are not in their photo", "all")
    assert counts(read_catalog(tmp_path)) == wrong | {strayed: 2}
    for photo in photos:
        photo.unlink()
    assert counts(read_catalog(tmp_path)) == wrong


def test_the_mirror_of_one_split_that_is_the_address_of_another_is_a_leak(tmp_path, photos):
    table = read_catalog(tmp_path).table
    table["mirror"] = ["http://a/1.jpg", *[None] * 5]
    table.loc[4, "image"] = "http://a/1.jpg"
    write_catalog(table, tmp_path)
    assert counts(read_catalog(tmp_path))["image that stands in train too", "test"] == 1


def test_the_file_holds_no_formula_and_no_control_code(tmp_path, photos):
    captions = ["=1+1", "\x1b[31m red", "@a b", "=1+1", "\x1b[31m red", "@a b"]
    write_catalog(read_catalog(tmp_path).table.assign(caption=captions), tmp_path)
    quality.write(quality.audit(read_catalog(tmp_path)), tmp_path / "quality.csv")
    quality.write(["=evil.csv, line 2: x", "@a", "plain"], tmp_path / "faults.csv")
    cells = []
    for name in ("quality.csv", "faults.csv"):
        with (tmp_path / name).open(encoding="utf-8-sig", newline="") as file:
            cells += [cell for row in csv.reader(file) for cell in row]
    assert "'=evil.csv, line 2: x" in cells and "plain" in cells and any("\\x1b[31m red" in cell for cell in cells)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@")) or not cell.isprintable()]


def test_a_file_of_the_users_is_not_overwritten_and_ours_is(tmp_path, photos):
    file = tmp_path / "quality.csv"
    for found in (quality.audit(read_catalog(tmp_path)), ["x"]):
        file.unlink(missing_ok=True)
        quality.write(found, file)
        quality.write(found, file)
        for mine in ("what I noted, by hand\n", f'note\n"{",".join(quality.COLUMNS)}"\n{quality.FAULTS}\n'):
            file.write_text(mine, encoding="utf-8-sig")
            refused(lambda found=found: quality.write(found, file), "quality.csv: is there already")
            assert file.read_text(encoding="utf-8-sig") == mine


# ---- texts that mean "missing"


@pytest.mark.parametrize("text", [
    "", " ", "nan", "NaN", "NAN", "-nan", "NULL", "null ", "(null)", "None", "N/A", "n/a", "n.a.", "NA", "<NA>", "#N/A",
    "ＮＵＬＬ", "NaT", r"\N", "#VALUE!", "#REF!", "#DIV/0!", "1.#IND", "[]", "['']", "-", "--", "?", "无",
    "暂无", "空", "unlabeled", "No label", "TBD", "\u200b", "\ufeff", "\u3164", "\u2800\u200d"])
def test_every_writing_of_missing(text):
    assert is_missing(text)


@pytest.mark.parametrize("text", ["0", "N", "Nana", "Nat", "🍎", "N&A", "C+", "nan khatai", "None of us", "1", "水"])
def test_a_text_that_means_something(text):
    assert not is_missing(text)


@pytest.mark.parametrize(("cell", "labels", "dropped"), [
    ("a#;# b  c #;#", ["a", "b c"], []), ('["a", "b"]', ["a", "b"], []), ("['a']", ["a"], []), ("['']", [], [""]),
    ("['a' 'b']", ["a", "b"], []), ("('a', \"b's\")", ["a", "b's"], []), ("[]", [], []), ("[nan]", [], [""]),
    ("[1.0, nan]", ["1"], [""]), ("['a, nan', nan]", ["a, nan"], [""]),
    ("{'a'}", ["a"], []), ('="00123"', ["00123"], []), (Decimal("3.00"), ["3"], []),
    (2.0**53, ["9.0071992547409920e+15"], []),
    ('["a", null, NaN, "\\ud83c\\udf4e"]', ["a", "🍎"], ["", ""]), ("[1, 2]", ["1", "2"], []),
    ("[new] milk", ["[new] milk"], []), ("[new]", ["[new]"], []), ("(50)", ["(50)"], []),
    (0, ["0"], []), (3.0, ["3"], []),
    ("3.0", ["3"], []), (3.5, ["3.5"], []), (None, [], []), ("7", ["7"], []), ("(null)", [], ["(null)"]),
    (float("nan"), [], []), (["a", None, 0, "x#;#y", "None"], ["a", "0", "x", "y"], ["", "None"]), ("0", ["0"], [])])
def test_labels_of_a_cell(cell, labels, dropped):
    words = []
    assert labels_of(listed(cell), words) == labels and words == dropped


@pytest.mark.parametrize("cell", ["{'a': 1}", "['a', None + 1]", "['a' + 'b']"])
def test_a_list_that_cannot_be_read_is_no_label(cell):
    assert listed(cell) == cell and is_unreadable(cell)


def test_near_spellings():
    alike = ("L'Oréal A-B（50）", "l’ore\u0301al　Ａ–b (50)", "LORÉAL\u200b AB50")
    assert len({spelling(text) for text in alike}) == 1
    apart = ("1.5 ml", "15 ml", "PA++", "PA+++", "50%", "50", "कि", "का")
    assert len({spelling(text) for text in apart}) == len(apart)
