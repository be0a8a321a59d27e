"""The choice of a model's size, in miniature: what the record holds."""

import json

import bench_size as size
import pytest


def test_sizes_are_compared_on_val(smoke_run, tmp_path, monkeypatch):
    monkeypatch.setattr(size, "WIDTHS", (64, 32))
    monkeypatch.setattr(size, "EPOCHS", (1,))
    monkeypatch.setattr(size, "open_run", lambda profile: smoke_run)
    size.main(["--profile", "smoke", "--share", "0.5", "--out", str(tmp_path / "size.json")])
    record = json.loads((tmp_path / "size.json").read_text())
    own, other = record["sizes"]
    assert record["pairs"] == round(0.5 * len(size.stages.train_samples(smoke_run)))
    assert (own["width"], other["width"]) == (64, 32) and own["epochs"] == smoke_run.profile.pretrain.epochs
    assert own["difference"] == {"value": 0, "low": 0, "high": 0}
    assert other["difference"]["value"] == pytest.approx(other["mAP@10"]["value"] - own["mAP@10"]["value"])
    assert all(0 < row["mAP@10"]["low"] <= row["mAP@10"]["value"] <= row["mAP@10"]["high"] < 1 for row in (own, other))


def test_all_that_is_wide_grows_with_the_width():
    released = size.CaptureSettings()
    half = size.resized(released, 384)
    assert (half.width, half.text_ffn, half.visual_ffn, half.cross_width, half.output) == (384, 1536, 512, 256, 256)
    assert size.resized(released, 768) == released
