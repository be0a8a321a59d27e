"""Vectors of an image-text model that others pretrained (CLIP, SigLIP, Chinese-CLIP …), by transformers."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from PIL import Image

from capture_lib.catalog.photos import load_photo
from capture_lib.proposals.region_store import load_batches, square
from capture_lib.retrieval.embedding import EmbeddedSet, letters
from capture_lib.utils import InputError, hub_folder, pick_device, progress

FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]  # of a model on the hub
BATCH = 64  # crops or captions


def load(name: str) -> tuple:
    """Return an image-text model and its processor, from a folder or by its name on the hub.

    `InputError` where it is missing or damaged, or no such model. Code that comes with a model is never run.
    """
    from transformers import AutoModel, AutoProcessor  # slow to import
    from transformers.utils import logging

    logging.set_verbosity_error()  # what is wrong is said here, in one line
    logging.disable_progress_bar()
    folder = hub_folder(name, FILES)
    safe = {"trust_remote_code": False, "local_files_only": True}
    try:
        model, report = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **safe)
        processor = AutoProcessor.from_pretrained(folder, **safe)
    except Exception as error:  # of many kinds, some of many lines
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
        raise InputError(f"{name}: transformers cannot read it ({reason:.200}); give an image-text model with "
                         "config.json, model.safetensors, tokenizer and preprocessor_config.json") from None
    parts = {"get_image_features", "get_text_features", "image_processor", "tokenizer"}
    if not parts <= {*dir(model), *dir(processor)}:
        raise InputError(f"{name}: a {type(model).__name__} with a {type(processor).__name__} does not describe both "
                         "images and texts; give a CLIP, SigLIP or Chinese-CLIP")
    # what is missing, transformers makes up: parameters at random, a tokenizer without words
    if report["missing_keys"]:
        raise InputError(f"{name}: missing parameter {min(report['missing_keys'])}; fetch or save it again")
    known, expected = len(processor.tokenizer), model.config.text_config.vocab_size
    if not expected / 2 < known <= expected:
        raise InputError(f"{name}: its tokenizer has {known:,} tokens, its model {expected:,}; fetch or save the "
                         "tokenizer's files again")
    return model, processor


class ImageText:
    """An image-text model as `load` finds it; `margin` of a box, on all sides."""

    def __init__(self, name: str, margin: float) -> None:
        model, processor = load(name)
        self.model = model.to(pick_device()).eval()
        self.tokenizer = processor.tokenizer
        self.length = min(self.tokenizer.model_max_length, model.config.text_config.max_position_embeddings)  # tokens
        self.read = partial(read_crops, reader=processor.image_processor, margin=margin)

    def tokenize(self, captions: list[str]) -> Iterator[dict]:
        """Yield the model's inputs for captions, in batches."""
        siglip = self.model.config.model_type.startswith("siglip")  # learned from lower case, and from padding unmasked
        padding = "max_length" if siglip else "longest"
        for start in range(0, len(captions), BATCH):
            part = [caption.lower() if siglip else caption for caption in captions[start:start + BATCH]]
            yield self.tokenizer(
                part, padding=padding, padding_side="right", truncation=True, max_length=self.length,
                return_attention_mask=not siglip, return_tensors="pt")

    def images(self, items: list, workers: int) -> ndarray:
        """Return vectors (n, D) float32 of boxes, as `read_crops` takes them; so many processes read."""
        batches = load_batches(items, self.read, BATCH, workers)
        return self.embed(self.model.get_image_features, batches, len(items), "image-text model, batches of crops")

    def texts(self, captions: list[str]) -> ndarray:
        """Return vectors (n, D) float32 of captions, zeros for one without letters and digits."""
        vectors = self.embed(self.model.get_text_features, self.tokenize(captions), len(captions),
                             "image-text model, batches of captions")
        vectors[[not letters(caption) for caption in captions]] = 0
        return vectors

    @torch.inference_mode()
    def embed(self, features: Callable, batches: Iterable[dict], count: int, label: str) -> ndarray:
        """Return what one of the model's towers makes of batches of inputs, `count` in all: (count, D) float32."""
        device = self.model.device
        total = -(-count // BATCH)
        found = []
        for inputs in progress(batches, label, total) if total > 1 else batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                outputs = features(**inputs.to(device))
            rows = getattr(outputs, "pooler_output", outputs)  # before transformers 5, the vectors themselves
            found.append(rows.float().cpu().numpy())
        return np.concatenate(found)


def read_crops(items: list, reader: Callable, margin: float) -> dict:
    """Return a model's input for boxes (4,), xyxy fractions, each with its photo (H, W, 3) or the photo's file."""
    crops = []
    known = photo = None
    for source, box in items:
        if source is not known:  # boxes of one photo follow one another
            known = source
            photo = load_photo(source) if isinstance(source, Path) else source
        crops.append(Image.fromarray(cut(photo, box, margin)))
    return reader(images=crops, return_tensors="pt")


def cut(photo: ndarray, box: ndarray, margin: float) -> ndarray:
    """Cut a box (4,), xyxy fractions, widened by `margin`, out of a photo (H, W, 3): in a white square (S, S, 3).

    Many processors cut the middle out of what is not square: of a bottle, its label.
    """
    low, high = np.split(np.asarray(box, np.float64), 2)
    edge = (high - low) * margin / 2
    sides = photo.shape[1::-1]
    left, top = np.floor(np.clip(low - edge, 0, 1) * sides).astype(int)
    right, bottom = np.ceil(np.clip(high + edge, 0, 1) * sides).astype(int)
    piece = photo[top:bottom, left:right]
    return square(piece, max(piece.shape[:2]))[0]


def add_vectors(samples: EmbeddedSet, images: ndarray, texts: ndarray | None) -> None:
    """Add vectors of the instances (n, D) and, where captions carry text, of the captions (q, D) to a set."""
    samples.instance["foundation_image"] = images
    if texts is not None:
        samples.image["foundation_text"] = texts
        samples.instance["foundation_text"] = texts[samples.owners]
