"""The command for one GPU, in miniature on a CPU: what it compares and measures, how a run stops and goes on."""

import json
import os
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import bench_gpu as gpu
import bench_pretraining as speed
import pytest
import torch
from drawn import TINY, make_catalog

from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import ComparisonSettings

CPU = torch.device("cpu")


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    said = capsys.readouterr().err
    assert "no CUDA device was found; --toy" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "gpu.json").exists()


def test_losses_in_bfloat16_agree_with_float32_and_a_slip_is_seen(monkeypatch):
    found = gpu.agreement(CPU)
    assert found["agrees"] and 0 < found["max_difference_first_step"] <= found["max_difference"] < gpu.TOLERANCE
    assert found["last"][2] < found["first"][2]  # it learns
    plain = speed.PlainObjective.forward

    def unmasked(self, batch):
        return plain(self, batch | {"text_mask": torch.ones_like(batch["text_mask"])})

    monkeypatch.setattr(speed.PlainObjective, "forward", unmasked)
    assert not gpu.agreement(CPU)["agrees"]


def test_the_measured_rate_and_what_it_is_a_share_of(monkeypatch):
    measured = gpu.rate(CPU, gpu.TOY_SIZES)
    assert measured["share_of_known_peak"] == "unknown" and measured["device"] == "cpu"
    assert measured["flop_per_s"] == pytest.approx(measured["share_of_peak"] * measured["peak_flop_per_s"])
    assert measured["samples_per_s"] / measured["peer_samples_per_s"] == pytest.approx(measured["ratio"])

    def full(device: torch.device, sizes: speed.Sizes) -> dict:
        if sizes.batch > 128:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"batch": sizes.batch, "samples_per_s": 2.0, "flop_per_sample": 189e12}

    monkeypatch.setattr(speed, "measure", full)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    measured = gpu.rate(torch.device("cuda"), speed.SIZES["cuda"])
    assert (measured["batch"], measured["share_of_known_peak"]) == (128, 0.5)


def test_a_run_is_interrupted_says_how_far_it_came_and_goes_on(monkeypatch, tmp_path):
    profile = replace(TINY, comparison=ComparisonSettings(ablations=("recipe",)))
    run = Run(profile, make_catalog(tmp_path / "shop", 40, 16, 4, 4), tmp_path / "report", 0)
    monkeypatch.setattr(gpu, "open_run", lambda profile: run)
    monkeypatch.setattr(os, "setsid", lambda: None)

    def interrupted(*call: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("capture_lib.proposals.region_store.extract", interrupted)
        with pytest.raises(SystemExit, match="130"):
            gpu.make("tiny", tmp_path / "note.json")
    note = json.loads((tmp_path / "note.json").read_text())
    assert list(note["seconds"]) == ["world", "plan", "composites", "detector", "caption words", "region encoder"]
    assert note["under_way"] == "regions" and note["tasks"] > 10
    kept = (run.stages / "detector" / "stage.json").stat().st_mtime_ns
    gpu.make("tiny", tmp_path / "note.json")
    note = json.loads((tmp_path / "note.json").read_text())
    assert "under_way" not in note and len(note["seconds"]) == note["tasks"]
    assert (run.stages / "detector" / "stage.json").stat().st_mtime_ns == kept


def sleep(file: Path) -> None:
    os.setsid()
    time.sleep(600)


def fail(file: Path) -> None:
    raise SystemExit(2)


def test_work_is_stopped_when_its_time_is_over_and_a_failure_is_told():
    assert gpu.within(600, fail) == {"stopped": False, "failed": True}
    assert gpu.within(1, sleep) == {"stopped": True, "failed": False}
    assert active_children() == []


def test_the_answer_is_one_file_and_a_fault_costs_its_part_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "TOY_STEPS", 2)
    monkeypatch.setattr(gpu, "within", lambda seconds, work: {"stopped": True, "failed": False, "left": seconds})
    out = tmp_path / "gpu.json"
    assert gpu.main(["--toy", "--minutes", "60", "--out", str(out)]) == 0
    answer = json.loads(out.read_text())
    assert {"commit", "versions", "hardware", "agreement", "speed", "profile", "wall_time_s"} <= answer.keys()
    assert answer["toy"] and 0 < answer["profile"]["left"] < 3600
    monkeypatch.setattr(speed, "measure", lambda *call: 1 / 0)
    assert gpu.main(["--toy", "--out", str(out)]) == 1
    answer = json.loads(out.read_text())
    assert "ZeroDivisionError" in answer["speed"]["failed"] and answer["agreement"]["agrees"]
    assert answer["profile"]["stopped"] and [file.name for file in tmp_path.iterdir()] == ["gpu.json"]
