"""Data sets of Hugging Face as catalogs: folders in the forms that the hub knows, read by the package itself."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drawn import refused
from PIL import Image

from capture_lib import cli
from capture_lib.catalog import hub
from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import read_catalog
from capture_lib.utils import InputError

datasets = pytest.importorskip("datasets")
COLUMNS = {"image": "photo", "caption": "text", "label": "kind"}
KINDS = ["cream", "面霜"]
FEATURES = datasets.Features({"photo": datasets.Image(), "text": datasets.Value("string"),
                              "kind": datasets.ClassLabel(names=KINDS)})


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    """No test reaches for the hub; nothing waits for it."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder: Path, split: str, rows: list[dict], shard: int = 0, shards: int = 1) -> None:
    """Write rows with the columns of `FEATURES` as one file of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = {name: [row[name] for row in rows] for name in rows[0]}
    made = datasets.Dataset.from_dict(cells, features=datasets.Features({name: FEATURES[name] for name in cells}))
    made.to_parquet(folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet")


def rows_of(numbers: range) -> list[dict]:
    return [{"photo": {"bytes": photo(number), "path": None}, "text": f"text {number}", "kind": number % 2}
            for number in numbers]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data set of 12 rows in two files, and 3 rows of another split."""
    write_parquet(tmp_path / "shop", "train", rows_of(range(6)), 0, 2)
    write_parquet(tmp_path / "shop", "train", rows_of(range(6, 12)), 1, 2)
    write_parquet(tmp_path / "shop", "validation", rows_of(range(12, 15)))
    return tmp_path / "shop"


# ---- what becomes of the rows


def test_rows_of_parquet_become_a_catalog(shop, tmp_path):
    made = hub.from_dataset(str(shop), COLUMNS, tmp_path / "out", "train=train, gallery=validation")
    rows = read_catalog(tmp_path / "out").table
    assert list(rows["sample_id"]) == [*(f"shop-train-{n}" for n in range(1, 13)),
                                       *(f"shop-validation-{n}" for n in range(1, 4))]
    assert list(rows["split"]) == ["train"] * 12 + ["gallery"] * 3
    assert list(rows["caption"]) == [f"text {n}" for n in range(15)]
    assert list(rows["labels"]) == [[KINDS[n % 2]] for n in range(15)]
    assert set(rows["products"]) == {None} and made.noted == ()
    for number, path in enumerate(made.photos.values()):
        assert path.read_bytes() == photo(number)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".dataset.lock", ".lock", "catalog.parquet", "images"]


def test_a_folder_of_photos_with_its_metadata(tmp_path):
    folder = tmp_path / "mine" / "train"
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        (folder / "deep" / f"{number}.png").write_bytes(photo(number))
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(f"deep/{n}.png,面霜 {n}\n" for n in range(3)))
    made = hub.from_dataset(str(folder.parent), {"image": "image", "caption": "text"}, tmp_path / "out")
    assert list(made.table["caption"]) == ["面霜 0", "面霜 1", "面霜 2"] and list(made.table["labels"]) == [[]] * 3
    assert [path.read_bytes() for path in made.photos.values()] == [photo(number) for number in range(3)]


def test_folders_of_photos_name_their_classes(tmp_path):
    for number, kind in enumerate(["tube", "jar", "jar"]):
        (tmp_path / "mine" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / kind / f"{number}.png").write_bytes(photo(number))
    columns = {"image": "image", "caption": "label", "label": "label"}
    rows = hub.from_dataset(str(tmp_path / "mine"), columns, tmp_path / "out").table
    assert sorted(rows["caption"]) == ["jar", "jar", "tube"]
    assert [[caption] for caption in rows["caption"]] == list(rows["labels"])


def test_addresses_of_photos_stay_for_download(tmp_path):
    (tmp_path / "mine").mkdir()
    lines = [{"url": f"https://shop.example/{n}.jpg", "title": f"t{n}", "ids": [n, 7]} for n in range(3)]
    (tmp_path / "mine" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    columns = {"image": "url", "caption": "title", "label": "ids"}
    rows = hub.from_dataset(str(tmp_path / "mine"), columns, tmp_path / "out").table
    assert list(rows["image"]) == [line["url"] for line in lines] and rows["labels"][2] == ["2", "7"]


def test_text_of_a_data_set_makes_no_path(tmp_path):
    folder = tmp_path / "out dated; ../x"
    rows = [{"photo": {"bytes": photo(n), "path": "../../../evil.png"}, "text": "../../a\x1b[2J", "kind": 0}
            for n in range(2)]
    write_parquet(folder, "train", rows)
    made = hub.from_dataset(str(folder), COLUMNS, tmp_path / "out")
    assert list(made.table["sample_id"]) == ["x-train-1", "x-train-2"]
    assert all(path.resolve().is_relative_to(tmp_path / "out" / "images") for path in made.photos.values())


# ---- splits and shares


def test_shares_are_drawn_once_and_for_all(tmp_path):
    write_parquet(tmp_path / "shop", "train", rows_of(range(60)))
    split = "train=train:50%,gallery=train:25%"
    rows = hub.from_dataset(str(tmp_path / "shop"), COLUMNS, tmp_path / "one", split).table
    again = hub.from_dataset(str(tmp_path / "shop"), COLUMNS, tmp_path / "two", split).table
    assert rows.equals(again) and rows["sample_id"].is_unique
    counts = rows["split"].value_counts()
    assert 20 <= counts["train"] <= 40 and 7 <= counts["gallery"] <= 23 and len(rows) < 60


def test_shares_of_a_split():
    assert hub.split_bounds("train=train") == {"train": [("", 0.0), ("train", 1.0)]}
    assert hub.split_bounds("train=a.b:90%,test=a.b:2.5%, val=c") == {
        "a.b": [("", 0.0), ("train", 0.9), ("test", 0.925)], "c": [("", 0.0), ("val", 1.0)]}
    for text in ("", "train", "train=", "tran=train", "train=a:9", "train=a,,", "train=../a", "train=a:101%",
                 "train=a:60%,val=a:50%"):
        refused(lambda text=text: hub.split_bounds(text), "--split")


# ---- photos that are none


def test_rows_without_a_good_photo_are_left_out_and_listed(tmp_path):
    rows = rows_of(range(10))
    rows[1]["photo"] = None
    rows[2]["photo"] = {"bytes": b"<html>gone</html>", "path": None}
    for number in range(5, 10):  # "no picture yet"
        rows[number]["photo"] = rows[5]["photo"]
    write_parquet(tmp_path / "shop", "train", rows)
    made = hub.from_dataset(str(tmp_path / "shop"), COLUMNS, tmp_path / "out")
    assert list(made.table["caption"]) == ["text 0", "text 3", "text 4"] and len(made.photos) == 3
    faults = (tmp_path / "out" / "faults.csv").read_text()
    assert "row 2: there is no photo" in faults and "row 3: the answer is a web page" in faults
    assert faults.count("placeholder") == 5
    assert [line[:3] for line in made.noted] == [("rows without a readable photo", "all", 7)]


def test_one_photo_with_several_texts_is_no_placeholder(tmp_path):
    rows = rows_of(range(6))
    for row in rows:
        row["photo"] = {"bytes": photo(0), "path": "a.png"}
    write_parquet(tmp_path / "shop", "train", rows)
    assert len(hub.from_dataset(str(tmp_path / "shop"), COLUMNS, tmp_path / "out").photos) == 6


def test_a_path_that_leads_out_of_the_data_set_is_not_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(photo(1))
    rows = rows_of(range(2))
    rows[1]["photo"] = {"bytes": None, "path": str(tmp_path / "shop" / ".." / "secret.png")}
    write_parquet(tmp_path / "shop", "train", rows)
    made = hub.from_dataset(str(tmp_path / "shop"), COLUMNS, tmp_path / "out")
    assert len(made.photos) == 1 and "leads out of the data set" in (tmp_path / "out" / "faults.csv").read_text()
    (tmp_path / "secret").mkdir()
    for path in ("/etc/hostname", "hf://datasets/other/name@1/a.png", "zip://a.png::/tmp/a.zip", "../secret.png",
                 str(tmp_path / "secret")):
        for home in ("hf://datasets/owner/name@", f"{tmp_path}/shop/"):
            refused(lambda path=path, home=home: hub.photo_bytes({"path": path}, home), "leads out of")


@pytest.mark.parametrize("path", ["file:///{}", "local://{}", "simplecache::file://{}", "http://x/a.zip::{}"])
def test_no_path_with_a_scheme_is_read_whatever_the_present_folder(tmp_path, monkeypatch, path):
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "a.png").write_bytes(photo(1))
    monkeypatch.chdir(shop)
    assert hub.photo_bytes({"path": str(shop / "a.png"), "bytes": None}, f"{shop}/") == photo(1)
    refused(lambda: hub.photo_bytes({"path": path.format(shop / "a.png"), "bytes": None}, f"{shop}/"), "leads out")


def test_a_split_without_a_row_is_a_line_and_nothing_is_written(shop, tmp_path):
    refused(lambda: hub.from_dataset(str(shop), COLUMNS, tmp_path / "out", "train=train:0%"), "no row falls into")
    assert not (tmp_path / "out" / "catalog.parquet").exists()


def test_photos_of_the_hub_are_read_from_it_alone(monkeypatch):
    asked = []
    monkeypatch.setattr("fsspec.open", lambda path, mode: asked.append(path) or io.BytesIO(photo(3)))
    for path in ("hf://datasets/owner/name@1a2b/a.png", "zip://a.png::hf://datasets/owner/name@1a2b/a.zip"):
        assert hub.photo_bytes({"path": path, "bytes": None}, "hf://datasets/owner/name@") == photo(3)
        assert asked.pop() == path
    monkeypatch.setattr("fsspec.open", lambda path, mode: io.BytesIO(photo(3)).read(1, 2))  # no row's fault
    with pytest.raises(OSError, match="the same command goes on"):
        hub.photo_bytes({"path": path}, "hf://datasets/owner/name@")


# ---- going on


@pytest.mark.parametrize("moment", ["reading", "noting"])
def test_an_interrupted_command_goes_on_where_it_was(shop, tmp_path, monkeypatch, moment):
    whole = hub.from_dataset(str(shop), COLUMNS, tmp_path / "whole")
    read, noted, photo_bytes = [], [], hub.photo_bytes

    def rows_until(dataset, source) -> Iterator[dict]:
        yield from islice(dataset, 9)
        raise KeyboardInterrupt

    def dumps_twice(note, **options) -> str:
        noted.append(note)
        if len(noted) == 3:  # its photos are on disk
            raise KeyboardInterrupt
        return json.dumps(note, **options)

    monkeypatch.setattr(hub, "ROWS_A_NOTE", 4)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "photo_bytes", lambda cell, home: read.append(cell["bytes"]) or photo_bytes(cell, home))
        if moment == "reading":
            patch.setattr(hub, "rows_of", rows_until)
        else:
            patch.setattr(hub, "json", SimpleNamespace(dumps=dumps_twice))
        with pytest.raises(KeyboardInterrupt):
            hub.from_dataset(str(shop), COLUMNS, tmp_path / "out")
    assert not (tmp_path / "out" / "catalog.parquet").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").rglob("*.jpg")}
    assert len(before) == len(read) == (8 if moment == "reading" else 12)
    notes = next((tmp_path / "out").glob(".dataset-*.jsonl"))
    notes.write_text(notes.read_text() + '\n{"split": "train", "cou')  # the next note was cut off

    monkeypatch.setattr(hub, "photo_bytes", lambda cell, home: read.append(cell["bytes"]) or photo_bytes(cell, home))
    made = hub.from_dataset(str(shop), COLUMNS, tmp_path / "out")
    assert made.table.equals(whole.table) and len(made.photos) == 12 and not notes.exists()
    assert sorted(read) == sorted(map(photo, range(12)))  # each once
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_another_version_of_a_data_set_is_not_mixed_with_the_first(shop, tmp_path):
    hub.from_dataset(str(shop), COLUMNS, tmp_path / "out")
    shutil.rmtree(shop)
    write_parquet(shop, "train", [row | {"text": "new"} for row in rows_of(range(20, 22))])
    refused(lambda: hub.from_dataset(str(shop), COLUMNS, tmp_path / "out"), "a catalog is there already")
    with pytest.raises(InputError, match="the catalog has this id with other content"):
        hub.from_dataset(str(shop), COLUMNS, tmp_path / "out", add=True)
    made = hub.from_dataset(str(shop), COLUMNS, tmp_path / "new")
    assert [path.read_bytes() for path in made.photos.values()] == [photo(20), photo(21)]


def test_data_sets_are_added_to_one_catalog(shop, tmp_path):
    shutil.copytree(shop, tmp_path / "other")
    hub.from_dataset(str(shop), COLUMNS, tmp_path / "out")
    for _ in range(2):  # the second time nothing is new
        made = hub.from_dataset(str(tmp_path / "other"), COLUMNS, tmp_path / "out", "gallery=validation", add=True)
        assert list(made.table["split"]) == ["train"] * 12 + ["gallery"] * 3 and len(made.photos) == 15


# ---- what is refused


@pytest.mark.parametrize(("columns", "split", "expected"), [
    ({"image": "pic"}, "", ("--image pic: no such column; there are 'photo', 'text', 'kind'",)),
    ({"label": "id"}, "", ("--label id: no such column",)),
    ({"image": "text"}, "", ("--image text: holds neither photos nor their addresses",)),
    ({"image": "kind"}, "", ("--image kind: holds neither", "columns of photos: 'photo'")),
    ({"caption": "photo"}, "", ("--caption photo: holds no text, but Image",)),
    ({}, "train=test", ("--split test:", "has train, validation"))])
def test_columns_and_splits_that_are_not_there(shop, tmp_path, columns, split, expected):
    refused(lambda: hub.from_dataset(str(shop), COLUMNS | columns, tmp_path / "out", split), *expected)
    assert not (tmp_path / "out" / "catalog.parquet").exists() and not (tmp_path / "out" / "images").exists()


def test_bytes_are_no_caption(tmp_path):
    (tmp_path / "shop").mkdir()
    cells = {"photo": [f"http://127.0.0.1/{n}.jpg" for n in range(2)], "text": [b"hi", b"\xff"], "kind": ["a", "b"]}
    datasets.Dataset.from_dict(cells).to_parquet(tmp_path / "shop" / "train-00000-of-00001.parquet")
    refused(lambda: hub.from_dataset(str(tmp_path / "shop"), COLUMNS, tmp_path / "out"), "--caption text: holds no")


def test_names_and_folders_without_a_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit")
    wrong = {"nobody/nothing": "Couldn't reach", str(tmp_path / "empty"): "doesn't contain any data files",
             str(tmp_path / "none"): "no such folder", "csv": "no such folder", "": "no such folder",
             "hf://datasets/a/b": "no such folder", str(tmp_path / "script"): "scripts are no longer supported"}
    for name, part in wrong.items():
        refused(lambda name=name: hub.from_dataset(name, COLUMNS, tmp_path / "out"), f"--dataset {name}"[:12], part)
    assert not (tmp_path / "out").exists()


def test_a_line_says_how_to_install_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(lambda: hub.from_dataset("a/b", COLUMNS, tmp_path / "out"), "needs the package datasets", "pip install")


def test_a_stream_that_breaks_off_is_said_in_a_line(shop, tmp_path):
    (shop / "train-00001-of-00002.parquet").write_bytes((shop / "train-00001-of-00002.parquet").read_bytes()[:300])
    refused(lambda: hub.from_dataset(str(shop), COLUMNS, tmp_path / "out"), f"--dataset {shop}:")


def test_the_command(shop, tmp_path, capsys):
    def run(*options: str) -> tuple[int, str]:
        code = cli.main(["catalog", "--dataset", str(shop), "--out", str(tmp_path / "out"), *options])
        output = capsys.readouterr()
        return code, output.err if code else output.out

    assert run("--image", "photo") == (2, "capture: --dataset takes --image COLUMN and --caption COLUMN, and maybe "
                                          "--label and --split\n")
    named = ("--image", "photo", "--caption", "text", "--label", "kind")
    code, output = run(*named, "--split", "test=validation,gallery=train")
    assert code == 0 and "gallery    12" in output and "nothing is odd in it" in output
    assert run(*named)[0] == 2 and run(*named, "--columns", "a=b")[0] == 2
    sizes = {load_photo(path).shape for path in read_catalog(tmp_path / "out").photos.values()}
    assert sizes == {(12, 10, 3)}
