"""The catalog's folder: written whole or not at all, checked when read, and growing without losing a row."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import make_catalog, make_sample, refused

from capture_lib.catalog import table as catalog


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
    catalog.write_catalog(catalog.merged(tmp_path, rows, True, []), tmp_path)
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
    refused(lambda: catalog.merged(tmp_path, rows, True, []), expected)
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
