"""The command line: what a user types, what comes out, and one clear line for every mistake."""

import json
import shutil
from pathlib import Path

import pytest

from capture_lib import cli
from tests.drawn import make_catalog


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def complaint(capsys: pytest.CaptureFixture) -> str:
    """What was said on the error stream; never a traceback."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("capture: ")
    return said


def test_evaluate_prints_what_the_released_script_printed(shared: Path, tmp_path: Path, capsys):
    folder = shared / "reference" / "metrics_small"
    file = tmp_path / "figures.json"
    assert run("evaluate", "--lists", folder, "--rankings", folder / "retrieval_id_list.txt", "--json", file) == 0
    expected = json.loads((folder / "released_script_results.json").read_text())
    ours = json.loads(file.read_text())
    for top, figures in expected.items():
        for figure, value in figures.items():
            assert ours["released"][f"{figure}@{top.removeprefix('top')}"]["value"] == pytest.approx(value, abs=1e-9)
    assert set(ours["standard"]) == set(ours["released"])
    printed = capsys.readouterr().out
    assert "released" in printed and "standard" in printed and f"{100 * expected['top10']['mAP']:.2f}" in printed


def test_catalog_of_the_released_lists(shared: Path, tmp_path: Path, capsys):
    assert run("catalog", "--lists", shared / "product1m", "--out", tmp_path / "lists") == 0
    said = capsys.readouterr().out
    assert "test 6,547" in said and "val 2,673" in said
    assert "392 distinct labels, 26,138 label occurrences" in said
    assert "781  test       caption that stands in dev too" in said
    assert "CRLF line ends,test,6547" in (tmp_path / "lists" / "quality.csv").read_text(encoding="utf-8-sig")


def test_a_catalog_grows(tmp_path: Path, capsys):
    (tmp_path / "a.csv").write_text("sample_id,image\na,http://127.0.0.1/a.jpg\n")
    (tmp_path / "b.csv").write_text("sample_id,image\nb,http://127.0.0.1/b.jpg\n")
    (tmp_path / "product1m_train.txt").write_text("9#####cap#####http://127.0.0.1/9.jpg#####http://127.0.0.1/9m.jpg\n")
    table = ("catalog", "--images", tmp_path, "--out", tmp_path / "made", "--table")
    assert run(*table, tmp_path / "a.csv", "--add") == 2
    assert "no catalog.parquet here" in complaint(capsys)
    assert run(*table, tmp_path / "a.csv") == run(*table, tmp_path / "a.csv") == 0
    assert run(*table, tmp_path / "b.csv") == 2
    assert "--add" in complaint(capsys)
    assert run(*table, tmp_path / "b.csv", "--add") == run("catalog", "--lists", tmp_path, "--out", tmp_path / "made",
                                                           "--add") == 0
    said = capsys.readouterr().out
    assert "column split is missing" in said and "3 samples (train 3)" in said
    assert run("download", tmp_path / "made", "--export", tmp_path / "urls.parquet") == 0
    assert "urls.parquet: 3 addresses" in capsys.readouterr().out
    assert run("download", tmp_path / "made", "--import", tmp_path / "none") == 2
    assert "no such folder" in complaint(capsys)
    assert run("catalog", "--world", "mini", "--add") == 2
    assert "drawn as a whole" in complaint(capsys)


@pytest.mark.parametrize("name, samples", [("shop", 959), ("grocery", 1826), ("fridge", 55)])
def test_catalog_of_a_table(shared: Path, tmp_path: Path, capsys, name: str, samples: int):
    photos = shared / "photos" / name
    assert run("catalog", "--table", photos / "table.csv", "--images", photos, "--out", tmp_path / name) == 0
    assert f"{samples:,} samples" in capsys.readouterr().out
    assert len([file for file in (tmp_path / name / "images").rglob("*") if file.is_file()]) == samples


def test_wrong_paths_and_names(tmp_path: Path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("sample_id,split,caption,image,labels\na,nowhere,x,a.jpg,\n")
    wrong = {
        ("run", "--profile", "huge"): "profile 'huge'",
        ("run", "--profile", "product1m"): "--catalog",
        ("run", "--profile", "smoke", "--catalog", tmp_path / "none"): "no catalog.parquet",
        ("run", "--profile", "smoke", "--only", "77"): "'77'",
        ("catalog", "--lists", tmp_path / "none"): "no such folder",
        ("catalog", "--table", tmp_path / "none.csv", "--images", tmp_path): "no such table",
        ("catalog", "--table", table): "--images",
        ("catalog", "--table", table, "--images", tmp_path, "--out", tmp_path / "made"): "split 'nowhere'",
        ("catalog", "--world", "gigantic"): "mini, small, full",
        ("download", tmp_path / "none"): "no catalog.parquet",
        ("evaluate", "--lists", tmp_path / "none", "--rankings", table): "no such folder",
        ("search", tmp_path / "none", "--image", table): "no catalog.parquet",
        ("explore", tmp_path / "none"): "no catalog.parquet",
    }
    for arguments, part in wrong.items():
        assert run(*arguments) == 2, arguments
        assert part in complaint(capsys), arguments
    assert not (tmp_path / "made").exists()


def test_search_answers_from_a_photo_on_disk(smoke_report: Path, tmp_path: Path, capsys):
    from capture_lib.experiments.run import open_run

    run_ = open_run("smoke")
    query = run_.catalog.split("test").iloc[0]
    photo = tmp_path / "query.jpg"
    shutil.copyfile(run_.catalog.photos[query["sample_id"]], photo)
    picture = tmp_path / "answer.jpg"
    assert run("search", run_.catalog.folder, "--image", photo, "--caption", query["caption"],
               "--profile", "smoke", "--out", picture) == 0
    said = capsys.readouterr().out
    assert "product 1 (objectness" in said and "gallery-" in said
    assert picture.stat().st_size > 10_000
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:300])
    assert run("search", run_.catalog.folder, "--image", broken, "--profile", "smoke") == 2
    assert "does not decode" in complaint(capsys)


def test_search_without_a_caption_compares_photos(smoke_report: Path, tmp_path: Path):
    from capture_lib.experiments.run import open_run
    from capture_lib.retrieval.search import Searcher

    run_ = open_run("smoke")
    searcher = Searcher.open(run_)
    gallery = run_.catalog.split("gallery").iloc[3]
    answer = searcher.ask(run_.catalog.photos[gallery["sample_id"]])
    assert answer.hits[0][0].sample_id == gallery["sample_id"]  # a gallery photo finds itself
    assert answer.hits[0][0].score == pytest.approx(1, abs=1e-2)


def test_a_world_is_drawn_on_scenes_of_a_folder(shared: Path, tmp_path: Path, capsys):
    assert run("catalog", "--world", "mini", "--scenes", tmp_path, "--out", tmp_path / "made") == 2
    assert "scenes need four" in complaint(capsys)
    assert run("catalog", "--lists", tmp_path, "--scenes", tmp_path) == 2
    assert "--scenes and --seed go with --world" in complaint(capsys)
    assert run("catalog", "--world", "mini", "--seed", "-1", "--out", tmp_path / "made") == 2
    assert "seed -1 is negative" in complaint(capsys)
    assert not (tmp_path / "made").exists()
    assert run("catalog", "--world", "mini", "--scenes", shared / "photos" / "scenes", "--out", tmp_path / "made") == 0
    assert "train 400, gallery 200, val 40, test 40" in capsys.readouterr().out


def test_a_broken_query_photo_is_said_before_anything_is_trained(tmp_path: Path, capsys):
    (tmp_path / "query.jpg").write_bytes(b"no photo")
    make_catalog(tmp_path / "shop")
    assert run("search", tmp_path / "shop", "--image", tmp_path / "query.jpg", "--profile", "smoke") == 2
    assert "query.jpg: the photo does not decode" in complaint(capsys)
    assert not (tmp_path / "shop" / "stages").exists()
