"""A table of your own: what is legal, and every fault of a bad one found in one pass with its line."""

import os
import shutil
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import files_below, refused
from PIL import Image

from capture_lib.catalog import own_table
from capture_lib.catalog.own_table import from_table
from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import read_catalog
from capture_lib.utils import InputError

HEADER = "sample_id,split,caption,image,labels"
BOXED = f"{HEADER},boxes,box_labels"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two photos."""
    (tmp_path / "photos").mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 30), colour).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def write_table(folder: Path, content: str | bytes, name: str = "mine.csv") -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def table_refused(photos: Path, content: str | bytes, *expected: str) -> None:
    """A CSV table with this content gives one line with the file's name and `expected`, and leaves nothing behind."""
    file, out = write_table(photos.parent, content), photos.parent / "out"
    refused(lambda: from_table(file, photos, out), str(file), *expected)
    assert not out.exists()


def test_a_csv_table_becomes_a_catalog(photos, tmp_path):
    rows = ['a1,test,"一, two",a.png,X#;#X#;#Y,multi,"[[0, 1, 2, 3], [1, 1, 9, 9]]","[""X"", ""Y""]"',
            "b1,gallery,,images/b.png,X,single,,", "c1,train,NA,https://shop/c.jpg,,,,"]
    (tmp_path / "mine.csv").write_text("\ufeff" + "\r\n".join([f"{HEADER},products,boxes,box_labels", *rows]) + "\r\n")
    (photos / "images").mkdir()
    (photos / "b.png").rename(photos / "images" / "b.png")
    made = from_table(tmp_path / "mine.csv", photos, tmp_path / "out")
    a, b, c = made.table.to_dict("records")
    assert (a["caption"], a["labels"], a["products"]) == ("一, two", ["X", "X", "Y"], "multi")
    assert (a["boxes"], a["box_labels"]) == ([[0, 1, 2, 3], [1, 1, 9, 9]], ["X", "Y"])
    assert (b["caption"], b["labels"], b["boxes"]) == ("", ["X"], [])
    assert (c["caption"], c["labels"], c["products"]) == ("", [], None)
    assert ("caption: texts that mean 'missing'", 1) in [(row[0], row[2]) for row in made.noted]  # NA, by pandas
    assert [a["image"], b["image"]] == ["images/a.png", "images/images/b.png"]
    assert made.photos == {"a1": tmp_path / "out/images/a.png", "b1": tmp_path / "out/images/images/b.png"}
    assert made.photos["b1"].read_bytes() == (photos / "images/b.png").read_bytes()


@pytest.mark.parametrize("labels", [["X#;#Y"], [["X", "Y"]]])
def test_a_parquet_table_gives_what_a_csv_gives(photos, tmp_path, labels):
    cells = {"sample_id": [5], "split": ["val"], "caption": [None], "image": ["a.png"], "labels": labels,
             "boxes": [[[0.0, 0.0, 5.0, 5.0]]], "box_labels": [["X"]]}
    pq.write_table(pa.Table.from_pydict(cells), tmp_path / "mine.parquet")
    (tmp_path / "mine.csv").write_text(f'{BOXED}\n5,val,,a.png,X#;#Y,"[[0,0,5,5]]","[""X""]"\n')
    one = from_table(tmp_path / "mine.parquet", photos, tmp_path / "one").table
    other = from_table(tmp_path / "mine.csv", photos, tmp_path / "other").table
    assert one.to_dict("records") == other.to_dict("records")


ROW = "a1,train,cap,a.png,X"


@pytest.mark.parametrize(("content", "expected"), [
    ("", "is an empty file; save the table again"), ("\n", "is an empty file"),
    (HEADER, "the table has no rows"),
    (f"{HEADER}\n\n\n", "the table has no rows"),
    ("sample_id,split,caption,labels\na1,train,cap,X", "column image is missing"),
    (f"{HEADER},labels\n{ROW},X", "line 1: column labels occurs twice in the header ('labels', 'labels'); keep one"),
    (f"{HEADER}\na1,train,cap", "line 2: 3 fields, but the header has 5"),
    (f"{HEADER}\na1,train,cap,a.png,X,more", "line 2: 6 fields"),
    (f"{HEADER}\n{ROW}\na2,train,one, two,a.png,X", "line 3: 6 fields"),
    (f'{HEADER}\na1,train,"cap,a.png,X\n', "not a CSV table"),
    (f"{HEADER}\n{ROW}\na1,test,cap,b.png,X", "line 3, sample_id 'a1': this id occurs twice"),
    (f"{HEADER}\na1,dev,cap,a.png,X", "split 'dev' is unknown; use one of train, val, test, gallery"),
    (f"{HEADER}\n../a1,train,cap,a.png,X", "sample_id '../a1': an id must be"),
    (f"{HEADER}\na\\b,train,cap,a.png,X", "an id must be"),
    (f"{HEADER}\na\x9b1,train,cap,a.png,X", "an id must be"),
    (f"{HEADER}\na\U000e0041,train,cap,a.png,X", "an id must be"),
    (f"{HEADER}\n{'a' * 129},train,cap,a.png,X", "an id must be 1 to 128 characters"),
    (f"{HEADER}\n,train,cap,a.png,X", "an id must be"),
    (f"{HEADER}\na1,train,cap,../a.png,X", "'../a.png' must be a URL or a path below the folder"),
    (f"{HEADER}\na1,train,cap,x\\..\\..\\a.png,X", "below the folder"),
    (f"{HEADER}\na1,train,cap,/etc/hostname,X", "below the folder"),
    (f"{HEADER}\na1,train,cap,C:/a.png,X", "below the folder"),
    (f"{HEADER}\na1,train,cap,,X", "image '' must be"),
    (f"{HEADER}\na1,train,cap,none.png,X", "none.png: no such photo"),
    (f"{HEADER},products\n{ROW},several", "products 'several' is unknown; use single, multi"),
    (f"{HEADER}\na1,train,精华,a.png,X".encode("gbk"), "line 2: not UTF-8 (GBK, Latin-1, UTF-16 without"),
])
def test_a_bad_table_is_refused(photos, content, expected):
    table_refused(photos, content, expected)


BOX_FORM = "is not [x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2"


@pytest.mark.parametrize(("boxes", "labels", "expected"), [
    ("[[1, 2", '["X"]', "line 2, sample_id 'a1': field boxes: '[[1, 2' is not a list of boxes; write one in JSON"),
    ('{"x1": 0}', '["X"]', """line 2, sample_id 'a1': field boxes: '{"x1": 0}' is not a list"""),
    ("7", '["X"]', "field boxes: '7' is not a list"),
    ("[[0, 0, 5, 5]]", '["X"', "line 2, sample_id 'a1': field box_labels: '[\"X\"' is not a list"),
    ("[[5, 0, 5, 9]]", '["X"]', BOX_FORM), ("[[9, 0, 5, 9]]", '["X"]', BOX_FORM), ("[[0, 9, 5, 9]]", '["X"]', BOX_FORM),
    ("[[NaN, 0, 5, 9]]", '["X"]', BOX_FORM), ("[[0, 0, Infinity, 9]]", '["X"]', BOX_FORM),
    (f"[[0, 0, {10 ** 40}, 9]]", '["X"]', BOX_FORM),
    ("[[0, 0, 5]]", '["X"]', BOX_FORM), ('[["0", 0, 5, 9]]', '["X"]', BOX_FORM), ("[7]", '["X"]', BOX_FORM),
    ("[[0, 0, 5, 9]]", "", "field box_labels: 0 labels for 1 boxes"),
    ("[[0, 0, 5, 9]]", '["X", "Y"]', "field box_labels: 2 labels for 1 boxes")])
def test_bad_boxes_are_refused(photos, boxes, labels, expected):
    cells = ",".join('"' + cell.replace('"', '""') + '"' for cell in (boxes, labels))
    table_refused(photos, f"{BOXED}\na1,test,cap,a.png,X,{cells}\n", expected)


def test_boxes_without_a_column_of_their_labels_are_refused(photos):
    table_refused(photos, f'{HEADER},boxes\n{ROW},"[[0, 0, 5, 5]]"\n', "field box_labels: 0 labels for 1 boxes")


def faults(photos: Path, content: str | bytes, name: str = "mine.csv") -> list[str]:
    """The lines of a refused table without the file's name."""
    file = write_table(photos.parent, content, name)
    with pytest.raises(InputError) as error:
        from_table(file, photos, photos.parent / "out")
    assert not (photos.parent / "out").exists()
    return [line.removeprefix(f"{file}, ") for line in str(error.value).splitlines()]


def test_every_fault_is_found_in_one_pass_each_with_its_line(photos):
    (photos / "empty.png").write_bytes(b"")
    (photos / "out.png").symlink_to("/etc/hostname")
    os.mkfifo(photos / "pipe.png")
    content = f"""{BOXED},products,mirror
a1,train,"a caption

over lines",a.png,X,,,,

a2,dev,,a.png,X,,,,
a3,train,,none.png,X,"[[1, 2","[""x",,
a/4,train,,b.png,X,,,several,file:///etc
a1,test,,b.png,X,"[[5, 0, 5, 9], [true, 0, 5, 9]]","[""X""]",,
a6,train,,empty.png
a7,train,,empty.png,X,,,,
,,,,,,,,
a8,,,../../etc/passwd,X,,,,
a9,,,out.png,X,,,,
a\u202e10,,,pipe.png,X,,,,
b1,,,b.png,X,{"[" * 100_000},,,
"""
    found = faults(photos, content)
    expected = [
        ("line 10: ", "4 fields, but the header has 9"),
        ("line 9, sample_id 'a1': ", "mine.csv, line 2 has it too"),
        ("line 6, sample_id 'a2': ", "split 'dev' is unknown"),
        ("line 7, sample_id 'a3': ", "field boxes: '[[1, 2' is not a list"),
        ("line 8, sample_id 'a/4': ", "an id must be"), ("line 8, sample_id 'a/4': ", "mirror 'file:///etc' must be"),
        ("line 8, sample_id 'a/4': ", "products 'several' is unknown"),
        ("line 9, sample_id 'a1': ", "1 labels for 2 boxes"), ("line 9, sample_id 'a1': ", "'[5, 0, 5, 9]' is not"),
        ("line 9, sample_id 'a1': ", "'[True, 0, 5, 9]' is not"),
        ("line 13, sample_id 'a8': ", "'../../etc/passwd' must be"), ("line 15, sample_id", "an id must be"),
        ("line 16, sample_id 'b1': ", "field boxes: '[[["),
        ("line 7, sample_id 'a3': ", "none.png: no such photo"),
        ("line 11, sample_id 'a7': ", "empty.png: the photo does not"),
        ("line 14, sample_id 'a9': ", "out.png: a link that leaves"),
        ("line 15, sample_id", "pipe.png: a folder or a pipe; name a photo")]
    assert len(found) == len(expected)
    for line, (place, text) in zip(found, expected, strict=True):
        assert line.startswith(place) and text in line, line


@pytest.mark.parametrize(("encoding", "legal"), [
    ("gbk", False), ("gb18030", False), ("big5", False), ("utf-16", True), ("utf-8", True), ("utf-8-sig", True)])
def test_encodings(photos, encoding, legal):
    text = f"{HEADER}\na1,train,玻尿酸精華液 保濕面霜禮盒 三件套,a.png,X\n"
    if encoding in ("gbk", "gb18030"):
        text = text.replace("華", "华").replace("濕", "湿").replace("禮", "礼")
    if not legal:
        assert "line 2: not UTF-8" in faults(photos, text.encode(encoding))[0]
    else:
        made = from_table(write_table(photos.parent, text.encode(encoding)), photos, photos.parent / "out")
        assert made.table["caption"][0].startswith("玻尿酸") and list(made.table["labels"]) == [["X"]]


def test_a_nul_half_a_character_and_an_open_quote_are_one_line_each(photos):
    assert "line 2: not UTF-8" in faults(photos, f"{HEADER}\na1,train,\0,a.png,X")[0]
    half = faults(photos, f'{HEADER}\na1,train,,a.png,"[""a\\ud800b""]"\n')
    assert half == ["line 2: field labels: ['a\\ud800b'] holds half of a character; write it whole"]
    found = faults(photos, f'{HEADER}\na0,dev,,a.png,X\na1,train,"open,a.png,X\na2,train,x,a.png,X\n')
    assert "line 3: not a CSV table from here on" in found[0] and "split 'dev'" in found[1]


def test_a_caption_may_be_long(photos):
    table = write_table(photos.parent, f"{HEADER}\na1,train,{'x' * 200_000},a.png,X")
    made = from_table(table, photos, photos.parent / "out")
    assert len(made.table["caption"][0]) == 200_000


def test_what_stands_in_the_way_of_the_photos_is_named(photos):
    (photos.parent / "out").mkdir()
    (photos.parent / "out" / "images").symlink_to(photos.parent / "nowhere")
    table = write_table(photos.parent, f"{HEADER}\na1,train,x,a.png,X")
    refused(lambda: from_table(table, photos, photos.parent / "out"), "images: stands where the folder of photos")
    refused(lambda: from_table(table, photos, photos.parent / "new", columns="image=image,caption=image"),
            "image is named twice")


def test_two_columns_are_enough_and_an_unknown_one_is_named(photos):
    made = from_table(write_table(photos.parent, "image , sample_id,colour\na.png, a1 ,red\nb.png,b1,\n"), photos,
                      photos.parent / "out")
    assert made.table[["sample_id", "split", "caption"]].values.tolist() == [["a1", "train", ""], ["b1", "train", ""]]
    assert list(made.table["labels"]) == [[], []] and list(made.table["boxes"]) == [[], []]
    assert [row[:4] for row in made.noted] == [("columns that are not known here", "all", 1, "'colour'")]


def test_two_rows_may_show_one_photo_and_windows_paths_work(photos, tmp_path):
    (photos / "sub").mkdir()
    (photos / "a.png").rename(photos / "sub" / "a.png")
    made = from_table(write_table(tmp_path, f"{HEADER}\na1,train,,sub\\a.png,\na2,test,,./sub/a.png,X\n"), photos,
                      tmp_path / "out")
    assert list(made.table["image"]) == ["images/sub/a.png"] * 2 and set(made.photos) == {"a1", "a2"}


def test_a_missing_images_folder_is_one_line(photos):
    file = write_table(photos.parent, f"{HEADER}\n{ROW}\nb1,train,,b.png,")
    refused(lambda: from_table(file, photos / "nowhere", photos.parent / "out"), "nowhere: no such folder")


# ----------------------------------------------------------------------------------------------- growing


def test_rows_and_photos_are_added_and_the_old_ones_stay(photos, tmp_path):
    def made(rows: str, add: bool = True):
        return from_table(write_table(tmp_path, f"{HEADER}\n{rows}\n"), photos, tmp_path / "out", add)

    old, photo = made(ROW, add=False).table.to_dict("records"), (tmp_path / "out/images/a.png").stat().st_mtime_ns
    grown = made(f"b1,test,new,b.png,Y\n{ROW}")
    assert grown.table.to_dict("records")[:1] == old and list(grown.table["sample_id"]) == ["a1", "b1"]
    assert set(grown.photos) == {"a1", "b1"} and (tmp_path / "out/images/a.png").stat().st_mtime_ns == photo
    before = files_below(tmp_path / "out")
    refused(lambda: made(ROW, add=False), "a catalog with other rows is there already", "--add", "--out")
    refused(lambda: made("a1,test,cap,b.png,X"), "line 2, sample_id 'a1': the catalog has this id with other content")
    Image.new("RGB", (9, 9)).save(photos / "a.png")
    refused(lambda: made("c1,test,cap,a.png,X"), "line 2, sample_id 'c1'", "another photo of this name is in")
    assert files_below(tmp_path / "out") == before


@pytest.mark.parametrize("add", [False, True])
def test_an_interrupt_between_photos_leaves_the_catalog_as_it_was(photos, tmp_path, monkeypatch, add):
    out = tmp_path / "out"
    if add:
        from_table(write_table(tmp_path, f"{HEADER}\nz,train,,b.png,\n"), photos, out)
    before = files_below(out)
    file, copy = write_table(tmp_path, f"{HEADER}\n{ROW}\nb1,test,,images/b2.png,X\n"), shutil.copyfile
    (photos / "images").mkdir()
    copy(photos / "b.png", photos / "images" / "b2.png")

    def interrupted(source: Path, target: Path) -> None:
        if source.name == "b2.png":
            target.write_bytes(source.read_bytes()[:20])
            raise KeyboardInterrupt
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        from_table(file, photos, out, add)
    after = files_below(out)
    assert set(after) - set(before) == {"images/a.png"} and before.items() <= after.items()
    monkeypatch.undo()
    assert len(from_table(file, photos, out, add).photos) == 2 + add


def test_two_commands_that_add_at_once_lose_no_row(photos, tmp_path, monkeypatch):
    out, copy = tmp_path / "out", shutil.copyfile
    from_table(write_table(tmp_path, "sample_id,image\na1,a.png\n"), photos, out)
    later = write_table(tmp_path, "sample_id,image\nc1,b.png\n", "later.csv")

    def another_comes_between(source: Path, target: Path) -> None:
        monkeypatch.setattr(shutil, "copyfile", copy)
        copy(source, target)
        from_table(later, photos, out, add=True)

    monkeypatch.setattr(shutil, "copyfile", another_comes_between)
    made = from_table(write_table(tmp_path, "sample_id,image\nb1,b.png\n"), photos, out, add=True)
    assert list(made.table["sample_id"]) == list(read_catalog(out).table["sample_id"]) == ["a1", "c1", "b1"]


@pytest.mark.parametrize("stands", ["link", "folder", "file above"])
def test_what_stands_where_a_photo_is_to_go_stays(photos, tmp_path, stands):
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    if stands == "link":
        (out / "images" / "a.png").symlink_to(tmp_path / "nowhere")
    elif stands == "folder":
        (out / "images" / "a.png").mkdir()
    else:
        (out / "images").rmdir()
        (out / "images").write_text("mine")
    before = sorted(out.rglob("*"))
    file = write_table(tmp_path, "sample_id,image\na1,a.png\n")
    refused(lambda: from_table(file, photos, out), "line 2, sample_id 'a1'", str(out / "images"), "; re")
    assert sorted(out.rglob("*")) == before and (stands != "link" or (out / "images" / "a.png").is_symlink())


@pytest.mark.parametrize(("content", "expected"), [
    (b"PK\x03\x04\x14\0", "an Excel sheet"), (b"\x1f\x8b\x08", "packed; unpack it"), (b"ARROW1\0\0", "a Feather file"),
    (b'{"image": "a.png"}\n', "JSON; save the table as CSV"), (b"PAR1", "not a readable parquet file")])
def test_what_is_no_csv_table_is_named(photos, content, expected):
    table_refused(photos, content, expected)


def test_a_date_out_of_range_and_bytes_in_a_parquet_table_are_one_line_and_decimals_are_numbers(photos, tmp_path):
    def made(**cells: pa.Array):
        pq.write_table(pa.table({"image": ["a.png"], "sample_id": ["a1"]} | cells), tmp_path / "mine.parquet")
        return from_table(tmp_path / "mine.parquet", photos, tmp_path / "out")

    refused(lambda: made(caption=pa.array([2**62], pa.timestamp("us"))), "mine.parquet: not a readable parquet file")
    refused(lambda: made(caption=pa.array([b"a"])), "row 1: field caption: b'a' is no text")
    whole = made(labels=pa.array([Decimal("3.00")]), caption=pa.array([1.5])).table
    assert list(whole["labels"]) == [["3"]] and list(whole["caption"]) == ["1.5"]


def test_a_missing_table_and_a_damaged_parquet_table_are_named(tmp_path):
    refused(lambda: from_table(tmp_path / "no.csv", tmp_path, tmp_path / "out"), "no.csv: cannot be read")
    (tmp_path / "mine.parquet").write_text("hello")
    refused(lambda: from_table(tmp_path / "mine.parquet", tmp_path, tmp_path / "out"), "mine.parquet",
            "not a readable parquet file")


@pytest.mark.parametrize(("column", "value", "expected"), [("sample_id", None, "an id must be"),
                                                           ("image", None, "image '' must be"),
                                                           ("split", 3, "split '3' is unknown")])
def test_nulls_and_numbers_in_a_parquet_table_are_refused(photos, tmp_path, column, value, expected):
    cells = {"sample_id": ["a1"], "split": ["train"], "caption": ["x"], "image": ["a.png"], "labels": [["X"]]}
    pq.write_table(pa.Table.from_pydict(cells | {column: [value]}), tmp_path / "mine.parquet")
    refused(lambda: from_table(tmp_path / "mine.parquet", photos, tmp_path / "out"), "row 1", expected)
    assert not (tmp_path / "out").exists()


def test_a_parquet_table_with_a_column_twice_and_one_with_odd_cells(photos, tmp_path):
    twice = pa.table([pa.array(["a"]), pa.array(["a.png"]), pa.array(["b.png"])], names=["sample_id", "image", "image"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    refused(lambda: from_table(tmp_path / "twice.parquet", photos, tmp_path / "out"), "twice.parquet")
    cells = {"sample_id": ["a"], "image": ["a.png"], "boxes": [3.5], "split": ["dev"], "labels": [[None]]}
    pq.write_table(pa.Table.from_pydict(cells), tmp_path / "odd.parquet")
    with pytest.raises(InputError) as error:
        from_table(tmp_path / "odd.parquet", photos, tmp_path / "out")
    first, second = str(error.value).splitlines()
    assert "split 'dev'" in first and "row 1, sample_id 'a': field boxes: '3.5' is not a list" in second


# ----------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(("kind", "values"), [
    ("csv", ["nan", "NULL", "['']", "0", "3.0"]), ("csv", ["N/A", "None#;#", '"[""NaN""]"', "['0']", "[3]"]),
    ("parquet", [["nan"], [None], [""], ["0"], ["3"]]), ("parquet", ["<NA>", "#N/A", None, "0", "3"]),
    ("parquet", [None, float("nan"), None, 0.0, 3.0])])
def test_labels_that_mean_missing_are_none_and_zero_is_one(photos, tmp_path, kind, values):
    if kind == "csv":
        rows = "".join(f"a{number},a.png,{cell}\n" for number, cell in enumerate(values))
        file = write_table(tmp_path, f"sample_id,image,labels\n{rows}")
    else:
        file = tmp_path / "mine.parquet"
        cells = {"sample_id": list(range(5)), "image": ["a.png"] * 5, "labels": values}
        pq.write_table(pa.Table.from_pydict(cells), file)
    made = from_table(file, photos, tmp_path / "out")
    assert list(made.table["labels"]) == [[], [], [], ["0"], ["3"]]
    assert list(made.table["sample_id"])[0] in ("0", "a0")
    written = [row[2] for row in made.noted if row[0] == "labels that mean 'missing'"]
    assert written == ([] if values[1] != values[1] else [2 if None in values else 3])  # null is said as unlabelled


@pytest.mark.parametrize("cell", [
    "['a', 'b'", "[1 2 3]", "[1. nan]", "set()", "{1: 2}", "array(['A', 'B'], dtype=object)",
    [["A"], ["B"]], {"n": "A"}, {"n": "None"}, [b"A"], b"A", [("k", "A")]])
def test_labels_that_are_no_texts_are_a_fault_and_are_never_one_label(photos, tmp_path, cell):
    name = "mine.csv" if isinstance(cell, str) else "mine.parquet"
    if isinstance(cell, str):
        write_table(tmp_path, f'{HEADER}\na1,train,cap,a.png,"{cell}"\n')
    else:
        pq.write_table(pa.table({"sample_id": ["a1"], "image": ["a.png"], "labels": [cell]}), tmp_path / name)
    refused(lambda: from_table(tmp_path / name, photos, tmp_path / "out"), "sample_id 'a1': field labels: ",
            "is not a list of texts; write one in JSON")
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------- boxes


def boxed(photos: Path, boxes: list, photo: str = "a.png"):
    cells = {"sample_id": ["a1"], "image": [photo], "boxes": [boxes], "box_labels": [["X"] * len(boxes)]}
    pq.write_table(pa.Table.from_pydict(cells), photos.parent / "boxed.parquet")
    return from_table(photos.parent / "boxed.parquet", photos, photos.parent / "out")


@pytest.mark.parametrize("box", [[500, 500, 900, 900], [-500, -500, -10, -10], [6, 6, 90, 90], [0, 0, 20, 34],
                                 [-3, 0, 9, 9], [20, 5, 21, 9], [0.1, 0.1, 0.5, 0.6]])
def test_a_box_of_another_size_than_the_photos_is_refused(photos, box):
    with pytest.raises(InputError, match=r"row 1, sample_id 'a1': field boxes: .* is not in the photo of 20×30 pixels"):
        boxed(photos, [[0.0, 0.0, 20.0, 30.0], [float(side) for side in box]])
    assert not (photos.parent / "out").exists()


def test_a_box_a_pixel_or_two_over_the_edge_is_cut_and_counted(photos):
    made = boxed(photos, [[-1.0, 0.0, 22.0, 30.5], [1.0, 2.0, 3.0, 4.0]])
    assert made.table["boxes"][0] == [[0, 0, 20, 30], [1, 2, 3, 4]]
    assert [row[:3] for row in made.noted] == [("boxes a pixel or two over the edge", "all", 1)]


def test_boxes_are_measured_in_the_upright_photo(photos):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 10)).save(photos / "turned.jpg", exif=turned)
    with pytest.raises(InputError, match="10×40 pixels"):
        boxed(photos, [[0.0, 0.0, 40.0, 10.0]], "turned.jpg")
    assert boxed(photos, [[0.0, 0.0, 10.0, 40.0]], "turned.jpg").photos


# ----------------------------------------------------------------------------------------------- dialects


@pytest.mark.parametrize("content", [
    "sample_id;image;split;caption\na1;a.png;test;one, two\n",
    "sample_id\timage\tsplit\tcaption\na1\ta.png\ttest\tone, two",
    "sample_id|image|split|caption\na1|a.png|test|one, two\n",
    'Sample ID,IMAGE, Split ,"Caption"\na1,a.png,test,"one, two"\n',
    'sample_id,image,split,caption,,\na1,a.png,test,"one, two",,\n',
    '\n\nsample-id,image,split,caption\na1,a.png,test,"one, two",,,\n',
    '"sample_id";"image";"split";"caption"\r\n"a1";"a.png";"test";"one, two"\r\n',
    'sep=;\r\nsample_id;image;split;caption\r\na1;a.png;test;one, two\r\n'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_headers_and_empty_columns(photos, tmp_path, content, encoding):
    made = from_table(write_table(tmp_path, content.encode(encoding)), photos, tmp_path / "out")
    assert made.table[["sample_id", "image", "split", "caption"]].values.tolist() == [
        ["a1", "images/a.png", "test", "one, two"]]
    assert made.noted == ()


def test_a_cell_below_no_name_is_a_fault_and_lines_are_counted_over_quoted_cells(photos):
    rows = 'a1;a.png;"over\ntwo\nlines";;\na2;a.png;x;;lost\na3;none.png;;;\n'
    found = faults(photos, f"sample_id;image;caption;;\n{rows}")
    assert found[0] == "line 5: 5 fields, but the header has 3; quote cells that hold ';'"
    assert found[1].startswith("line 6, sample_id 'a3'") and len(found) == 2


@pytest.mark.parametrize(("text", "encoding"), [
    ("crème brûlée", "latin-1"), ("“naïve” café", "cp1252"), ("保湿精华", "gb18030"), ("cap", "utf-16-le")])
def test_an_encoding_is_never_guessed(photos, text, encoding):
    head = f"{HEADER}\n".encode()
    assert "line 2: not UTF-8 (" in faults(photos, head + f"a1,train,{text},a.png,".encode(encoding))[0]


def test_columns_are_mapped_and_rows_without_an_id_are_numbered(photos, tmp_path):
    file = write_table(tmp_path, "filepath\ttitle\timage\na.png\tone\tx\nb.png\ttwo\ty\n", "open clip.tsv")
    made = from_table(file, photos, tmp_path / "out", columns="image=filepath, caption=Title")
    assert made.table[["sample_id", "image", "caption"]].values.tolist() == [
        ["open-clip-1", "images/a.png", "one"], ["open-clip-2", "images/b.png", "two"]]
    assert [row[:3] for row in made.noted] == [
        ("columns that are not known here", "all", 1), ("rows without sample_id", "all", 2)]


# ----------------------------------------------------------------------------------------------- broken photos


def test_broken_photos_are_left_out_counted_and_listed(photos, tmp_path):
    (photos / "empty.jpg").touch()
    rows = "a1,a.png,\na2,none.png,\na3,empty.jpg,\na4,b.png,\na5,http://127.0.0.1/x.jpg,\n"
    file = write_table(tmp_path, f"sample_id,image,labels\n{rows}")
    refused_lines = faults(photos, f"sample_id,image,labels\n{rows}")
    made = from_table(file, photos, tmp_path / "out", skip_broken=True)
    assert list(made.table["sample_id"]) == ["a1", "a4", "a5"]
    assert [row[:3] for row in made.noted] == [("rows without a readable photo", "all", 2)]
    listed = (tmp_path / "out" / "faults.csv").read_text(encoding="utf-8-sig")
    assert len(refused_lines) == 2 and all(line.partition(":")[0] in listed for line in refused_lines)
    later = write_table(tmp_path, "sample_id,image\nc1,b.png\nc2,gone.png\n", "later.csv")
    for _ in range(2):
        from_table(later, photos, tmp_path / "out", add=True, skip_broken=True)
    kept = (tmp_path / "out" / "faults.csv").read_text(encoding="utf-8-sig")
    assert kept.startswith(listed) and kept.count("gone.png") == 1 and len(kept.splitlines()) == 4
    (tmp_path / "out" / "faults.csv").write_text(f'{kept.splitlines()[0]}\n"open', encoding="utf-8-sig")  # damaged
    from_table(later, photos, tmp_path / "out", add=True, skip_broken=True)
    assert len((tmp_path / "out" / "faults.csv").read_text().splitlines()) == 2
    all_broken = write_table(tmp_path, "sample_id,image\na2,none.png\n")
    refused(lambda: from_table(all_broken, photos, tmp_path / "none", skip_broken=True), "none.png: no such photo")
    doubled = write_table(tmp_path, "sample_id,image\na1,a.png\na1,b.png\na2,none.png\n")
    refused(lambda: from_table(doubled, photos, tmp_path / "none", skip_broken=True), "this id occurs twice")
    assert not (tmp_path / "none").exists()


def test_each_photo_is_decoded_once(photos, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(own_table, "load_photo", lambda path: calls.append(path) or load_photo(path))
    file = write_table(tmp_path, "sample_id,image\na1,a.png\na2,a.png\na3,b.png\n")
    from_table(file, photos, tmp_path / "out")
    assert sorted(path.name for path in calls) == ["a.png", "b.png"]


def test_strict_finds_leaks_before_anything_is_copied(photos, tmp_path):
    file = write_table(tmp_path, f"{HEADER}\na1,train,,a.png,\na2,test,x y,sub/a.png,X\n")
    (photos / "sub").mkdir()
    shutil.copyfile(photos / "a.png", photos / "sub" / "a.png")
    with pytest.raises(InputError, match="--strict: test: 1 photo that stands in train too"):
        from_table(file, photos, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()


def test_a_link_in_the_catalog_that_leads_out_is_refused(photos, tmp_path):
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "images" / "sub").symlink_to(tmp_path / "elsewhere")
    (photos / "sub").mkdir()
    shutil.copyfile(photos / "a.png", photos / "sub" / "c.png")
    file = write_table(tmp_path, "sample_id,image\na1,sub/c.png\n")
    refused(lambda: from_table(file, photos, tmp_path / "out"), "a link leads out of the catalog")
    assert not list((tmp_path / "elsewhere").iterdir())
