"""The profiles: how large each stage is, as `profiles.toml` says. One code path; only the numbers differ."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from capture_lib.experiments.variants import ComparisonSettings
from capture_lib.model.capture import CaptureSettings
from capture_lib.proposals.composites import SynthesisSettings
from capture_lib.proposals.detector import DetectorSettings
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.proposals.region_encoder import EncoderSettings
from capture_lib.proposals.region_store import RegionSettings
from capture_lib.retrieval.embedding import RetrievalSettings
from capture_lib.training.batches import BatchSettings
from capture_lib.training.pretrain import PretrainSettings
from capture_lib.utils import InputError, read_text
from capture_lib.world import SIZES, WorldSettings

PARTS = {  # that may be pretrained: stage and setting of each
    "encoder": ("encoder", "pretrained"), "proposals": ("detector", "pretrained"),
    "embedder": ("retrieval", "embedder")}


@dataclass(frozen=True)
class Profile:
    """The settings of every stage; the world is None where a catalog must be named."""

    name: str
    world: WorldSettings | None = None
    synthesis: SynthesisSettings = SynthesisSettings()
    detector: DetectorSettings = DetectorSettings()
    encoder: EncoderSettings = EncoderSettings()
    regions: RegionSettings = RegionSettings()
    batches: BatchSettings = BatchSettings()
    capture: CaptureSettings = CaptureSettings()
    pretrain: PretrainSettings = PretrainSettings()
    instances: InstanceSettings = InstanceSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    comparison: ComparisonSettings = ComparisonSettings()
    parts: str = ""  # that are pretrained, as `get` reads them


def read_profiles(file: Path) -> dict[str, Profile]:
    """Return the profiles of a TOML file by name; InputError names an unknown stage, setting or world."""
    profiles = {}
    for name, stages in tomllib.loads(read_text(file)).items():
        made = {}
        like = stages.pop("like", "")
        if like and like not in profiles:
            raise InputError(f"{file}: [{name}] like: {like!r} is no profile above this one")
        base = profiles[like] if like else Profile(name)
        for stage, values in stages.items():
            try:
                if stage == "world":
                    made[stage] = SIZES[values] if values else None
                    continue
                settings = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
                made[stage] = replace(getattr(base, stage), **settings)
            except (AttributeError, KeyError, TypeError) as error:
                raise InputError(f"{file}: [{name}] {stage}: unknown stage, setting or world ({error})") from None
        profiles[name] = replace(base, name=name, **made)
    return profiles


PROFILES = read_profiles(Path(__file__).with_suffix(".toml"))
SMALL_CAPTURE = PROFILES["cpu"].capture
TINY_CAPTURE = PROFILES["smoke"].capture


def get(name: str) -> Profile:
    """Return the profile of a name, such as "cpu" or, with pretrained parts, "cpu|encoder=NAME|embedder=FOLDER".

    InputError: there is no such profile or part.
    """
    base, *parts = name.split("|")
    if base not in PROFILES:
        raise InputError(f"profile {base!r} is unknown; use one of {', '.join(PROFILES)}")
    made = {}
    for part in parts:
        kind, _, value = part.partition("=")
        if kind not in PARTS or not value:
            raise InputError(f"profile {name!r}: {part!r} is no part; write {', '.join(PARTS)}, then = and its name")
        stage, setting = PARTS[kind]
        made[stage] = replace(made.get(stage, getattr(PROFILES[base], stage)), **{setting: value})
    return replace(PROFILES[base], parts="|".join(parts), **made)


def for_photos(profile: Profile) -> Profile:
    """Return a profile that was sized for its drawn world, for photos of a catalog: their products have any size.

    They are searched at three sides, chosen on val photos of full fridges, and read at the largest; a batch has about
    as many pixels as before. There are as many regions as in the paper's code: a photo may show a dozen products. All
    that lie apart are instances, for objectness, learned from composites, orders them badly: chosen on val photos of
    groceries held in a hand and of furnished rooms.
    """
    if profile.world is None:
        return profile
    sides = tuple(32 * round(scale * side / 96) for scale in (3, 7, 14) for side in profile.detector.search_sizes)
    regions = replace(profile.regions, max_regions=36, photo_size=max(sides),
                      batch=max(1, profile.regions.batch // 16))
    instances = replace(profile.instances, max_instances=regions.max_regions, min_odds=0.0)
    detector = replace(profile.detector, search_sizes=sides)
    return replace(profile, detector=detector, regions=regions, instances=instances)
