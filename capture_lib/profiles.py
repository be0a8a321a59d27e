"""The profiles: how large each stage is. One code path; only the numbers differ."""

from dataclasses import dataclass, replace

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
from capture_lib.utils import InputError
from capture_lib.world import SIZES, WorldSettings

SMALL_CAPTURE = CaptureSettings(
    width=128, text_heads=4, visual_heads=4, text_ffn=512, visual_ffn=512, text_layers=2, visual_layers=2,
    cross_layers=2, cross_width=128, cross_heads=4, joint_layers=2, joint_heads=4, output=128, dropout=0.0)
TINY_CAPTURE = CaptureSettings(
    width=64, text_heads=2, visual_heads=2, text_ffn=128, visual_ffn=128, text_layers=1, visual_layers=1,
    cross_layers=1, cross_width=64, cross_heads=2, joint_layers=1, joint_heads=2, output=64, dropout=0.0)
SMALL_RATE = PretrainSettings(learning_rate=5e-4)  # thorough tries half, all and twice of it
LARGE_PHOTOS = {"foreground_size": 192, "size": 224, "workers": 16}
LARGE_DETECTOR = DetectorSettings(backbone="resnet50", size=224, search_size=320, anchors=(32, 64, 96, 144),
                                  steps=8_000, batch=64)
LARGE_ENCODER = EncoderSettings(backbone="resnet34", crop=96, channels=512, steps=8_000, batch=512,
                                learning_rate=2e-3)
LARGE_PRETRAIN = PretrainSettings(epochs=10, batch=512, learning_rate=2e-4, keep_every=500)
LARGE_REGIONS = RegionSettings(max_regions=36, batch=256, workers=16)
RATES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Profile:
    """The settings of every stage; the world is None where a catalog must be named."""

    name: str
    world: WorldSettings | None
    synthesis: SynthesisSettings = SynthesisSettings()
    detector: DetectorSettings = DetectorSettings()
    encoder: EncoderSettings = EncoderSettings()
    regions: RegionSettings = RegionSettings()
    batches: BatchSettings = BatchSettings()
    capture: CaptureSettings = SMALL_CAPTURE
    pretrain: PretrainSettings = PretrainSettings()
    instances: InstanceSettings = InstanceSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    comparison: ComparisonSettings = ComparisonSettings()


PROFILES = {
    "smoke": Profile(
        "smoke", SIZES["mini"], SynthesisSettings(photos=300, composites=400),
        DetectorSettings(steps=60, enlarged=(1.0,), search_size=128), EncoderSettings(steps=40, batch=32),
        RegionSettings(max_regions=6), capture=TINY_CAPTURE, pretrain=PretrainSettings(epochs=2, batch=32),
        instances=InstanceSettings(min_score=0.3)),  # after 60 steps, a detector is never sure
    "cpu": Profile("cpu", SIZES["small"], pretrain=SMALL_RATE),
    "thorough": Profile("thorough", SIZES["small"], pretrain=SMALL_RATE,
                        comparison=ComparisonSettings(epochs=3, seeds=3, rates=RATES)),
    "gpu": Profile(
        "gpu", SIZES["full"], SynthesisSettings(photos=60_000, composites=60_000, **LARGE_PHOTOS),
        LARGE_DETECTOR, LARGE_ENCODER, LARGE_REGIONS, capture=CaptureSettings(), pretrain=LARGE_PRETRAIN,
        comparison=ComparisonSettings(epochs=2, seeds=3, rates=RATES, parallel_jobs=0)),
    "product1m": Profile(
        "product1m", None, SynthesisSettings(photos=200_000, composites=200_000, **LARGE_PHOTOS),
        replace(LARGE_DETECTOR, steps=30_000), replace(LARGE_ENCODER, steps=30_000),
        LARGE_REGIONS, capture=CaptureSettings(), pretrain=replace(LARGE_PRETRAIN, keep_every=2_000),
        comparison=ComparisonSettings(epochs=1, rates=RATES, parallel_jobs=0)),
}


def get(name: str) -> Profile:
    """Return the profile of a name.

    Raises:
        InputError: there is no such profile.
    """
    if name not in PROFILES:
        raise InputError(f"profile {name!r} is unknown; use one of {', '.join(PROFILES)}")
    return PROFILES[name]
