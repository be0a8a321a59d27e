"""CAPTURE, layer by layer: text, visual, cross and joint layers, and the heads on top.

```
tokens ─── TextEmbedding ── text layers ────┬─ contrastive head (first token)
                                            ├─ cross layers ── joint layers ── output heads ── pretext heads
regions ── ImageEmbedding ── visual layers ─┴─ contrastive head (first token)
```
Source: Product1M (ICCV 2021, arXiv 2107.14572), its section on CAPTURE; where the paper is silent, the
authors' released code, whose sizes are the defaults. `capture_lib.released` reads the authors' checkpoints.

Letters in shapes: B samples, L text tokens, R regions (R+1 with the global token in front), T tokens of any
one sequence, F features of a region, W width, H heads, D width of a head, E output width, V vocabulary.
"Text" and "region" name the two streams of tokens; the layers within the second are called visual.

Masks are (B, T), nonzero where a token is real. Every sample needs a real token in both streams: a softmax
over nothing has no value. The batches see to it: [CLS] and [SEP] are real even without a caption, the global
token even without a region. What comes out at padded positions has no meaning.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from capture_lib.model.config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CaptureSettings,
    check_weights,
    read_settings,
    read_weights,
)
from capture_lib.utils import InputError, write_atomically

norm = partial(nn.LayerNorm, eps=1e-12)  # BERT's epsilon, in every layer of the released code
LOCATION_FEATURES = 5  # x1, y1, x2, y2 as fractions of width and height, and the share of the photo's area
MAP_KINDS = ("text", "visual", "text_to_regions", "regions_to_text", "joint")

Maps = list[Tensor] | None  # where layers append their attention maps, None where nobody asks for them
Intermediates = dict[str, Tensor] | None  # what each part puts out, by name, None where nobody asks for it


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """(B, T, 3·H·D), queries, keys and values side by side, to (3, B, H, T, D)."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def attend(query: Tensor, key: Tensor, value: Tensor, real: Tensor, dropout: float, maps: Maps) -> Tensor:
    """softmax(Q Kᵀ / √D) V over the real keys. query (B, H, Q, D); key, value (B, H, K, D); real (B, K) bool.

    Returns (B, Q, H·D), and appends the softmax (B, H, Q, K) to `maps` if that is a list. Each sample has its
    own mask. (The released joint layers lay their masks out head by head where PyTorch expects sample by
    sample: in a batch with different paddings, samples see each other's masks.)
    """
    mask = real[:, None, None]  # (B, 1, 1, K), the same for all heads and queries
    if maps is None:
        # With PyTorch 2.15 on a CPU, the fused kernel made a bfloat16 training step take up to twice as long
        # as plain matrix products do; in float32 there was no difference.
        with sdpa_kernel(SDPBackend.MATH) if query.is_cpu else nullcontext():
            mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout)  # (B, H, Q, D)
    else:
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, H, Q, K)
        maps.append(scores.masked_fill(~mask, -math.inf).softmax(-1))
        mixed = F.dropout(maps[-1], dropout) @ value
    return mixed.transpose(1, 2).flatten(2)


def noted(seen: Intermediates, name: str, x: Tensor) -> Tensor:
    """x, put down under its name where somebody asks for the intermediates."""
    if seen is not None:
        seen[name] = x
    return x


class TextEmbedding(nn.Module):
    """Token ids to vectors: word + position + type, as in BERT. A caption is one sentence: its type is 0."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        self.words = nn.Embedding(settings.vocabulary, settings.width)
        self.positions = nn.Embedding(settings.max_positions, settings.width)
        self.types = nn.Embedding(2, settings.width)  # two, as in BERT's checkpoints
        self.norm = norm(settings.width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = self.positions.weight[:input_ids.shape[1]]  # (L, W)
        x = self.words(input_ids) + positions + self.types.weight[0]  # (B, L, W)
        return self.dropout(self.norm(x))


class ImageEmbedding(nn.Module):
    """Regions to vectors: how a region looks + where it is. They have no order, the box is their position."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        self.features = nn.Linear(settings.region_features, settings.width)
        self.locations = nn.Linear(LOCATION_FEATURES, settings.width)
        self.norm = norm(settings.width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, region_features: Tensor, region_locations: Tensor) -> Tensor:
        x = self.features(region_features) + self.locations(region_locations)  # (B, R+1, W)
        return self.dropout(self.norm(x))


class SelfAttention(nn.Module):
    """Every token looks at the real tokens of its own sequence, with several heads side by side."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)  # queries, keys and values by one matrix product
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, real: Tensor, maps: Maps = None) -> Tensor:
        query, key, value = split_heads(self.qkv(x), self.heads)  # (B, H, T, D) each
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(query, key, value, real, dropout, maps))  # (B, T, W)


class FeedForward(nn.Module):
    """Two linear layers on every token by itself: attention mixes tokens, this mixes their features."""

    def __init__(self, width: int, inner: int, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.up, self.down, self.activation = nn.Linear(width, inner), nn.Linear(inner, width), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class AfterAttention(nn.Module):
    """The second half of a BERT layer: add what attention brought, norm, feed forward, add, norm."""

    def __init__(self, width: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.ffn, self.ffn_norm = norm(width), FeedForward(width, ffn), norm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(mixed))  # (B, T, W)
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class TransformerLayer(nn.Module):
    """A layer within one modality: a BERT layer, for text and for regions ("visual")."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.after = AfterAttention(width, ffn, dropout)

    def forward(self, x: Tensor, real: Tensor, maps: Maps = None) -> Tensor:
        return self.after(x, self.attention(x, real, maps))  # (B, T, W)


class CrossLayer(nn.Module):
    """Text asks the regions while regions ask the text: queries of one over keys and values of the other."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        width, inner = settings.width, settings.cross_width
        self.heads, self.dropout = settings.cross_heads, settings.dropout
        self.text_qkv, self.region_qkv = nn.Linear(width, 3 * inner), nn.Linear(width, 3 * inner)
        self.text_out, self.region_out = nn.Linear(inner, width), nn.Linear(inner, width)
        self.text_after = AfterAttention(width, settings.text_ffn, settings.dropout)
        self.region_after = AfterAttention(width, settings.visual_ffn, settings.dropout)

    def forward(self, text: Tensor, region: Tensor, text_real: Tensor, region_real: Tensor,
                text_maps: Maps = None, region_maps: Maps = None) -> tuple[Tensor, Tensor]:
        text_query, text_key, text_value = split_heads(self.text_qkv(text), self.heads)  # (B, H, L, D)
        query, key, value = split_heads(self.region_qkv(region), self.heads)  # (B, H, R+1, D)
        dropout = self.dropout if self.training else 0.0
        from_regions = attend(text_query, key, value, region_real, dropout, text_maps)
        from_text = attend(query, text_key, text_value, text_real, dropout, region_maps)
        text = self.text_after(text, self.text_out(from_regions))  # (B, L, W)
        region = self.region_after(region, self.region_out(from_text))  # (B, R+1, W)
        return text, region


def quick_gelu(x: Tensor) -> Tensor:
    """x·sigmoid(1.702x), CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


class JointLayer(nn.Module):
    """A layer over text and regions as one sequence: a CLIP block (norm first, no dropout inside)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = norm(width), SelfAttention(width, heads, dropout=0.0)
        self.ffn_norm, self.ffn = norm(width), FeedForward(width, 4 * width, quick_gelu)

    def forward(self, x: Tensor, real: Tensor, maps: Maps = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), real, maps)  # (B, L+R+1, W)
        return x + self.ffn(self.ffn_norm(x))


class OutputHead(nn.Module):
    """Linear and ReLU to the output width: what retrieval and the contrastive loss read."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        self.dense = nn.Linear(settings.width, settings.output)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x))  # (..., E)


class PretextHead(nn.Module):
    """From the output width back to W, then BERT's transform: what a masked token is decoded from."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        self.expand = nn.Linear(settings.output, settings.width)
        self.dense = nn.Linear(settings.width, settings.width)
        self.norm = norm(settings.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(self.expand(x))))  # (..., W)


class Capture(nn.Module):
    """The whole model: `forward` gives the vectors, `predict_words` and `predict_regions` what was masked."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.text_embedding, self.image_embedding = TextEmbedding(s), ImageEmbedding(s)
        text, visual = (s.text_heads, s.text_ffn, s.dropout), (s.visual_heads, s.visual_ffn, s.dropout)
        self.text_layers = nn.ModuleList(TransformerLayer(s.width, *text) for _ in range(s.text_layers))
        self.visual_layers = nn.ModuleList(TransformerLayer(s.width, *visual) for _ in range(s.visual_layers))
        self.text_contrastive, self.region_contrastive = OutputHead(s), OutputHead(s)
        self.cross_layers = nn.ModuleList(CrossLayer(s) for _ in range(s.cross_layers))
        self.joint_positions = nn.Embedding(s.max_positions, s.width)
        self.joint_dropout = nn.Dropout(s.dropout)
        self.joint_layers = nn.ModuleList(JointLayer(s.width, s.joint_heads) for _ in range(s.joint_layers))
        self.text_output, self.region_output = OutputHead(s), OutputHead(s)
        self.word_head, self.region_head = PretextHead(s), PretextHead(s)
        self.word_bias = nn.Parameter(torch.zeros(s.vocabulary))
        self.region_decoder = nn.Linear(s.width, s.region_features)
        self.apply(initialise)
        for layer in self.joint_layers:  # PyTorch's own start, which the released code leaves in place here
            nn.init.xavier_uniform_(layer.attention.qkv.weight)
        if s.matching:  # made last: with or without it, everything else has the same start
            self.match_head = nn.Linear(s.output, 2)
            initialise(self.match_head)

    def forward(self, input_ids: Tensor, text_mask: Tensor, region_features: Tensor, region_locations: Tensor,
                region_mask: Tensor, attention: bool = False, intermediates: bool = False) -> dict[str, Any]:
        """Photos with their captions to vectors.

        input_ids (B, L) int64; text_mask (B, L), 1 = real; region_features (B, R+1, F) float, the global
        token first; region_locations (B, R+1, 5) float, xyxy as fractions of width and height, then the area
        share (global token: 0, 0, 1, 1, 1); region_mask (B, R+1), 1 = real.

        Returns text_sequence (B, L, E) and region_sequence (B, R+1, E); their first tokens text_pooled and
        region_pooled (B, E), the paper's H_TXT and H_IMG; text_contrastive and region_contrastive (B, E),
        taken before the cross layers. With `attention` also "attention": for each of `MAP_KINDS` a list over
        its layers of maps (B, H, queries, keys), without dropout. With `intermediates` also "intermediates": what
        each part puts out, by the part's name in the model: text_embedding and text_layers.0, … (B, L, W);
        image_embedding and visual_layers.0, … (B, R+1, W); cross_layers.0.text and cross_layers.0.region, …;
        joint_embedding (with the positions added) and joint_layers.0, … (B, L+R+1, W).
        Raises `InputError` where a sample's tokens and regions outnumber the positions.
        """
        length, positions = input_ids.shape[1] + region_features.shape[1], self.settings.max_positions
        if length > positions:
            raise InputError(f"a sample has {length} tokens and regions, more than max_positions "
                             f"{positions}; shorten the text or take fewer regions")
        maps: dict[str, Maps] = {kind: [] if attention else None for kind in MAP_KINDS}
        seen: Intermediates = {} if intermediates else None
        text_real, region_real = text_mask.bool(), region_mask.bool()
        text = noted(seen, "text_embedding", self.text_embedding(input_ids))  # (B, L, W)
        region = noted(seen, "image_embedding", self.image_embedding(region_features, region_locations))  # (B, R+1, W)
        for i, layer in enumerate(self.text_layers):
            text = noted(seen, f"text_layers.{i}", layer(text, text_real, maps["text"]))
        for i, layer in enumerate(self.visual_layers):
            region = noted(seen, f"visual_layers.{i}", layer(region, region_real, maps["visual"]))
        out: dict[str, Any] = {"text_contrastive": self.text_contrastive(text[:, 0]),  # (B, E)
                               "region_contrastive": self.region_contrastive(region[:, 0])}
        for i, layer in enumerate(self.cross_layers):
            text, region = layer(text, region, text_real, region_real,
                                 maps["text_to_regions"], maps["regions_to_text"])
            noted(seen, f"cross_layers.{i}.text", text)
            noted(seen, f"cross_layers.{i}.region", region)
        joint = torch.cat([text, region], dim=1) + self.joint_positions.weight[:length]  # (B, L+R+1, W)
        joint = noted(seen, "joint_embedding", self.joint_dropout(joint))
        joint_real = torch.cat([text_real, region_real], dim=1)  # (B, L+R+1)
        for i, layer in enumerate(self.joint_layers):
            joint = noted(seen, f"joint_layers.{i}", layer(joint, joint_real, maps["joint"]))
        out["text_sequence"] = self.text_output(joint[:, :text.shape[1]])  # (B, L, E)
        out["region_sequence"] = self.region_output(joint[:, text.shape[1]:])  # (B, R+1, E)
        out["text_pooled"], out["region_pooled"] = out["text_sequence"][:, 0], out["region_sequence"][:, 0]
        return out | ({"attention": maps} if attention else {}) | ({"intermediates": seen} if intermediates else {})

    def predict_words(self, text_sequence: Tensor) -> Tensor:
        """Text outputs (..., E) to logits (..., V). The decoder is the word embedding and a bias."""
        return F.linear(self.word_head(text_sequence), self.text_embedding.words.weight, self.word_bias)

    def predict_regions(self, region_sequence: Tensor) -> Tensor:
        """Region outputs (..., E) to the region features (..., F) before masking."""
        return self.region_decoder(self.region_head(region_sequence))

    def predict_match(self, text_pooled: Tensor, region_pooled: Tensor) -> Tensor:
        """H_TXT and H_IMG (B, E) to logits (B, 2) for a broken pair and for a matched one; with `matching` only."""
        return self.match_head(text_pooled * region_pooled)

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Any], released_config: Mapping[str, Any]) -> "Capture":
        """The model of a released checkpoint, in evaluation mode; arguments, errors as `released.to_ours`."""
        from capture_lib.model import released  # here, because that module needs this one

        return cls._from_weights(*released.to_ours(state_dict, released_config), source="released checkpoint")

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model.safetensors and config.json into a folder; other files there stay."""
        with write_atomically(Path(folder) / CONFIG_FILE) as path:
            path.write_text(json.dumps(asdict(self.settings), indent=2) + "\n", encoding="utf-8")
        with write_atomically(Path(folder) / WEIGHTS_FILE) as path:
            save_file(self.state_dict(), path, metadata={"format": "pt"})  # as Hugging Face marks its own

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Capture":
        """The model that `save_pretrained` wrote, on the CPU, in evaluation mode; `InputError` where it is damaged."""
        settings, path = read_settings(Path(folder) / CONFIG_FILE), Path(folder) / WEIGHTS_FILE
        return cls._from_weights(settings, read_weights(path), source=str(path))

    @classmethod
    def _from_weights(cls, settings: CaptureSettings, weights: Mapping[str, Tensor], source: str) -> "Capture":
        with torch.device("meta"):  # no random start that would be overwritten
            model = cls(settings)
        check_weights(model.state_dict(), weights, source)
        model.load_state_dict(weights, assign=True)
        return model.eval()


def initialise(module: nn.Module) -> None:
    """BERT's random start: normal(0, 0.02), biases 0. PyTorch starts norms at 1 and 0 as BERT does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
