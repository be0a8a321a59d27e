"""Readers and checks: the published figures, every bad input with its one clear line, and photos of every kind."""

import io
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import make_catalog
from PIL import Image

from capture_lib import catalog
from capture_lib.catalog import InputError

HEADER = "sample_id,split,caption,image,labels"
BOXED = f"{HEADER},boxes,box_labels"
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


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two photos."""
    (tmp_path / "photos").mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 30), colour).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def refused(call, *expected: str) -> None:
    """The call raises one line that holds each of the expected pieces."""
    with pytest.raises(InputError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    for piece in expected:
        assert piece in str(error.value)


def table_refused(photos: Path, content: str | bytes, *expected: str) -> None:
    """A CSV table with this content gives one line with the file's name and `expected`, and leaves nothing behind."""
    file, out = photos.parent / "mine.csv", photos.parent / "out"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: catalog.from_table(file, photos, out), str(file), *expected)
    assert not out.exists()


# -------------------------------------------------------------------------------------------- released lists


def test_published_lists_have_their_published_size(shared, tmp_path):
    table = catalog.from_lists(shared / "product1m", tmp_path / "out").table
    labels = list(chain(*table["labels"]))
    assert table["split"].value_counts().to_dict() == {"test": 6547, "val": 2673}
    assert (len(set(labels)), len(labels)) == (392, 26_138)
    assert not any("\r" in label or "  " in label or label != label.strip() for label in labels)
    assert set(table["products"]) == {"multi"}
    assert all(map(catalog.is_url, chain(table["image"], table["mirror"])))


def test_line_ends_byte_order_mark_and_spaces_change_nothing(tmp_path):
    plain = lists(tmp_path / "plain", test=released("1", "A b#;#C") + "\n" + released("2", "A b") + "\n")
    odd = lists(tmp_path / "odd", test="\ufeff" + released("1", " A   b #;#C#;#") + "\r\n\r\n" + released("2", "A b"))
    one, other = (catalog.from_lists(folder, folder / "out").table for folder in (plain, odd))
    assert one.equals(other)
    assert list(one["labels"]) == [["A b", "C"], ["A b"]]


def test_a_caption_may_hold_a_unicode_line_separator(tmp_path):
    table = catalog.read_list(lists(tmp_path / "in", test=released("1", caption="a\u2028b\x0bc")) / TEST)
    assert list(table["caption"]) == ["a\u2028b\x0bc"]


def test_splits_and_kinds_of_released_lists(tmp_path):
    train = "\n".join(line.rsplit("#####", 1)[0] for line in (released("1"), released("2")))  # four fields
    folder = lists(tmp_path / "in", train=train, dev=released("3"), test=released("4"), gallery=released("5"))
    table = catalog.from_lists(folder, tmp_path / "out").table.set_index("sample_id")
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
    (released("1", "精华").encode("gbk"), "not UTF-8; save the file as UTF-8"),
    ("", "the list is empty"), ("\n\n", "the list is empty")])
def test_a_bad_released_list_is_refused(tmp_path, text, expected):
    folder = lists(tmp_path / "in", test=text)
    refused(lambda: catalog.from_lists(folder, tmp_path / "out"), TEST, expected)
    assert not (tmp_path / "out").exists()


def test_an_id_in_two_lists_is_refused_and_both_are_named(tmp_path):
    folder = lists(tmp_path / "in", test=released("7"), gallery=released("7"))
    refused(lambda: catalog.from_lists(folder, tmp_path / "out"), TEST, GALLERY, "'7'")


def test_two_lists_of_one_split_are_refused(tmp_path):
    folder = lists(tmp_path / "in", test=released("1"))
    (folder / "product1m_test.txt").write_text(released("2"))
    refused(lambda: catalog.find_lists(folder), TEST, "product1m_test.txt", "both test lists")


def test_a_missing_folder_a_folder_without_lists_and_a_missing_list_are_named(tmp_path):
    refused(lambda: catalog.from_lists(tmp_path / "nowhere", tmp_path / "out"), "nowhere: no such folder")
    refused(lambda: catalog.from_lists(tmp_path, tmp_path / "out"), "no list here")
    refused(lambda: catalog.read_list(tmp_path / "nowhere.txt"), "nowhere.txt: cannot be read")
    refused(lambda: catalog.read_list(tmp_path), str(tmp_path), "cannot be read")


def test_many_faults_are_counted_not_all_printed(tmp_path):
    folder = lists(tmp_path / "in", test="\n".join(["x"] * 1025))
    with pytest.raises(InputError) as error:
        catalog.from_lists(folder, tmp_path / "out")
    told = str(error.value).splitlines()
    assert len(told) == 21 and "line 20:" in told[19] and "1,005 more" in told[20]


# ------------------------------------------------------------------------------------------ remarks


def test_labels_that_the_gallery_lacks_are_a_remark_with_their_count(tmp_path):
    folder = lists(tmp_path / "in", test=released("1", "A#;#B#;#C"), dev=released("2", "B#;#A"), gallery=released("3"))
    made = catalog.from_lists(folder, tmp_path / "out")
    assert made.labels_without_gallery() == {"B", "C"}
    assert any(said.startswith("2 labels of val and test queries are not in the gallery") for said in made.remarks())


def test_remarks_name_what_is_missing(tmp_path):
    text = "\n".join([released("1", caption=""), released("2")])
    said = "\n".join(catalog.from_lists(lists(tmp_path / "in", test=text), tmp_path / "out").remarks())
    for expected in ("split train: no samples", "split val: no samples", "split gallery: no samples",
                     "2 of 2 photos are not on disk", "split test: 1 of 2 samples have no caption"):
        assert expected in said
    assert "not in the gallery" not in said  # there is no gallery to lack them


def test_a_complete_catalog_has_no_remarks(tmp_path):
    assert make_catalog(tmp_path / "all").remarks() == []


# -------------------------------------------------------------------------------------- a table of your own


def test_a_csv_table_becomes_a_catalog(photos, tmp_path):
    rows = ['a1,test,"一, two",a.png,X#;#X#;#Y,multi,"[[0, 1, 2, 3], [1, 1, 9, 9]]","[""X"", ""Y""]"',
            "b1,gallery,,images/b.png,X,single,,", "c1,train,NA,https://shop/c.jpg,,,,"]
    (tmp_path / "mine.csv").write_text("\ufeff" + "\r\n".join([f"{HEADER},products,boxes,box_labels", *rows]) + "\r\n")
    (photos / "images").mkdir()
    (photos / "b.png").rename(photos / "images" / "b.png")
    made = catalog.from_table(tmp_path / "mine.csv", photos, tmp_path / "out")
    a, b, c = made.table.to_dict("records")
    assert (a["caption"], a["labels"], a["products"]) == ("一, two", ["X", "X", "Y"], "multi")
    assert (a["boxes"], a["box_labels"]) == ([[0, 1, 2, 3], [1, 1, 9, 9]], ["X", "Y"])
    assert (b["caption"], b["labels"], b["boxes"]) == ("", ["X"], [])
    assert (c["caption"], c["labels"], c["products"]) == ("NA", [], None)  # NA is a text, not a missing value
    assert [a["image"], b["image"]] == ["images/a.png", "images/b.png"]
    assert made.photos == {"a1": tmp_path / "out/images/a.png", "b1": tmp_path / "out/images/b.png"}
    assert made.photos["b1"].read_bytes() == (photos / "images/b.png").read_bytes()


@pytest.mark.parametrize("labels", [["X#;#Y"], [["X", "Y"]]])
def test_a_parquet_table_gives_what_a_csv_gives(photos, tmp_path, labels):
    cells = {"sample_id": [5], "split": ["val"], "caption": [None], "image": ["a.png"], "labels": labels,
             "boxes": [[[0.0, 0.0, 5.0, 5.0]]], "box_labels": [["X"]]}
    pq.write_table(pa.Table.from_pydict(cells), tmp_path / "mine.parquet")
    (tmp_path / "mine.csv").write_text(f'{BOXED}\n5,val,,a.png,X#;#Y,"[[0,0,5,5]]","[""X""]"\n')
    one = catalog.from_table(tmp_path / "mine.parquet", photos, tmp_path / "one").table
    other = catalog.from_table(tmp_path / "mine.csv", photos, tmp_path / "other").table
    assert one.to_dict("records") == other.to_dict("records")


def test_a_catalog_survives_writing_and_reading(tmp_path):
    table = make_catalog(tmp_path / "one").table
    catalog.write_catalog(table, tmp_path / "two")
    assert catalog.read_catalog(tmp_path / "two").table.to_dict("records") == table.to_dict("records")


ROW = "a1,train,cap,a.png,X"


@pytest.mark.parametrize(("content", "expected"), [
    ("", "the table is empty"),
    (HEADER, "the table has no rows"),
    (f"{HEADER}\n\n\n", "the table has no rows"),
    ("sample_id,split,caption,labels\na1,train,cap,X", "column image is missing"),
    (f"{HEADER},labels\n{ROW},X", "row 1: a column name occurs twice"),
    (f"{HEADER}\na1,train,cap", "row 2: 3 fields, but the header has 5"),
    (f"{HEADER}\na1,train,cap,a.png,X,more", "row 2: 6 fields"),
    (f"{HEADER}\n{ROW}\na2,train,one, two,a.png,X", "row 3: 6 fields"),
    (f'{HEADER}\na1,train,"cap,a.png,X\n', "not a CSV table"),
    (f"{HEADER}\n{ROW}\na1,test,cap,b.png,X", "row 3, sample_id 'a1': this id occurs twice"),
    (f"{HEADER}\na1,dev,cap,a.png,X", "split 'dev' is unknown; use one of train, val, test, gallery"),
    (f"{HEADER}\n../a1,train,cap,a.png,X", "sample_id '../a1': an id must be"),
    (f"{HEADER}\na\\b,train,cap,a.png,X", "an id must be"),
    (f"{HEADER}\n{'a' * 129},train,cap,a.png,X", "an id must be 1 to 128 characters"),
    (f"{HEADER}\n,train,cap,a.png,X", "an id must be"),
    (f"{HEADER}\na1,train,cap,../a.png,X", "'../a.png' must be a URL or a path below the folder"),
    (f"{HEADER}\na1,train,cap,x\\..\\..\\a.png,X", "below the folder"),
    (f"{HEADER}\na1,train,cap,/etc/hostname,X", "below the folder"),
    (f"{HEADER}\na1,train,cap,C:/a.png,X", "below the folder"),
    (f"{HEADER}\na1,train,cap,,X", "image '' must be"),
    (f"{HEADER}\na1,train,cap,none.png,X", "none.png: no such photo"),
    (f"{HEADER},products\n{ROW},several", "products 'several' is unknown; use single, multi"),
    (f"{HEADER}\na1,train,精华,a.png,X".encode("gbk"), "not UTF-8; save the file as UTF-8"),
    (f"{HEADER}\n{ROW}".encode("utf-16"), "not UTF-8"),
])
def test_a_bad_table_is_refused(photos, content, expected):
    table_refused(photos, content, expected)


BOX_FORM = "is not [x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2"


@pytest.mark.parametrize(("boxes", "labels", "expected"), [
    ("[[1, 2", '["X"]', "row 2, field boxes: not JSON"),
    ('{"x1": 0}', '["X"]', "row 2, field boxes: must be a JSON list"),
    ("7", '["X"]', "field boxes: must be a JSON list"),
    ("[[0, 0, 5, 5]]", '["X"', "row 2, field box_labels: not JSON"),
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


def test_every_photo_that_does_not_decode_is_named(photos, tmp_path):
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes()[:60])
    (photos / "b.png").write_text("<html>403 Forbidden</html>")
    (tmp_path / "mine.csv").write_text(f"{HEADER}\n{ROW}\nb1,test,cap,b.png,X\n")
    with pytest.raises(InputError) as error:
        catalog.from_table(tmp_path / "mine.csv", photos, tmp_path / "out")
    first, second = str(error.value).splitlines()
    assert "row 2" in first and "a.png: the photo does not decode" in first
    assert "row 3" in second and "b.png: the photo does not decode" in second
    assert not (tmp_path / "out").exists()


def test_a_missing_table_and_a_damaged_parquet_table_are_named(tmp_path):
    refused(lambda: catalog.from_table(tmp_path / "no.csv", tmp_path, tmp_path / "out"), "no.csv: no such table")
    (tmp_path / "mine.parquet").write_text("hello")
    refused(lambda: catalog.from_table(tmp_path / "mine.parquet", tmp_path, tmp_path / "out"), "mine.parquet",
            "not a readable parquet file")


@pytest.mark.parametrize(("column", "value", "expected"), [("sample_id", None, "an id must be"),
                                                           ("image", None, "image '' must be"),
                                                           ("split", 3, "split '3' is unknown")])
def test_nulls_and_numbers_in_a_parquet_table_are_refused(photos, tmp_path, column, value, expected):
    cells = {"sample_id": ["a1"], "split": ["train"], "caption": ["x"], "image": ["a.png"], "labels": [["X"]]}
    pq.write_table(pa.Table.from_pydict(cells | {column: [value]}), tmp_path / "mine.parquet")
    refused(lambda: catalog.from_table(tmp_path / "mine.parquet", photos, tmp_path / "out"), "row 1", expected)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------ the folder


def test_a_folder_without_a_catalog_or_with_a_damaged_one_is_named(tmp_path):
    refused(lambda: catalog.read_catalog(tmp_path), str(tmp_path), "no catalog.parquet here")
    (tmp_path / "catalog.parquet").write_bytes(b"PAR1 and no more")
    refused(lambda: catalog.read_catalog(tmp_path), "catalog.parquet", "not a readable parquet file")
    table = pa.Table.from_pydict({"sample_id": ["a"]})
    pq.write_table(table, tmp_path / "catalog.parquet")
    refused(lambda: catalog.read_catalog(tmp_path), "catalog.parquet", "column split is missing")


def test_a_catalog_edited_by_hand_is_checked_again(tmp_path):
    table = make_catalog(tmp_path).table
    rows = pa.Table.from_pydict({name: list(table[name]) for name in catalog.SCHEMA.names}, schema=catalog.SCHEMA)
    images = pa.array(["../../etc/passwd", *table["image"][1:]])
    pq.write_table(rows.set_column(rows.schema.get_field_index("image"), "image", images), tmp_path / "catalog.parquet")
    refused(lambda: catalog.read_catalog(tmp_path), "catalog.parquet", "row 1", "../../etc/passwd")


def test_a_refused_catalog_leaves_the_old_one(tmp_path):
    table = make_catalog(tmp_path).table
    before = (tmp_path / "catalog.parquet").read_bytes()
    refused(lambda: catalog.write_catalog(table.assign(split="dev").head(1), tmp_path), "split 'dev' is unknown")
    assert (tmp_path / "catalog.parquet").read_bytes() == before


def test_the_fingerprint_follows_the_table_and_the_photos(tmp_path):
    make_catalog(tmp_path)
    before = catalog.read_catalog(tmp_path).fingerprint()
    assert catalog.read_catalog(tmp_path).fingerprint() == before
    photo = next(iter(catalog.read_catalog(tmp_path).photos.values()))
    photo.write_bytes(photo.read_bytes() + b"\0")
    changed = catalog.read_catalog(tmp_path).fingerprint()
    photo.unlink()
    gone = catalog.read_catalog(tmp_path).fingerprint()
    make_catalog(tmp_path, captions=False)
    assert len({before, changed, gone, catalog.read_catalog(tmp_path).fingerprint()}) == 4


def test_photos_of_urls_lie_below_the_folder_and_none_over_another(tmp_path):
    text = "\n".join(released(str(number)) for number in range(500))
    made = catalog.from_lists(lists(tmp_path / "in", test=text), tmp_path / "out")
    places = [made.photo_path(row.sample_id, row.image) for row in made.table.itertuples()]
    assert len(set(places)) == 500 and len({place.parent for place in places}) > 300
    assert all(place.is_relative_to(tmp_path / "out" / "images") for place in places)


# --------------------------------------------------------------------------------------------- photos


def saved(path: Path, photo: Image.Image, **options) -> np.ndarray:
    photo.save(path, **options)
    return catalog.load_photo(path)


def gradient(mode: str = "RGB", size: tuple[int, int] = (32, 24)) -> Image.Image:
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, ramp[::-1], np.full_like(ramp, 90)], 2)).convert(mode)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((4, 6, 4), np.uint8)
    alpha[:, :3] = (200, 10, 30, 255)
    alpha[:, 3] = (200, 10, 30, 51)  # a fifth
    rgb = saved(tmp_path / "a.png", Image.fromarray(alpha))
    assert rgb[0, 0].tolist() == [200, 10, 30] and rgb[0, 5].tolist() == [255, 255, 255]
    assert np.abs(rgb[0, 3].astype(int) - [244, 206, 210]).max() <= 1
    grey = saved(tmp_path / "b.png", Image.fromarray(alpha[..., [0, 3]], "LA"))
    assert grey[0, 0].tolist() == [200] * 3 and grey[0, 5].tolist() == [255] * 3
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 0, 0, 0])
    assert saved(tmp_path / "c.png", palette, transparency=1)[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk_is_near_its_rgb(tmp_path):
    rgb = np.asarray(gradient()).astype(int)
    found = saved(tmp_path / "a.tif", gradient("CMYK"))
    assert found.shape == rgb.shape and np.abs(found - rgb).max() <= 2
    assert np.abs(saved(tmp_path / "a.jpg", gradient("CMYK"), quality=98) - rgb).mean() < 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_order_and_range(tmp_path, name):
    wide = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)
    wide[-1, -1] = 65535
    found = saved(tmp_path / name, Image.fromarray(wide))
    expected = wide[..., None] // 257 + np.zeros(3, int)
    assert found.shape == (16, 32, 3) and np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB", "F", "I"])
def test_every_mode_gives_three_channels_of_bytes(tmp_path, mode):
    found = saved(tmp_path / "a.tif", gradient(mode))
    assert found.shape == (24, 32, 3) and found.dtype == np.uint8 and found.std() > 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_stands_upright(tmp_path, orientation):
    upright = np.asarray(gradient())
    turns = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.transpose(1, 0, 2),
             6: lambda p: np.rot90(p, 1), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: lambda p: np.rot90(p, -1)}
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    assert np.array_equal(saved(tmp_path / "a.png", stored, exif=exif), upright)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 100), (1, 500)])
def test_odd_sizes_load(tmp_path, size):
    assert saved(tmp_path / "a.png", Image.new("RGB", size, (9, 8, 7))).shape == (size[1], size[0], 3)


def test_of_an_animated_gif_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    found = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (found == [255, 0, 0]).all()


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the size
def test_a_decompression_bomb_is_refused_unread(tmp_path):
    Image.new("1", (20_000, 6_000)).save(tmp_path / "a.png")  # 120 million pixels, a few kilobytes
    refused(lambda: catalog.load_photo(tmp_path / "a.png"), "a.png: 20000×6000 pixels are too many")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "b.png")  # beyond Pillow's own limit too
    refused(lambda: catalog.load_photo(tmp_path / "b.png"), "b.png")


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    refused(lambda: catalog.load_photo(tmp_path / "no.jpg"), "no.jpg: no such photo")
    refused(lambda: catalog.load_photo(tmp_path), str(tmp_path), "does not decode")
    for name, content in (("empty.jpg", b""), ("page.jpg", b"<html>"), ("text.png", "中文".encode("gbk"))):
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: catalog.load_photo(tmp_path / name), f"{name}: the photo does not decode")


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_damaged_photo_gives_a_photo_or_one_line_and_nothing_else(tmp_path, kind):
    whole = io.BytesIO()
    gradient().save(whole, kind)
    rng, refusals = np.random.default_rng(0), 0
    for attempt in range(60):
        damaged = bytearray(whole.getvalue())
        if attempt % 2:
            damaged = damaged[:int(rng.integers(len(damaged) * 3 // 4))]
        else:
            for place in rng.integers(0, min(len(damaged), 300), 6):
                damaged[place] = rng.integers(256)
        (tmp_path / "a.img").write_bytes(damaged)
        try:
            photo = catalog.load_photo(tmp_path / "a.img")
            assert photo.ndim == 3 and photo.shape[2] == 3 and photo.dtype == np.uint8
        except InputError as error:
            refusals += 1
            assert len(str(error).splitlines()) == 1 and "a.img" in str(error)
    assert refusals >= 10


def test_parse_json_names_the_place():
    assert catalog.parse_json("", "here") == [] and catalog.parse_json("[1]", "here") == json.loads("[1]")
    refused(lambda: catalog.parse_json("[", "x.csv, row 3, field boxes"), "x.csv, row 3, field boxes: not JSON")
