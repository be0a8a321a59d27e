"""Rankings on disk: the released script's figures, round trips, files with faults, what lowers the figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from embedded import gallery_set, query_set

from capture_lib.experiments import evaluation_files
from capture_lib.retrieval import metrics, ranking
from capture_lib.retrieval.ranking import Ranking
from capture_lib.utils import InputError


def test_released_figures_of_the_authors_script():
    folder = Path(__file__).parents[1] / "data" / "reference" / "metrics_small"
    result = evaluation_files.evaluate_lists(folder, folder / "retrieval_id_list.txt", resamples=10)
    expected = json.loads((folder / "released_script_results.json").read_text())
    for n in metrics.CUTOFFS:
        ours = {figure: result["released"][f"{figure}@{n}"]["value"] for figure in metrics.FIGURES}
        assert ours == pytest.approx(expected[f"top{n}"], abs=1e-9)
    assert (result["queries"], result["warnings"]) == (120, [])


def test_hits_are_kept_with_their_scores_and_instances(tmp_path):
    queries, gallery = query_set(), gallery_set()
    rankings = ranking.rank(queries, gallery, "instance", "joint", depth=6)
    evaluation_files.write_rankings(tmp_path / "hits", queries.ids, gallery.ids, rankings)
    table = pd.read_parquet(tmp_path / "hits.parquet")
    assert len(table) == 7 * 6 and table["rank"].tolist() == [1, 2, 3, 4, 5, 6] * 7
    second = table[table["query_id"] == queries.ids[3]]
    assert second["gallery_id"].tolist() == [gallery.ids[row] for row in rankings[3].rows]
    assert second["score"].to_numpy() == pytest.approx(rankings[3].scores)
    assert second["instance"].tolist() == rankings[3].instances.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hits.parquet", "hits.txt"]


def test_rankings_survive_a_round_trip_and_foreign_line_ends(tmp_path):
    rankings = {"11": ["3", "1"], "12": ["2"]}
    found = [Ranking(np.array([2, 0])), Ranking(np.array([1]))]
    evaluation_files.write_rankings(tmp_path / "ours", list(rankings), ["1", "2", "3"], found)
    assert (tmp_path / "ours.txt").read_bytes() == b"11,3,1\n12,2\n"
    assert evaluation_files.read_rankings(tmp_path / "ours.txt") == rankings
    (tmp_path / "theirs.txt").write_bytes(b"\xef\xbb\xbf11,3,1\r\n\r\n12, 2\r\n")
    assert evaluation_files.read_rankings(tmp_path / "theirs.txt") == rankings


@pytest.mark.parametrize(("text", "message"), [
    ("", "holds no ranking"),
    ("11,3\n12\n", "line 2: an id is missing"),
    ("11,3,,4\n", "line 1: an id is missing"),
    ("11,3\n\n11,4\n", "line 3: query '11' has a line already"),
    ("11,3,4,3\n", "line 1: gallery id '3' stands 2 times"),
    ("11,3\n99,3\n", "line 2: query '99' is not in the query lists"),
])
def test_a_faulty_rankings_file_is_refused_with_its_line(tmp_path, text, message):
    file = tmp_path / "rankings.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        evaluation_files.read_rankings(file, queries={"11", "12"})
    assert str(file) in str(error.value)


@pytest.fixture
def lists(tmp_path):
    """Three tiny lists in the released format, the test list with CRLF line ends."""
    def line(sample, *labels):
        return "#####".join([sample, "caption", "http://a", "http://b", "#;#".join(labels)])
    (tmp_path / "p_gallery_v2.txt").write_text("\n".join([line("g1", "x"), line("g2", "y"), line("g3", "y")]))
    (tmp_path / "p_dev_v2.txt").write_text(line("d1", "x") + "\n")
    (tmp_path / "p_test_v2.txt").write_bytes(f"{line('t1', 'x', 'y')}\r\n{line('t2', 'z')}\r\n".encode())
    return tmp_path


def test_evaluate_lists_averages_dev_and_test_and_warns(lists, tmp_path):
    (tmp_path / "r.csv").write_text("d1,g1\nt1,g1,g2,g3\nt2,g2,elsewhere\n")
    result = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", resamples=10)
    assert result["queries"] == 3
    assert result["released"]["mAP@10"]["value"] == pytest.approx(2 / 3)  # t2's label is not in the gallery
    assert result["standard"]["Prec@10"]["value"] == pytest.approx((1 + 3 + 0) / 30)
    assert [warning.split(":")[0] for warning in result["warnings"]] == [
        "1 of 3 queries have no label, or one that no gallery item has",
        "1 of 3 rankings hold ids that the gallery lacks",
    ]


def test_evaluate_lists_counts_queries_without_a_ranking(lists, tmp_path):
    (tmp_path / "r.csv").write_text("d1,g1\n")
    warnings = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", resamples=10)["warnings"]
    assert warnings == ["p_test_v2.txt: 2 queries have no ranking and are left out"]


def test_evaluate_lists_says_what_is_missing(lists, tmp_path):
    (tmp_path / "r.csv").write_text("d1,g1\nq9,g1\n")
    with pytest.raises(InputError, match="line 2: query 'q9' is not in the query lists"):
        evaluation_files.evaluate_lists(lists, tmp_path / "r.csv")
    (lists / "p_gallery_v2.txt").unlink()
    with pytest.raises(InputError, match="needs the gallery list"):
        evaluation_files.evaluate_lists(lists, tmp_path / "r.csv")
