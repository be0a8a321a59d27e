"""Rankings on disk: the released script's figures, round trips, files with faults, what lowers the figures."""

import json
import random
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
    assert (result["queries"], result["labelled"], result["warnings"]) == (120, 120, [])


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
    assert evaluation_files.read_rankings(tmp_path / "ours.txt", rankings, "123") == rankings
    (tmp_path / "theirs.txt").write_bytes(b"\xef\xbb\xbf11,3 ,1\t\r\n\r\n12, 2\r\n")
    assert evaluation_files.read_rankings(tmp_path / "theirs.txt", rankings, "123") == rankings


@pytest.mark.parametrize(("text", "message"), [
    ("", "holds no ranking"),
    ("11,3\n,4\n", "line 2: an id is missing"),
    ("11,3,,4\n", "line 1: an id is missing"),
    ("11,3,-1,4\n", "line 1: an id is missing"),
    ("11,3\n\n11,4\n", "line 3: query '11' has a line already"),
    ("11,3,4,3\n", "line 1: gallery id '3' stands 2 times"),
    ("11,3\n99,3\n", "line 2: query id '99' is not in the lists"),
])
def test_a_faulty_rankings_file_is_refused_with_its_line(tmp_path, text, message):
    file = tmp_path / "rankings.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        evaluation_files.read_rankings(file, {"11", "12"}, {"3", "4"})
    assert str(file) in str(error.value)


@pytest.mark.parametrize(("text", "items"), [
    ("11\n", []), ("11,\n", []), ("11,-1,-1\n", []), ("11,3,4,-1,-1\n", ["3", "4"]), ("11,3,,,\n", ["3"]),
    ("11,3,nan,NULL\n", ["3"]), ("11,3,-1.0\n", ["3"]), ("11,4,3\r", ["4", "3"]),
])
def test_an_empty_ranking_is_one_and_fillers_end_a_ranking(tmp_path, text, items):
    file = tmp_path / "rankings.txt"
    file.write_text(text)
    assert evaluation_files.read_rankings(file, {"11"}, {"3", "4"}) == {"11": items}


def test_a_gallery_may_call_a_photo_minus_1(tmp_path):
    file = tmp_path / "rankings.txt"
    file.write_text("11,3,-1\n12,-1,3\n")
    assert evaluation_files.read_rankings(file, {"11", "12"}, {"3", "-1"}) == {"11": ["3", "-1"], "12": ["-1", "3"]}


@pytest.mark.parametrize(("line", "layout"), [
    ("11 3 4", "blanks"), ("11,3 4", "blanks"), ("11\t3\t4", "tabs"), ("11;3;4", "semicolons"), ("11|3|4", "bars"),
    ("11,3:0.98,4:.9", "an id and a score"), ("11 3:0.98 4:9e-1", "an id and a score"), ("11,3,0.98,4,0.9", "decimal"),
    ("11.0,3.0,4.0", "decimal"), ("11 Q0 3 1 0.98 run", "blanks, tabs"), ("11\tQ0\t3\t1\t0.98\trun", "blanks, tabs"),
    ('{"11": ["3", "4"]}', "JSON"), ('{"query": "11", "hits": [3, 4]}', "JSON"), ('[\n["11", ["3"]]]', "JSON"),
    ("11,[3, 4]", "brackets"), ('"11","3","4"', "quotes"), ("11,'3','4'", "quotes"),
])
def test_another_layout_is_named_and_the_expected_one_too(tmp_path, line, layout):
    file = tmp_path / "rankings.txt"
    file.write_text(f"{line}\n")
    with pytest.raises(InputError, match=f"line 1: .*looks like .*{layout}.*; expected query_id,gallery_id") as error:
        evaluation_files.read_rankings(file, {"11"}, {"3", "4"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fields", "place"), [
    (lambda query, hits: [field for rank, hit in enumerate(hits) for field in (hit, str(100 - rank))], "hit 2 "),
    (lambda query, hits: [field for rank, hit in enumerate(hits, 1) for field in (str(rank), hit)], "hit 1 "),
    (lambda query, hits: [query, *hits], "hit 1 "), (lambda query, hits: [f"label-{query}", *hits], "hit 1 "),
    (lambda query, hits: [*hits, f"label-{query}"], "hit 1 from the end "),
    (lambda query, hits: [hits[0], "1"], "hit 2 "),
])
@pytest.mark.parametrize("count", [2, 40])
def test_what_stands_beside_the_ids_of_each_line_is_no_miss(tmp_path, fields, place, count):
    gallery = [f"g{number}" for number in range(1_000)]
    queries = [f"q{number}" for number in range(count)]
    rankings = {query: gallery[7 * number:7 * number + 8 + number % 5] for number, query in enumerate(queries)}
    file = tmp_path / "rankings.txt"
    file.write_text("".join(",".join([query, *fields(query, hits)]) + "\n" for query, hits in rankings.items()))
    with pytest.raises(InputError, match=f"{place}is not in the gallery in {count} of .*expected query_id") as error:
        evaluation_files.read_rankings(file, dict.fromkeys(queries), dict.fromkeys(gallery))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_scattered_misses_are_no_layout(tmp_path, count):
    draw = random.Random(count)
    gallery = [f"g{number}" for number in range(1_000)]
    rankings = {f"q{number}": draw.sample([*gallery, *(f"x{number}" for number in range(400))], 100)
                for number in range(count)}
    file = tmp_path / "rankings.txt"
    file.write_text("".join(",".join([query, *hits]) + "\n" for query, hits in rankings.items()))
    assert evaluation_files.read_rankings(file, rankings, dict.fromkeys(gallery)) == rankings


def test_a_row_a_hit_is_named_once(tmp_path):
    file = tmp_path / "rankings.txt"
    file.write_text("".join(f"{query},{item},{rank}\n" for query in ("11", "12") for rank, item in enumerate("345", 1)))
    with pytest.raises(InputError, match="line 2: query '11' .*4 such lines look like a row a hit; expected") as error:
        evaluation_files.read_rankings(file, {"11", "12"}, dict.fromkeys("345"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("item", ["a b", "c:4", "d;e", "[f", "'g'", "7.5"])
def test_known_ids_are_read_whatever_they_look_like(tmp_path, item):
    file = tmp_path / "rankings.txt"
    file.write_text(f"{item},3,{item}\n")
    assert evaluation_files.read_rankings(file, {item}, {item, "3"}) == {item: ["3", item]}


@pytest.mark.parametrize(("text", "place", "theirs", "ours"), [
    ("11,003,004\n12,003\n", "line 1", "003", "3"),  # padded
    ("11,3,4\n12,images/a/4.jpg\n", "line 2", "images/a/4.jpg", "4"),  # a path, if it is the only one
    ("11,3,4\n12,4.PNG,3\n", "line 2", "4.PNG", "4"),
    ("11,x,y\n12,3\n", "line 1", "x", "3"),  # two of three are unknown
    ("0011,3,4\n0012,3\n", "line 1", "0011", "11"),
    ("11.jpg,3\n12,3\n", "line 1", "11.jpg", "11"),
    ("q-1,3\nq-2,3\n11,3\n", "line 1", "q-1", "11"),
])
def test_ids_of_another_form_are_refused_with_one_of_theirs_and_one_of_ours(tmp_path, text, place, theirs, ours):
    file = tmp_path / "rankings.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=f"{place}: .* id {theirs!r} is not in the lists.*such as {ours!r}") as error:
        evaluation_files.read_rankings(file, dict.fromkeys(["11", "12"]), dict.fromkeys(["3", "4", "b7"]))
    assert "\n" not in str(error.value)


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
        "1 of 3 queries have a label that no gallery item has",
        "1 of 3 rankings hold ids that the gallery lacks",
    ]


def test_evaluate_lists_counts_queries_without_a_ranking(lists, tmp_path):
    (tmp_path / "r.csv").write_text("d1,g1\n")
    warnings = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", resamples=10)["warnings"]
    assert warnings == ["p_test_v2.txt: 2 queries have no ranking and are left out"]


def test_evaluate_lists_says_what_is_missing(lists, tmp_path):
    (tmp_path / "r.csv").write_text("d1,g1\nq9,g1\n")
    with pytest.raises(InputError, match="line 2: query id 'q9' is not in the lists"):
        evaluation_files.evaluate_lists(lists, tmp_path / "r.csv")
    (lists / "p_gallery_v2.txt").unlink()
    with pytest.raises(InputError, match="needs the gallery list"):
        evaluation_files.evaluate_lists(lists, tmp_path / "r.csv")


def figure(result):
    return result["standard"]["mAP@10"]["value"]


def test_missing_queries_of_a_ranked_list_count_as_0_or_are_left_out(lists, tmp_path):
    (tmp_path / "r.csv").write_text("t1,g1,g2,g3\n")
    zero = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", resamples=10)
    assert (zero["queries"], figure(zero)) == (2, 0.5)  # dev has no ranking at all
    assert zero["warnings"][:2] == [
        "p_test_v2.txt: 1 queries have no ranking and count as 0 (as --missing zero says)",
        "p_dev_v2.txt: 1 queries have no ranking and are left out"]
    fewer = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", "leave-out", resamples=10)
    assert (fewer["queries"], figure(fewer)) == (1, 1.0)
    assert fewer["warnings"][0] == "p_test_v2.txt: 1 queries have no ranking and are left out"
    (tmp_path / "r.csv").write_text("t1,g1,g2,g3\nt2\n")  # an empty ranking is one
    empty = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", "leave-out", resamples=10)
    assert (empty["queries"], figure(empty)) == (2, 0.5)


def test_several_labels_of_a_gallery_photo_count_in_any_order(lists, tmp_path):
    (tmp_path / "r.csv").write_text("d1,g2,g1,g3\nt1,g1\nt2,g2\n")
    results = []
    for labels in ("z#;#y", "y#;#z"):
        file = lists / "p_gallery_v2.txt"
        file.write_text(file.read_text().replace("#####y\n", f"#####{labels}\n").replace("z#;#y", labels))
        results.append(evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", resamples=10))
    assert results[0] == results[1]
    assert figure(results[0]) == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)


def test_queries_without_labels_are_not_scored(lists, tmp_path):
    with (lists / "p_test_v2.txt").open("a") as file:
        file.writelines(f"t{number}#####caption#####http://a#####http://b#####\n" for number in (3, 4))
    (tmp_path / "r.csv").write_text("d1,g1\nt1,g1,g2,g3\nt2,g2\nt3,g1\n")
    result = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", resamples=10)
    assert (result["queries"], result["labelled"], figure(result)) == (5, 3, pytest.approx(2 / 3))
    (tmp_path / "r.csv").write_text("t3,g1\n")
    with pytest.raises(InputError, match="has a label; nothing to score"):
        evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", "leave-out")


@pytest.mark.parametrize(("name", "sample", "other"), [
    ("gallery", "g2", "p_gallery_v2.txt, line 2"), ("test", "t1", "p_test_v2.txt, line 1"),
    ("dev", "t2", "p_test_v2.txt, line 2")])
def test_an_id_that_lists_have_twice_is_refused_with_both_lines(lists, tmp_path, name, sample, other):
    file = lists / f"p_{name}_v2.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, f"{sample}#####c#####http://a#####http://b#####x"]))
    (tmp_path / "r.csv").write_text("t1,g1\n")
    place = f"{file.name}, line {len(lines) + 1}, sample_id {sample!r}"
    with pytest.raises(InputError, match=f"{place}: this id occurs twice .*{other} has it too"):
        evaluation_files.evaluate_lists(lists, tmp_path / "r.csv")


def test_ids_are_checked_as_a_catalog_does(lists, tmp_path):
    (tmp_path / "r.csv").write_text("t1,g1\n")
    gallery = lists / "p_gallery_v2.txt"
    kept = gallery.read_text()
    for sample, part in (("t1", "p_test_v2.txt, line 1, sample_id 't1': this id occurs twice"), ("", "an id must be"),
                         ("g\ufeff9", "an id must be")):
        gallery.write_text(f"{kept}\n{sample}#####c#####http://a#####http://b#####x")
        with pytest.raises(InputError, match=part):
            evaluation_files.evaluate_lists(lists, tmp_path / "r.csv")


def test_empty_rankings_are_counted_and_not_scored_alone(lists, tmp_path):
    (tmp_path / "r.csv").write_text("t1,g1\nt2\n")
    result = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", resamples=10)
    assert result["warnings"][0] == "1 of 2 rankings are empty; each counts as 0"
    (tmp_path / "r.csv").write_text("t1\nt2,-1\n")
    with pytest.raises(InputError, match="no query of .*r.csv with a hit"):
        evaluation_files.evaluate_lists(lists, tmp_path / "r.csv")


def test_more_ids_than_are_looked_at_are_said(lists, tmp_path):
    gallery = lists / "p_gallery_v2.txt"
    lines = [f"h{number}#####c#####http://a#####http://b#####w" for number in range(100)]
    gallery.write_text("\n".join([*gallery.read_text().splitlines(), *lines]))
    (tmp_path / "r.csv").write_text(",".join(["d1", *(f"h{number}" for number in range(100)), "g1"]))
    result = evaluation_files.evaluate_lists(lists, tmp_path / "r.csv", resamples=10)
    assert "1 of 1 rankings hold more than 100 ids: the rest is not looked at" in result["warnings"]
    assert result["standard"]["mAR@100"]["value"] == 0
