"""Profiles are read from a TOML file; what it misspells is named."""

from dataclasses import replace
from pathlib import Path

import pytest
from drawn import refused

from capture_lib.model.capture import CaptureSettings
from capture_lib.profiles import PROFILES, Profile, read_profiles
from capture_lib.proposals.detector import DetectorSettings
from capture_lib.world import SIZES


def test_stages_take_what_is_named_and_their_defaults(tmp_path: Path):
    file = tmp_path / "some.toml"
    file.write_text('[a]\nworld = "mini"\ndetector = {anchors = [1, 2.5]}\n[b.capture]\nwidth = 96\n[c]\n')
    assert read_profiles(file) == {
        "a": Profile("a", SIZES["mini"], detector=DetectorSettings(anchors=(1, 2.5))),
        "b": Profile("b", None, capture=CaptureSettings(width=96)), "c": Profile("c", None)}


def test_a_profile_like_another_differs_in_what_is_named(tmp_path: Path):
    file = tmp_path / "some.toml"
    file.write_text('[a]\nworld = "mini"\ncapture = {width = 96, output = 8}\n'
                    '[b]\nlike = "a"\nworld = ""\ncapture = {width = 192}\n')
    assert read_profiles(file)["b"] == Profile("b", None, capture=CaptureSettings(width=192, output=8))


@pytest.mark.parametrize("line, part", [
    ("detectors = {steps = 3}", "'detectors'"), ("detector = {step = 3}", "'step'"), ('world = "huge"', "'huge'"),
    ("detector = 3", "detector"),
    ('like = "slow"', "like"),
])
def test_what_is_unknown_is_named(tmp_path: Path, line: str, part: str):
    file = tmp_path / "some.toml"
    file.write_text(f"[quick]\n{line}\n")
    refused(lambda: read_profiles(file), "[quick]", part, "some.toml")


def test_each_profile_has_a_table_and_every_setting_can_be_a_key():
    for profile in PROFILES.values():
        hash(profile)  # lists would not do
    assert PROFILES["gpu"].capture == PROFILES["product1m"].capture == CaptureSettings()
    assert replace(PROFILES["cpu"].encoder, caption_begin=0.0, caption_weight=10.0) == PROFILES["thorough"].encoder
