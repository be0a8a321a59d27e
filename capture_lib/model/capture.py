"""CAPTURE, whole: text | visual layers, then cross, then joint layers, and the heads.

```
tokens ─── TextEmbedding ── text layers ────┬─ contrastive head (first token)
                                            ├─ cross layers ── joint layers ── output heads ── pretext heads
regions ── ImageEmbedding ── visual layers ─┴─ contrastive head (first token)
```
Source: Product1M (ICCV 2021, arXiv 2107.14572), its section on CAPTURE; where the paper is silent, the
authors' released code, whose sizes are the defaults. Letters in shapes as in `capture_lib.model.layers`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from capture_lib.model import config, layers
from capture_lib.model.config import CaptureSettings
from capture_lib.model.layers import OutputHead, PretextHead, TransformerLayer
from capture_lib.model.released import read_released
from capture_lib.utils import InputError, write_atomically

MAP_KINDS = ("text", "visual", "text_to_regions", "regions_to_text", "joint")


class Capture(nn.Module):
    """The whole model: `forward` gives the vectors, `predict_words` and `predict_regions` what was masked."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        s = settings
        self.settings = s

        # each modality by itself
        self.text_embedding = layers.TextEmbedding(s)
        self.image_embedding = layers.ImageEmbedding(s)
        self.text_layers = nn.ModuleList(
            TransformerLayer(s.width, s.text_heads, s.text_ffn, s.dropout) for _ in range(s.text_layers))
        self.visual_layers = nn.ModuleList(
            TransformerLayer(s.width, s.visual_heads, s.visual_ffn, s.dropout) for _ in range(s.visual_layers))
        self.text_contrastive = OutputHead(s)
        self.region_contrastive = OutputHead(s)

        # both together
        self.cross_layers = nn.ModuleList(layers.CrossLayer(s) for _ in range(s.cross_layers))
        self.joint_positions = nn.Embedding(s.max_positions, s.width)
        self.joint_dropout = nn.Dropout(s.dropout)
        self.joint_layers = nn.ModuleList(
            layers.JointLayer(s.width, s.joint_heads) for _ in range(s.joint_layers))
        self.text_output = OutputHead(s)
        self.region_output = OutputHead(s)

        # what was masked
        self.word_head = PretextHead(s)
        self.region_head = PretextHead(s)
        self.word_bias = nn.Parameter(torch.zeros(s.vocabulary))
        self.region_decoder = nn.Linear(s.width, s.region_features)

        self.apply(initialise)
        for layer in self.joint_layers:  # as the released code, PyTorch's own start
            nn.init.xavier_uniform_(layer.attention.qkv.weight)
        if s.matching:  # made last: all else has the same start
            self.match_head = nn.Linear(s.output, 2)
            initialise(self.match_head)

    def forward(
        self, input_ids: Tensor, text_mask: Tensor, region_features: Tensor, region_locations: Tensor,
        region_mask: Tensor, attention: bool = False,
    ) -> dict[str, Any]:
        """Turn photos with their captions into vectors.

        Args:
            input_ids: (B, L) int64; text_mask: (B, L), nonzero where a token is valid.
            region_features: (B, R+1, F), the global token first; region_mask: (B, R+1), nonzero where valid.
            region_locations: (B, R+1, 5): xyxy as fractions of width and height, then the area share.
            attention: return the attention maps too.

        Returns:
            text_sequence (B, L, E), region_sequence (B, R+1, E); their first tokens text_pooled, region_pooled (B, E);
            text_contrastive, region_contrastive (B, E), from before the cross layers. With `attention` also
            "attention": for each of `MAP_KINDS` a list over its layers of maps (B, H, queries, keys).
        """
        length = input_ids.shape[1] + region_features.shape[1]
        if length > self.settings.max_positions:
            limit = self.settings.max_positions
            raise InputError(f"a sample has {length} tokens and regions, "
                             f"more than max_positions {limit}")
        maps = {kind: [] if attention else None for kind in MAP_KINDS}
        text_mask = text_mask.bool()
        region_mask = region_mask.bool()

        # each modality by itself
        text = self.text_embedding(input_ids)  # (B, L, W)
        region = self.image_embedding(region_features, region_locations)  # (B, R+1, W)
        for layer in self.text_layers:
            text = layer(text, text_mask, maps["text"])
        for layer in self.visual_layers:
            region = layer(region, region_mask, maps["visual"])
        text_contrastive = self.text_contrastive(text[:, 0])  # (B, E)
        region_contrastive = self.region_contrastive(region[:, 0])  # (B, E)

        # each attends to the other
        for layer in self.cross_layers:
            text, region = layer(
                text, region, text_mask, region_mask, maps["text_to_regions"], maps["regions_to_text"])

        # both as one sequence
        joint = torch.cat([text, region], dim=1)  # (B, L+R+1, W)
        joint = self.joint_dropout(joint + self.joint_positions.weight[:length])
        joint_mask = torch.cat([text_mask, region_mask], dim=1)  # (B, L+R+1)
        for layer in self.joint_layers:
            joint = layer(joint, joint_mask, maps["joint"])
        text_sequence = self.text_output(joint[:, :text.shape[1]])  # (B, L, E)
        region_sequence = self.region_output(joint[:, text.shape[1]:])  # (B, R+1, E)

        outputs = {
            "text_sequence": text_sequence,
            "region_sequence": region_sequence,
            "text_pooled": text_sequence[:, 0],  # H_TXT
            "region_pooled": region_sequence[:, 0],  # H_IMG
            "text_contrastive": text_contrastive,
            "region_contrastive": region_contrastive,
        }
        if attention:
            outputs["attention"] = maps
        return outputs

    def predict_words(self, text_sequence: Tensor) -> Tensor:
        """Decode text outputs (..., E) to logits (..., V). The decoder is the word embedding and a bias."""
        return F.linear(self.word_head(text_sequence), self.text_embedding.words.weight, self.word_bias)

    def predict_regions(self, region_sequence: Tensor) -> Tensor:
        """Decode region outputs (..., E) to the region features (..., F) before masking."""
        return self.region_decoder(self.region_head(region_sequence))

    def predict_match(self, text_pooled: Tensor, region_pooled: Tensor) -> Tensor:
        """Return logits (B, 2) for a broken pair and for a matched one; with `matching` only."""
        return self.match_head(text_pooled * region_pooled)

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Any], released_config: Mapping[str, Any]) -> "Capture":
        """Build the model of a released checkpoint, in evaluation mode; arguments, errors as `read_released`."""
        settings, weights = read_released(state_dict, released_config)
        return cls._from_weights(settings, weights, source="released checkpoint")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json into a folder; other files there stay."""
        with write_atomically(Path(folder) / config.CONFIG_FILE) as path:
            path.write_text(json.dumps(asdict(self.settings), indent=2) + "\n", encoding="utf-8")
        with write_atomically(Path(folder) / config.WEIGHTS_FILE) as path:
            save_file(self.state_dict(), path, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Capture":
        """Load what `save_pretrained` wrote, on the CPU, in evaluation mode; `InputError` where it is damaged."""
        settings = config.read_settings(Path(folder) / config.CONFIG_FILE)
        path = Path(folder) / config.WEIGHTS_FILE
        return cls._from_weights(settings, config.read_weights(path), source=str(path))

    @classmethod
    def _from_weights(cls, settings: CaptureSettings, weights: Mapping[str, Tensor], source: str) -> "Capture":
        with torch.random.fork_rng(devices=[]):  # the start is overwritten
            model = cls(settings)
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:  # names what does not fit, in many lines
            raise InputError(f"{source}: {' '.join(str(error).split())}") from None
        return model.eval()


def initialise(module: nn.Module) -> None:
    """Start as BERT does: normal(0, 0.02), biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
