"""Every benchmark, at toy size: it runs, and gives the figures that it promises."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_lib.bench_pretraining import Sizes

from capture_lib import bench, bench_pretraining, bench_search
from capture_lib.model.capture import Capture, CaptureSettings
from capture_lib.model.losses import pretext_losses
from capture_lib.training import pretrain
from capture_lib.training.batches import BatchSettings
from capture_lib.utils import InputError

MODEL = CaptureSettings(vocabulary=60, text_length=24, region_features=8, max_positions=40, width=16, text_layers=1,
                        text_heads=2, text_ffn=32, visual_layers=1, visual_heads=2, visual_ffn=32, cross_layers=1,
                        cross_heads=2, cross_width=16, joint_layers=1, joint_heads=2, output=16, dropout=0.0)
TOY = Sizes(MODEL, regions=4, batch=6, rows=20, rounds=2, steps=2, matrix=64)
SMALL = {"render": {"train": 20}, "synthesis": {"count": 3}, "regions": {}, "pretraining": {"sizes": {"cpu": TOY}},
         "search": {"asked": 10, "held": 500}, "evaluation": {"asked": 40, "held": 500}, "query": {"gallery": 200}}


@pytest.fixture(scope="module")
def results() -> dict:
    return {name: work(**SMALL[name]) for name, work in bench.BENCHMARKS.items()}


def at(results: dict, path: str) -> float:
    for name in path.split("."):
        results = results[name]
    return results


@pytest.mark.parametrize("path", [
    *(f"pretraining.cpu.{name}" for name in ("samples_per_s", "peer_samples_per_s", "ratio", "share_of_peak",
                                             "flop_per_sample", "peak_flop_per_s.bfloat16", "peak_flop_per_s.float32",
                                             "draw_bytes_per_s", "copy_bytes_per_s")),
    "evaluation.ratio", "search.ratio", "synthesis.ratio", "query.ms", "render.photos_per_s_per_core",
    "regions.photos_per_s"])
def test_every_figure_is_there(results, path):
    assert math.isfinite(at(results, path)) and at(results, path) > 0


def test_the_parts_add_up(results):
    training, query = results["pretraining"]["cpu"], results["query"]
    for name in ("samples_per_s", "peer_samples_per_s", "ratio"):
        low, high = training[f"{name}_range"]
        assert low <= training[name] <= high
    assert training["ratio_range"][1] <= training["samples_per_s_range"][1] / training["peer_samples_per_s_range"][0]
    assert 0 <= training["share_waiting_for_data"] < 1
    assert training["share_of_peak"] == pytest.approx(
        training["samples_per_s"] * training["flop_per_sample"] / training["peak_flop_per_s"]["bfloat16"])
    assert results["regions"]["bottleneck"] in results["regions"]
    assert query["fill_ms"] > 0
    assert set(query["parts_ms"]) == {"read", "propose", "propose and describe", "embed", "search"}
    assert all(0 < value < 5 * query["ms"] for value in query["parts_ms"].values())


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m capture_lib.bench_search` writes for two small galleries."""
    file = tmp_path_factory.mktemp("curves") / "search.json"
    assert bench_search.main(["--sizes", "3000x16", "500x24", "--out", str(file)]) == 0
    return file


def test_the_curves_of_search_rise_to_the_exact_result(curves):
    result, table = json.loads(curves.read_text()), bench_search.table(curves)
    assert {"hardware", "threads", "commit", "sizes", "vectors", "faiss", "written"} <= set(result)
    assert len(table) == len(result["rows"]) and set(zip(table["vectors"], table["width"], strict=True)) == {
        (3000, 16), (500, 24)}
    for (count, width, kind), rows in table.groupby(["vectors", "width", "index"]):
        recall = rows["recall@10"].to_numpy()
        assert (np.diff(recall) > -0.01).all() and recall[-1] > 0.95 and (0 <= recall).all() and (recall <= 1).all()
        assert rows["bytes"].iloc[0] >= count * width * 4
        assert (rows[["build_s", "add_100_s", "remove_100_s", "single_ms"]] > 0).all(axis=None)
        assert (kind == "exact") == (rows["setting"].tolist() == [""])
        if kind == "exact":
            assert recall.tolist() == [1] and rows["speedup"].tolist() == [1]
    row = table[(table["vectors"] == 3000) & (table["setting"] == "nprobe 4")].iloc[0]
    exact = table[(table["vectors"] == 3000) & (table["index"] == "exact")].iloc[0]
    assert row["speedup"] == pytest.approx(row["single_queries_per_s"] / exact["single_queries_per_s"])
    assert row["single_ms"] == pytest.approx(1000 / row["single_queries_per_s"])


def test_the_reference_curves_are_there():
    table = bench_search.table()
    assert set(zip(table["vectors"], table["width"], strict=True)) == set(bench_search.Sizes().galleries)
    for _, rows in table.groupby(["vectors", "width"]):
        assert set(rows["index"]) == {"exact", "ivf", "hnsw"} and rows["recall@10"].between(0, 1).all()


def test_the_vectors_of_the_curves_lie_like_photos_of_products():
    made = bench_search.Mixture()
    gallery, queries = bench_search.vectors(2_000, 32, 50, made)
    assert gallery.shape == (2_000, 32) and queries.shape == (50, 32) and gallery.dtype == np.float32
    assert np.linalg.norm(np.concatenate([gallery, queries]), axis=1) == pytest.approx(1, abs=1e-5)
    best = np.sort(queries @ gallery.T, 1)[:, -10:].mean()
    scattered = np.random.default_rng(0).normal(size=(2_000, 32))
    scattered /= np.linalg.norm(scattered, axis=1, keepdims=True)
    assert best > np.sort(queries @ scattered.T, 1)[:, -10:].mean() + 0.1  # nearer than random directions
    again, _ = bench_search.vectors(2_000, 32, 50, made)
    assert np.array_equal(gallery, again)


@pytest.mark.parametrize("sizes", ["40033", "5x8", "ax8", "100x0", "-100x8"])
def test_a_wrong_size_is_refused(sizes, tmp_path, capsys):
    assert bench_search.main([f"--sizes={sizes}", "--out", str(tmp_path / "search.json")]) == 2
    assert f"--sizes {sizes}: give COUNTxWIDTH" in capsys.readouterr().err and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="python -m capture_lib.bench_search writes it"):
        bench_search.table(tmp_path / "search.json")


def test_an_interrupted_run_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_search.Graph, "add", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert bench_search.main(["--sizes", "500x8", "--out", str(tmp_path / "search.json")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert set(bench_search.table(tmp_path / "search.json")["index"]) == {"exact", "ivf"}


def test_every_figure_has_a_line_and_json_can_hold_it(results):
    shown = bench.lines("bench", results)
    assert any(line.startswith("bench.pretraining.cpu.ratio ") for line in shown) and len(shown) > 30
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_the_peer_minimises_the_same_loss(tmp_path):
    torch.manual_seed(0)
    pairs, model = bench_pretraining.random_pairs(tmp_path, TOY), Capture(MODEL)
    batch = pairs.masked_batch(np.arange(12), BatchSettings(), torch.Generator().manual_seed(0))
    losses = pretext_losses(model, batch, model(*(batch[name] for name in pretrain.INPUTS)))
    torch.testing.assert_close(bench_pretraining.plain_loss(model, batch), sum(losses.values()))


def test_flop_are_six_a_weight_and_token_and_those_of_attention(tmp_path):
    """Two a weight forward, four backward; embeddings are looked up, which costs none."""
    none = CaptureSettings(**{**MODEL.__dict__, "text_layers": 0, "visual_layers": 0, "cross_layers": 0})
    pairs = bench_pretraining.random_pairs(tmp_path, Sizes(none, regions=4, rows=20))
    with_layer, without = (Capture(CaptureSettings(**{**none.__dict__, "joint_layers": count})) for count in (1, 0))
    counted = [bench_pretraining.count_flop(model, pairs, 6) for model in (with_layer, without)]
    tokens, width = 24 + 5, 16
    weights = sum(p.numel() for p in with_layer.joint_layers.parameters() if p.ndim == 2)
    attention = 2 * tokens * tokens * width  # queries by keys, weights by values
    assert counted[0] - counted[1] == 6 * (weights * tokens + attention)
