"""Open-vocabulary detectors: a known box survives padding and resizing, tiny random models propose, wrong names."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from drawn import TINY, make_catalog, refused
from torchvision.ops import box_iou

from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.proposals import detector, region_store
from capture_lib.proposals.detector import DetectorSettings
from capture_lib.proposals.open_vocabulary import OpenVocabulary
from capture_lib.utils import read_object

LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}


def clip_tokenizer() -> hf.CLIPTokenizer:
    """A tokenizer of single letters."""
    letters = [chr(code) for code in range(97, 123)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return hf.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=16)


def owl(name: str) -> tuple:
    """A processor and a model of 16 boxes, OWL-ViT or OWLv2."""
    kind = "OwlViT" if name == "owlvit" else "Owlv2"
    config, model, pictures, processor = (
        getattr(hf, f"{kind}{part}") for part in ("Config", "ForObjectDetection", "ImageProcessor", "Processor"))
    text = LAYERS | {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53}
    settings = config(text_config=text, vision_config=LAYERS | {"image_size": 64, "patch_size": 16}, projection_dim=16)
    size = {"height": 64, "width": 64}
    return processor(pictures(size=size), clip_tokenizer()), model(settings)


def grounding_dino(name: str) -> tuple:
    """A processor and a model of 20 boxes."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "product", "."]
    tokenizer = hf.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    swin = hf.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
                         out_indices=[2, 3, 4])
    settings = hf.GroundingDinoConfig(
        backbone_config=swin, text_config=hf.BertConfig(vocab_size=len(words), **LAYERS), num_queries=20, d_model=64,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16)
    pictures = hf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 100})
    return hf.GroundingDinoProcessor(pictures, tokenizer), hf.GroundingDinoForObjectDetection(settings)


MAKERS = {"owlvit": owl, "owlv2": owl, "grounding-dino": grounding_dino}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights, as `save_pretrained` leaves one."""
    place = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    for part in MAKERS[request.param](request.param):
        part.save_pretrained(place)
    return place


def named(folder: Path, **changes) -> OpenVocabulary:
    return OpenVocabulary(DetectorSettings(pretrained=str(folder), **changes))


class SeesWhite:
    """A model that knows: the box around all that is white in what it is given, and one beyond each of its edges."""

    def __call__(self, pixel_values: torch.Tensor, **inputs) -> SimpleNamespace:
        height, width = pixel_values.shape[2:]
        middle = (pixel_values.max() + pixel_values.min()) / 2
        rows, columns = torch.nonzero(pixel_values[0].amin(0) > middle, as_tuple=True)
        low = torch.stack([columns.min() / width, rows.min() / height])
        high = torch.stack([(columns.max() + 1) / width, (rows.max() + 1) / height])
        found = torch.cat([(low + high) / 2, high - low])
        beyond = torch.tensor([[1.2, 0.5, 0.2, 0.2], [0.5, 1.2, 0.2, 0.2]])  # centre, width, height
        boxes = torch.cat([beyond, found[None]])
        return SimpleNamespace(logits=torch.tensor([[[5.0], [4.0], [1.0]]]), pred_boxes=boxes[None],
                               input_ids=inputs["input_ids"])


# ------------------------------------------------------------------------------- where a box lies


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (128, 128), (150, 90), (64, 192)])
def test_a_known_box_survives_padding_and_resizing(folder, width, height):
    """Each model pads and resizes photos in its own way: OWLv2 to a square, OWL-ViT without heed of the aspect."""
    photo = torch.zeros(3, height, width)
    x1, y1, x2, y2 = box = [round(0.55 * width), round(0.3 * height), round(0.85 * width), round(0.9 * height)]
    photo[:, y1:y2, x1:x2] = 1
    network = named(folder)
    network.model = SeesWhite()
    boxes, scores = network.propose(photo, 5)
    pixels = boxes * torch.tensor([width, height, width, height])
    assert pixels[-1].tolist() == pytest.approx(box, abs=1 + max(width, height) / 64)  # a pixel of what the model sees
    assert (boxes >= 0).all() and (boxes <= 1).all()
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (120, 120), (97, 31)])
def test_boxes_are_fractions_of_the_photo_though_it_comes_in_a_white_square(folder, width, height):
    """The margin of the square, as white as the product, is cut off before the model looks."""
    photo = np.zeros((height, width, 3), np.uint8)
    box = np.array([0.25, 0.5, 0.75, 1]) * [width, height, width, height]
    x1, y1, x2, y2 = box.round().astype(int)
    photo[y1:y2, x1:x2] = 255
    square, extent = region_store.square(photo, 128)
    network = named(folder)
    network.model = SeesWhite()
    ((boxes, _),) = region_store.locate(detector.to_tensor(square[None]), extent[None], network, 5, (96,))
    assert boxes[-1].tolist() == pytest.approx([0.25, 0.5, 0.75, 1], abs=0.03 / float(extent.min()))


# ------------------------------------------------------------------------------------- proposals


def test_a_model_with_random_weights_proposes_boxes_that_lie_apart_best_first(folder):
    photo = torch.rand(3, 90, 140, generator=torch.Generator().manual_seed(0))
    boxes, scores = named(folder, nms=0.5).propose(photo, 10)
    assert boxes.shape == (len(scores), 4) and 0 < len(scores) <= 10
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert (scores > 0).all() and (scores.diff() <= 0).all()
    assert box_iou(boxes, boxes).fill_diagonal_(0).max() <= 0.5
    fewer, _ = named(folder, nms=0.5).propose(photo, 2)
    torch.testing.assert_close(fewer, boxes[:2])
    narrower, _ = named(folder, nms=0.1).propose(photo, 100)
    assert len(narrower) <= len(named(folder, nms=0.9).propose(photo, 100)[0])


def test_the_text_that_is_looked_for_is_a_setting(folder):
    network = named(folder, query="a bottle")
    seen = []
    network.model.register_forward_pre_hook(lambda *call: seen.append(call[-1]["input_ids"]), with_kwargs=True)
    network.propose(torch.rand(3, 60, 60), 5)
    tokens = network.processor.tokenizer("a bottle.", return_tensors="pt")["input_ids"]
    assert seen[0][0, :2].tolist() == tokens[0, :2].tolist()


def test_nothing_is_trained_and_the_store_holds_what_the_model_proposes(folder, tmp_path):
    profile = replace(TINY, detector=replace(TINY.detector, pretrained=str(folder)))
    run = Run(profile, make_catalog(tmp_path / "catalog", 22, 4, 2, 2), tmp_path / "out", 0)
    network = stages.proposer(run)
    store, made = stages.region_store(run)
    assert isinstance(network, OpenVocabulary) and not (run.stages / "detector").exists()
    assert read_object(made / "stage.json")["settings.detector.pretrained"] == str(folder)
    assert store.counts.min() > 0
    for sample in ("test-1", "train-0"):
        photos, extents = next(region_store.photo_batches([run.catalog.photos[sample]], profile.regions))
        ((boxes, scores),) = region_store.locate(photos, extents, network, 3, ())
        (row,) = store.rows([sample])
        np.testing.assert_allclose(store.boxes[row, : len(boxes)], boxes.numpy(), atol=1e-5)
        np.testing.assert_allclose(store.scores[row, : len(boxes)], scores.numpy(), atol=1e-5)


# ---------------------------------------------------------------------------------------- errors


def test_what_is_no_such_detector_is_named_in_a_line(folder, tmp_path):
    for name, says in (("", "config"), ("config.json", "config"), ("model.safetensors", "model.safetensors")):
        copy = tmp_path / f"without-{name or 'all'}"
        copy.mkdir()
        for file in folder.iterdir() if name else ():
            if file.name != name:
                (copy / file.name).write_bytes(file.read_bytes())
        refused(lambda copy=copy: named(copy), f"--proposals {copy}: no open-vocabulary detector", says)
    clip = tmp_path / "clip"
    hf.CLIPConfig().save_pretrained(clip)
    refused(lambda: named(clip), "a model of type clip", "owlv2", "grounding-dino")


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text()) | {
        "model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForZeroShotObjectDetection": "evil.E"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(lambda: named(copy), f"--proposals {copy}: no open-vocabulary detector")
    assert not (tmp_path / "ran").exists()
