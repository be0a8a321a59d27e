"""The catalog's folder: written whole or not at all, checked when read, and growing without losing a row."""

import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import make_catalog, make_sample, refused
from PIL import Image

from capture_lib.catalog import table as catalog
from capture_lib.utils import write_atomically


def test_a_complete_catalog_has_no_remarks(tmp_path):
    assert make_catalog(tmp_path / "all").remarks() == []


def test_a_catalog_survives_writing_and_reading(tmp_path):
    table = make_catalog(tmp_path / "one").table
    catalog.write_catalog(table, tmp_path / "two")
    assert catalog.read_catalog(tmp_path / "two").table.to_dict("records") == table.to_dict("records")


def test_a_folder_without_a_catalog_or_with_a_damaged_one_is_named(tmp_path):
    refused(lambda: catalog.read_catalog(tmp_path), str(tmp_path), "no catalog.parquet here")
    (tmp_path / "catalog.parquet").write_bytes(b"PAR1 and no more")
    refused(lambda: catalog.read_catalog(tmp_path), "catalog.parquet", "not a readable parquet file")
    pq.write_table(pa.Table.from_pydict({"sample_id": ["a"], "split": ["val"]}), tmp_path / "catalog.parquet")
    refused(lambda: catalog.read_catalog(tmp_path), "catalog.parquet, row 1, sample_id 'a': image '' must be")


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


def test_a_photo_replaced_in_place_by_one_of_equal_size_is_noticed_and_a_copy_is_not(tmp_path):
    table = make_catalog(tmp_path / "one", train=1, gallery=1, val=0, test=0).table
    photo = tmp_path / "one" / table["image"][0]
    Image.new("RGB", (40, 30), "red").save(photo, "BMP")
    before = catalog.read_catalog(tmp_path / "one")
    first, rows = before.fingerprint(), before.row_digests(before.table)
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)  # with other times of change
    assert catalog.read_catalog(tmp_path / "two").fingerprint() == first
    size = photo.stat().st_size
    retouched = Image.new("RGB", (40, 30), "red")
    retouched.putpixel((7, 7), (255, 0, 1))
    retouched.save(photo, "BMP")
    assert photo.stat().st_size == size
    after = catalog.read_catalog(tmp_path / "one")
    assert after.fingerprint() != first
    assert (after.row_digests(after.table) != rows).tolist() == [True, False]


@pytest.mark.parametrize("sample", ["a", "a" * 128, "精" * 66, "精" * 90, "🍎" * 128])
def test_the_photo_of_any_id_has_a_name_that_file_systems_take(tmp_path, sample):
    row = {"sample_id": sample, "split": "train", "image": "https://shop/a.jpg"}
    catalog.write_catalog(pd.DataFrame([row], dtype=object), tmp_path)
    path = catalog.read_catalog(tmp_path).photo_path(sample, "https://shop/a.jpg")
    with write_atomically(path) as beside:
        Image.new("RGB", (4, 4)).save(beside, "PNG")
    assert catalog.read_catalog(tmp_path).photos == {sample: path}
    assert (path.stem == sample) == (len(sample.encode()) <= 200)  # photos fetched earlier are found


def test_photos_of_urls_lie_below_the_folder_and_none_over_another(tmp_path):
    made = catalog.Catalog(tmp_path, None)
    places = [made.photo_path(str(number), "https://shop/a.jpg") for number in range(500)]
    assert len(set(places)) == 500 and len({place.parent for place in places}) > 300
    assert all(place.is_relative_to(tmp_path / "images") for place in places)


# ------------------------------------------------------------------------------------------------ growing


def test_rows_are_added_after_the_old_ones(tmp_path):
    old = make_catalog(tmp_path).table
    sample = make_sample(tmp_path, "test", 99, [1, 2], True)
    rows = pd.DataFrame([sample, old.to_dict("records")[0]], dtype=object)
    catalog.write_catalog(catalog.merged(tmp_path, catalog.checked(rows), True, []), tmp_path)
    grown = catalog.read_catalog(tmp_path)
    assert grown.table.to_dict("records")[:-1] == old.to_dict("records")
    assert grown.table["sample_id"].iloc[-1] == "test-99" and "test-99" in grown.photos


@pytest.mark.parametrize(("change", "expected"), [
    ({"caption": "other"}, "row 1, sample_id 'train-0': the catalog has this id with other content"),
    ({"sample_id": "new", "split": "dev"}, "row 1, sample_id 'new': split 'dev' is unknown"),
    ({"sample_id": "new", "image": "/etc/hostname"}, "row 1, sample_id 'new': image '/etc/hostname' must be"),
    ({"sample_id": "new", "mirror": "ftp://a"}, "mirror 'ftp://a' must be"),
    ({"sample_id": "new", "products": "three"}, "products 'three' is unknown")])
def test_a_bad_row_is_not_added(tmp_path, change, expected):
    old = make_catalog(tmp_path).table
    before = (tmp_path / "catalog.parquet").read_bytes()
    rows = pd.DataFrame([old.to_dict("records")[0] | change], dtype=object)
    refused(lambda: catalog.merged(tmp_path, catalog.checked(rows), True, []), expected)
    assert (tmp_path / "catalog.parquet").read_bytes() == before


def test_labels_that_are_missing_where_they_are_scored_are_said(tmp_path):
    table = make_catalog(tmp_path).table
    table["labels"] = [[] if split in ("train", "test") else labels
                       for split, labels in zip(table["split"], table["labels"], strict=True)]
    catalog.write_catalog(table, tmp_path)
    assert [said for said in catalog.read_catalog(tmp_path).remarks() if "labels" in said] == [
        "split test: 4 of 4 samples have no labels"]


def test_cells_that_a_parquet_table_leaves_null_are_read_as_empty(tmp_path):
    table = make_catalog(tmp_path).table
    cells = {name: list(table[name]) for name in catalog.SCHEMA.names} | {"caption": [None] * len(table)}
    pq.write_table(pa.Table.from_pydict(cells, schema=catalog.SCHEMA), tmp_path / "catalog.parquet")
    assert set(catalog.read_catalog(tmp_path).table["caption"]) == {""}


def test_what_means_missing_is_none_where_a_catalog_is_read_or_added_to(tmp_path):
    table = make_catalog(tmp_path, train=1, gallery=1, val=0, test=1).table
    cells = {name: list(table[name]) for name in catalog.SCHEMA.names}
    cells |= {"caption": ["nan", "", "N/A soap"], "labels": [["nan"], ["NULL", None, "0"], ["None", ""]]}
    cells["box_labels"] = [["kind 0"], ["#N/A"], ["kind 0", "nan"]]
    pq.write_table(pa.Table.from_pydict(cells, schema=catalog.SCHEMA), tmp_path / "catalog.parquet")
    read = catalog.read_catalog(tmp_path)
    assert list(read.table["labels"]) == [[], ["0"], []] and list(read.table["caption"]) == ["", "", "N/A soap"]
    assert list(read.table["boxes"].map(len)) == list(read.table["box_labels"].map(len)) == [1, 0, 1]
    assert {row[0]: row[2] for row in read.noted} == {
        "labels that mean 'missing'": 5, "labels of boxes that mean 'missing'": 2,
        "caption: texts that mean 'missing'": 1}
    noted = []
    sample = pd.DataFrame([make_sample(tmp_path, "test", 99, [1, 2], True)], dtype=object)
    assert list(catalog.merged(tmp_path, catalog.checked(sample), True, noted)["labels"])[:3] == [[], ["0"], []]
    assert noted == list(read.noted)


def test_cells_of_other_types_are_faults(tmp_path):
    row = {"sample_id": "a", "split": "train", "image": "images/a.jpg"}
    for change, expected in (({"labels": "['X"}, "is not a list"), ({"boxes": 7}, "field boxes: '7' is not a list"),
                             ({"image": "a\x1b[31m.jpg"}, "must be a URL or a path"),
                             ({"image": "http://a/\x9b31m"}, "must be a URL or a path"),
                             ({"image": "精" * 90 + ".jpg"}, "must be a URL or a path")):
        table = pd.DataFrame([row | change], dtype=object)
        refused(lambda table=table: catalog.write_catalog(table, tmp_path), expected)
