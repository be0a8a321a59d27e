"""Every benchmark, at toy size: it runs, and gives the figures that it promises."""

import json
import math

import numpy as np
import pytest
import torch

from capture_lib import bench, bench_pretraining, pretrain
from capture_lib.batches import BatchSettings
from capture_lib.bench_pretraining import Sizes
from capture_lib.losses import pretext_losses
from capture_lib.model import Capture, CaptureSettings

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
    assert set(query["parts_ms"]) == {"read", "propose", "propose and describe", "embed", "search"}
    assert all(0 < value < 5 * query["ms"] for value in query["parts_ms"].values())


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
