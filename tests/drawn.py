"""Drawn photos, catalogs and region stores for the tests: made on the spot, small, and known in every pixel."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from capture_lib.catalog.table import Catalog, read_catalog, write_catalog
from capture_lib.model.capture import CaptureSettings
from capture_lib.profiles import Profile
from capture_lib.proposals import composites as synthesis
from capture_lib.proposals.composites import SynthesisSettings
from capture_lib.proposals.detector import DetectorSettings
from capture_lib.proposals.region_encoder import EncoderSettings
from capture_lib.proposals.region_store import RegionSettings, RegionStore
from capture_lib.training import batches
from capture_lib.training.batches import BatchSettings, Pairs
from capture_lib.training.pretrain import PretrainSettings
from capture_lib.utils import InputError
from capture_lib.world import WorldSettings

KINDS = 8  # products that differ in colour and band
GROUND = 245  # grey of the drawn ground
TINY = Profile(
    "tiny", None, SynthesisSettings(photos=24, foreground_size=48, composites=40, size=48, max_products=3, workers=0),
    DetectorSettings(backbone="test_resnet", size=48, search_sizes=(48,), channels=16, anchors=(12, 24, 36), steps=6,
                     batch=4),
    EncoderSettings(backbone="test_resnet", crop=16, channels=4, steps=4, batch=6),
    RegionSettings(max_regions=3, photo_size=48, batch=16, workers=0), BatchSettings(text_length=12),
    CaptureSettings(max_positions=32, width=16, text_layers=1, text_heads=2, text_ffn=32,
                    visual_layers=1, visual_heads=2, visual_ffn=32, cross_layers=1, cross_heads=2, cross_width=16,
                    joint_layers=1, joint_heads=2, output=16),
    PretrainSettings(epochs=2, batch=16))
TOY = TINY.capture
TOY_BATCHES = BatchSettings(text_length=8)
TINY_WORLD = WorldSettings("tiny", 20, 4, 300, 60, 10, 16, size=96, seed=3)


def refused(call, *expected: str) -> None:
    """The call raises one line that holds each of the expected pieces."""
    with pytest.raises(InputError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    for piece in expected:
        assert piece in str(error.value)


def draw(kinds: list[int], height: int = 96, width: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Photo (height, width, 3) uint8 of products side by side on a plain ground, and their boxes (n, 4) xyxy pixels."""
    photo = np.full((height, width, 3), GROUND, np.uint8)
    slot, boxes = width / len(kinds), []
    for place, kind in enumerate(kinds):
        rng = np.random.default_rng(kind)
        x1, x2 = round((place + 0.25) * slot), round((place + 0.75) * slot)
        y1, y2 = round((0.18 + 0.02 * (kind % 4)) * height), round(0.8 * height)
        photo[y1:y2, x1:x2] = rng.integers(20, 150, 3)
        photo[(y1 + y2) // 2:(y1 + 2 * y2) // 3, x1:x2] = rng.integers(60, 200, 3)
        boxes.append([x1, y1, x2, y2])
    return photo, np.array(boxes, np.float32)


def make_catalog(folder: Path, train: int = 4, gallery: int = 4, val: int = 4, test: int = 4, captions: bool = True
                 ) -> Catalog:
    """A catalog of drawn photos: train and gallery show one product each, val and test two."""
    rows = []
    for split, count in {"train": train, "gallery": gallery, "val": val, "test": test}.items():
        for number in range(count):
            kinds = [number % KINDS]
            if split in ("val", "test"):
                known = min(KINDS, gallery or KINDS)
                kinds = [number % known, (number + 1) % known]
            rows.append(make_sample(folder, split, number, kinds, captions))
    write_catalog(pd.DataFrame(rows, dtype=object), folder)
    return read_catalog(folder)


def grow_catalog(catalog: Catalog, more: dict[str, range]) -> Catalog:
    """The catalog with more samples, of the given numbers by split, behind the old rows."""
    rows = [make_sample(catalog.folder, split, number, [number % KINDS], True)
            for split, numbers in more.items() for number in numbers]
    write_catalog(pd.concat([catalog.table, pd.DataFrame(rows, dtype=object)], ignore_index=True), catalog.folder)
    return read_catalog(catalog.folder)


def make_sample(folder: Path, split: str, number: int, kinds: list[int], captions: bool) -> dict:
    """Writes one photo; returns its row of the catalog."""
    photo, boxes = draw(kinds, 96, 96 + 16 * (number % 3))
    image = f"images/{split}-{number}.png"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(folder / image)
    labels = [f"kind {kind}" for kind in kinds]
    caption = " ".join(f"kind{kind} 色{chr(0x4E00 + kind)} lot{number}" for kind in kinds) if captions else ""
    return {"sample_id": f"{split}-{number}", "split": split, "caption": caption, "image": image, "labels": labels,
            "products": "single" if len(kinds) == 1 else "multi", "boxes": boxes.tolist(), "box_labels": labels}


def random_store(photos: int, regions: int = 4, width: int = 8, seed: int = 0) -> RegionStore:
    """A region store of random boxes and features; photo i has 1 + i % `regions` real regions, the rest are zeros."""
    rng = np.random.default_rng(seed)
    counts = (1 + np.arange(photos) % regions).astype(np.int32)
    real = np.arange(regions) < counts[:, None]  # (N, R)
    low = rng.uniform(0, 0.5, (photos, regions, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, low.shape)], 2).astype(np.float32) * real[..., None]
    scores = -np.sort(-rng.random((photos, regions)), 1).astype(np.float32) * real
    features = (rng.normal(size=(photos, regions, width)) * real[..., None]).astype(np.float16)
    return RegionStore(features, boxes, scores, counts, [f"photo-{i}" for i in range(photos)])


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_composites(folder: Path, settings: SynthesisSettings, seed: int = 0) -> Path:
    """Composites of the drawn products, whose foregrounds are known and need no GrabCut."""
    folder.mkdir(parents=True, exist_ok=True)
    size = settings.foreground_size
    squares = np.zeros((KINDS, size, size, 4), np.uint8)
    for kind, square in enumerate(squares):
        photo, boxes = draw([kind], size, size)
        x1, y1, x2, y2 = boxes[0].astype(int)
        square[:y2 - y1, :x2 - x1, :3], square[:y2 - y1, :x2 - x1, 3] = photo[y1:y2, x1:x2], 255
    np.save(folder / "foregrounds.npy", squares)
    synthesis.make_composites(settings, folder, seed)
    return folder


def random_pairs(captions: list[str], settings: BatchSettings, folder: Path) -> Pairs:
    """Captions with random regions; the tokenizer goes into the folder."""
    table = pd.DataFrame({"sample_id": [f"photo-{i}" for i in range(len(captions))], "caption": captions})
    tokenizer = batches.make_tokenizer(captions, folder)
    return batches.make_pairs(table, random_store(len(captions)), tokenizer, settings)


def sixteen_pairs(folder: Path) -> Pairs:
    """16 pairs for `TOY`, each caption with words of its own."""
    return random_pairs([f"品{chr(0x4E00 + i)} kind{i} lot{i % 3}" for i in range(16)], TOY_BATCHES, folder)
