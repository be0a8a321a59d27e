"""Proposals of an open-vocabulary detector of transformers, such as OWLv2 or Grounding DINO: what a text names."""
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from capture_lib.proposals.detector import DetectorSettings
from capture_lib.utils import InputError, pick_device


class OpenVocabulary:
    """A detector that is not trained here, in place of `Detector`: photos and a text to proposals."""

    def __init__(self, settings: DetectorSettings) -> None:
        self.settings = settings
        self.processor, model = read_parts(settings.pretrained)
        self.model = model.to(pick_device()).eval()

    @torch.inference_mode()
    def propose(self, photo: Tensor, count: int) -> tuple:
        """Return a photo's `count` best boxes, (n, 4) xyxy fractions, and scores (n,), of (3, H, W) in [0, 1].

        The photo has no margin: each processor resizes and pads in its own way, and maps boxes back.
        """
        from torchvision.ops import nms
        height, width = photo.shape[1:]
        picture = Image.fromarray((photo * 255).round().byte().permute(1, 2, 0).cpu().numpy())
        text = [[self.settings.query]]
        inputs = self.processor(images=picture, text=text, return_tensors="pt").to(photo.device)
        outputs = self.model(**inputs)
        # boxes in pixels of the photo: OWLv2's are fractions of the square that it was padded to
        (found,) = self.processor.post_process_grounded_object_detection(
            outputs, threshold=0.0, target_sizes=[(height, width)], text_labels=text)
        boxes = found["boxes"] / torch.tensor([width, height, width, height], device=photo.device)
        boxes = boxes.clamp(0, 1)
        # the best, apart, and none that lies in the padding
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores = boxes[inside], found["scores"][inside]
        best = nms(boxes, scores, self.settings.nms)[:count]
        if not len(best):  # the whole photo
            return boxes.new_tensor([[0, 0, 1, 1]]), scores.new_zeros(1)
        return boxes[best], scores[best]


def read_parts(name: str) -> tuple:
    """Return processor and model of a folder or a name on the hub; InputError: there is no such detector.

    A name is fetched once. Weights are safetensors, and code that comes with them is never run.
    """
    from transformers import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING as KINDS
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor
    options = {"trust_remote_code": False, "local_files_only": Path(name).is_dir()}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if type(config) not in KINDS:
            known = ", ".join(sorted(kind.model_type for kind in KINDS))
            raise ValueError(f"a model of type {config.model_type}, where one of {known} is needed")
        processor = AutoProcessor.from_pretrained(name, **options)
        return processor, AutoModelForZeroShotObjectDetection.from_pretrained(name, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--proposals {name}: no open-vocabulary detector, neither in such a folder (config, "
                         f"processor, model.safetensors) nor of that name on the hub: {reason}") from None
