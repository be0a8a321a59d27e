"""The released lists: the published figures, every bad line named, and what is odd in them counted."""

from itertools import chain
from pathlib import Path

import pytest
from drawn import refused

from capture_lib.catalog.lists import find_lists, from_lists, read_list
from capture_lib.catalog.quality import audit
from capture_lib.catalog.table import is_url
from capture_lib.utils import InputError

GALLERY = "product1m_gallery_v2.txt"
TEST = "product1m_test_v2.txt"


def released(sample: str, labels: str = "A", caption: str = "cap") -> str:
    """One line of a released list."""
    return f"{sample}#####{caption}#####https://shop/{sample}.jpg#####https://mirror/{sample}.jpg#####{labels}"


def lists(folder: Path, **texts: str | bytes) -> Path:
    """A folder with released lists of the given splits."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"product1m_{name}_v2.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_published_lists_have_their_published_size(shared, tmp_path):
    table = from_lists(shared / "product1m", tmp_path / "out").table
    labels = list(chain(*table["labels"]))
    assert table["split"].value_counts().to_dict() == {"test": 6547, "val": 2673}
    assert (len(set(labels)), len(labels)) == (392, 26_138)
    assert not any("\r" in label or "  " in label or label != label.strip() for label in labels)
    assert set(table["products"]) == {"multi"}
    assert all(map(is_url, chain(table["image"], table["mirror"])))


def test_line_ends_byte_order_mark_and_spaces_change_nothing(tmp_path):
    plain = lists(tmp_path / "plain", test=released("1", "A b#;#C") + "\n" + released("2", "A b") + "\n")
    odd = lists(tmp_path / "odd", test="\ufeff" + released("1", " A   b #;#C#;#") + "\r\n\r\n" + released("2", "A b"))
    one, other = (from_lists(folder, folder / "out").table for folder in (plain, odd))
    assert one.equals(other)
    assert list(one["labels"]) == [["A b", "C"], ["A b"]]


def test_a_caption_may_hold_a_unicode_line_separator(tmp_path):
    table = read_list(lists(tmp_path / "in", test=released("1", caption="a\u2028b\x0bc")) / TEST)
    assert list(table["caption"]) == ["a\u2028b\x0bc"]


def test_splits_and_kinds_of_released_lists(tmp_path):
    train = "\n".join(line.rsplit("#####", 1)[0] for line in (released("1"), released("2")))  # four fields
    folder = lists(tmp_path / "in", train=train, dev=released("3"), test=released("4"), gallery=released("5"))
    table = from_lists(folder, tmp_path / "out").table.set_index("sample_id")
    assert table["split"].to_dict() == {"1": "train", "2": "train", "3": "val", "4": "test", "5": "gallery"}
    assert table["products"].to_dict() == {"1": None, "2": None, "3": "multi", "4": "multi", "5": "single"}
    assert list(table.loc["1", "labels"]) == [] and table.loc["4", "mirror"] == "https://mirror/4.jpg"


@pytest.mark.parametrize(("text", "expected"), [
    (released("1") + "\n2#####caption", "line 2: 2 fields, expected 5"),
    (released("1") + "#####more", "line 1: 6 fields"),
    (released("1") + "\n" + released("1"), "sample_id '1': this id occurs twice"),
    (released("a/b"), "sample_id 'a/b': an id must be"),
    (released(".."), "sample_id '..': an id must be"),
    (released("a b"), "an id must be"),
    (released("").replace("https://shop/.jpg", "../x.jpg").replace("#####cap", "1#####cap", 1), "without '..'"),
    (released("1", "精华").encode("gbk"), "line 1: not UTF-8 (GBK, Latin-1, UTF-16 without"),
    ("", "the list is empty"), ("\n\n", "the list is empty")])
def test_a_bad_released_list_is_refused(tmp_path, text, expected):
    folder = lists(tmp_path / "in", test=text)
    refused(lambda: from_lists(folder, tmp_path / "out"), TEST, expected)
    assert not (tmp_path / "out").exists()


def test_an_id_in_two_lists_is_refused_and_both_are_named(tmp_path):
    folder = lists(tmp_path / "in", test=released("7"), gallery=released("7"))
    refused(lambda: from_lists(folder, tmp_path / "out"), TEST, GALLERY, "'7'")


def test_a_fault_names_the_line_of_the_file_after_blank_lines_too(tmp_path):
    folder = lists(tmp_path / "in", test=f"\n{released('1')}\r\n\r\n\r\n{released('a/b')}\n\n{released('1')}")
    with pytest.raises(InputError) as error:
        from_lists(folder, tmp_path / "out")
    second, first = str(error.value).splitlines()
    assert f"{TEST}, line 5, sample_id 'a/b'" in first
    assert f"{TEST}, line 7, sample_id '1'" in second and f"{TEST}, line 2 has it too" in second


def test_two_lists_of_one_split_are_refused(tmp_path):
    folder = lists(tmp_path / "in", test=released("1"))
    (folder / "product1m_test.txt").write_text(released("2"))
    refused(lambda: find_lists(folder), TEST, "product1m_test.txt", "both test lists")


def test_a_missing_folder_a_folder_without_lists_and_a_missing_list_are_named(tmp_path):
    refused(lambda: from_lists(tmp_path / "nowhere", tmp_path / "out"), "nowhere: no such folder")
    refused(lambda: from_lists(tmp_path, tmp_path / "out"), "no list in it")
    refused(lambda: read_list(tmp_path / "nowhere.txt"), "nowhere.txt: cannot be read")
    refused(lambda: read_list(tmp_path), str(tmp_path), "cannot be read")


# ------------------------------------------------------------------------------------------ remarks


def test_labels_that_the_gallery_lacks_are_a_remark_with_their_count(tmp_path):
    folder = lists(tmp_path / "in", test=released("1", "A#;#B#;#C"), dev=released("2", "B#;#A"), gallery=released("3"))
    made = from_lists(folder, tmp_path / "out")
    assert any(said.startswith("2 labels of queries are not in the gallery") for said in made.remarks())


def test_remarks_name_what_is_missing(tmp_path):
    text = "\n".join([released("1", caption=""), released("2")])
    said = "\n".join(from_lists(lists(tmp_path / "in", test=text), tmp_path / "out").remarks())
    for expected in ("split train: no samples", "split val: no samples", "split gallery: no samples",
                     "2 of 2 photos are not on disk", "split test: 1 of 2 samples have no caption"):
        assert expected in said
    assert "not in the gallery" not in said  # there is no gallery to lack them


# ------------------------------------------------------------------------------------------------ growing


def test_a_list_that_arrives_later_is_added_and_the_old_rows_stay_first(tmp_path):
    first = lists(tmp_path / "a", test=released("9"), dev=released("8"))
    later = lists(tmp_path / "b", train=released("1"))
    old = from_lists(first, tmp_path / "out").table.to_dict("records")
    grown = from_lists(later, tmp_path / "out", add=True).table.to_dict("records")
    assert grown[:2] == old and [row["sample_id"] for row in grown[2:]] == ["1"]
    assert from_lists(first, tmp_path / "out", add=True).table.to_dict("records") == grown  # all there already
    refused(lambda: from_lists(lists(tmp_path / "c", gallery=released("8", "other")), tmp_path / "out", add=True),
            GALLERY, "line 1, sample_id '8': the catalog has this id with other content")
    refused(lambda: from_lists(first, tmp_path / "out"), "a catalog with other rows is there already", "--add", "--out")
    refused(lambda: from_lists(first, tmp_path / "nowhere", add=True), "no catalog.parquet here")


# ------------------------------------------------------------------------------------------------ quality


def counts(folder: Path) -> dict[tuple[str, str], int]:
    table = audit(from_lists(folder, folder / "catalog"))
    assert list(table.columns) == ["what", "split", "count", "example", "what we do"] and (table["count"] > 0).all()
    return dict(zip(zip(table["what"], table["split"], strict=True), table["count"], strict=True))


def test_clean_lists_have_nothing_odd(tmp_path):
    dev, test = released("1", "Aa b", "one"), released("2", "Cc d", "two")
    gallery = released("3", "Aa b", "three") + "\n" + released("4", "Cc d", "four")
    assert not counts(lists(tmp_path, dev=dev, test=test, gallery=gallery))


def test_everything_odd_is_counted(tmp_path):
    dev = [released("1", "Aa b#;#Aa b", "one"), released("2", "AA b#;#Xx y", "two"), released("3", "Aa b", "")]
    test = [released("4", "Aa b#;#Aa b", "one"), released("5", "Aa/Q  c#;#", ""), released("6", "Ｘｘ y", "=1+1"),
            released("7", "Aa b", "six").replace("shop/7.jpg", "shop/1.jpg")]
    gallery = [released("9", "Aa b", "=1+1"), released("10", "Xx y", "ten")]
    folder = lists(tmp_path, dev="\n\n".join(dev), test="\r\n".join(test), gallery="\n".join(gallery))
    assert counts(folder) == {
        ("the same label twice in one photo", "val"): 1, ("the same label twice in one photo", "test"): 1,
        ("CRLF line ends", "test"): 3, ("labels with runs of spaces", "test"): 1,
        ("caption that stands in val too", "test"): 1, ("image that stands in val too", "test"): 1,
        ("caption that stands in test too", "gallery"): 1,
        ("labels that differ by case, width, spaces or punctuation alone", "all"): 2,
        ("labels of queries that the gallery lacks", "all"): 3}
    examples = audit(from_lists(folder, folder / "catalog")).set_index(["what", "split"])["example"]
    assert examples["labels with runs of spaces", "test"] == "'Aa/Q  c#;#\\r'"
    assert not any(example.startswith(("=", "+", "-", "@")) for example in examples)


def test_the_figures_of_the_published_lists(shared):
    found = counts(shared / "product1m")
    expected = {("CRLF line ends", "val"): 2673, ("CRLF line ends", "test"): 6547,
                ("the same label twice in one photo", "val"): 376, ("the same label twice in one photo", "test"): 1079,
                ("caption that stands in val too", "test"): 781}
    assert {key: found.get(key) for key in expected} == expected


def test_labels_that_mean_missing_are_none_and_counted(tmp_path):
    lines = [released("1", "nan"), released("2", "A#;#NULL"), released("3", "0")]
    folder = lists(tmp_path / "in", test="\n".join(lines))
    made = from_lists(folder, tmp_path / "out")
    assert list(made.table["labels"]) == [[], ["A"], ["0"]]
    assert list(read_list(folder / TEST)["labels"]) == [[], ["A"], ["0"]]
    assert [row[:3] for row in made.noted] == [("labels that mean 'missing'", "test", 2)]
    assert counts(folder)["samples without labels", "test"] == 1


def test_a_bundle_in_the_gallery_shows_several_products(tmp_path):
    folder = lists(tmp_path / "in", gallery="\n".join([released("1", "A#;#gift"), released("2", "A#;#A")]))
    assert list(from_lists(folder, tmp_path / "out").table["products"]) == ["multi", "single"]
    assert counts(folder)["several labels on a gallery photo", "gallery"] == 1


def test_strict_refuses_what_is_odd_and_makes_nothing(tmp_path):
    folder = lists(tmp_path / "in", test=released("1") + "\r\n")
    with pytest.raises(InputError, match="--strict: test: 1 CRLF line ends"):
        from_lists(folder, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()
