"""The choice of a model's size, in miniature: what the record holds."""

import json

import bench_size as size
import pytest


def test_sizes_are_compared_on_val(smoke_run, tmp_path, monkeypatch):
    monkeypatch.setattr(size, "WIDTHS", (64, 32))
    monkeypatch.setattr(size, "EPOCHS", (2,))
    monkeypatch.setattr(size, "open_run", lambda profile: smoke_run)
    assert size.main(["--profile", "smoke", "--share", "0.5", "--out", str(tmp_path / "size.json")]) == 0
    record = json.loads((tmp_path / "size.json").read_text())
    first, other = record["sizes"]
    assert record["pairs"] == round(0.5 * len(size.stages.train_samples(smoke_run)))
    assert (first["width"], other["width"]) == (64, 32) and first["epochs"] == 2
    assert first["difference"] == {"value": 0, "low": 0, "high": 0}
    assert other["difference"]["value"] == pytest.approx(other["mAP@10"]["value"] - first["mAP@10"]["value"])
    for row in record["sizes"]:
        assert 0 < row["mAP@10"]["low"] <= row["mAP@10"]["value"] <= row["mAP@10"]["high"] < 1


@pytest.mark.parametrize("options, said", [
    (["--profile", "nonsense"], "profile 'nonsense' is unknown"), (["--share", "0"], "give a share above 0"),
    (["--share", "2"], "up to 1"), (["--out", "/nowhere/size.json"], "its folder is not there"),
    (["--profile", "smoke", "--share", "0.001"], "too few to train CAPTURE")])
def test_wrong_options_end_in_one_line(smoke_run, options, said, capsys):
    try:
        code = size.main(options)
    except SystemExit as stop:  # argparse's
        code = stop.code
    assert code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_all_that_is_wide_grows_with_the_width():
    released = size.CaptureSettings()
    half = size.resized(released, 384)
    assert (half.width, half.text_ffn, half.visual_ffn, half.cross_width, half.output) == (384, 1536, 512, 256, 256)
    assert size.resized(released, 768) == released
