"""The layers of CAPTURE: attention, the three kinds of layers, embeddings and heads.

Letters in shapes: B samples, L text tokens, R regions (R+1 with the global token in front), T tokens of any
one sequence, F features of a region, W width, H heads, D width of a head, E output width, V vocabulary.
Masks are (B, T) bool, True where a token is valid. Every sample has a valid token in both streams: [CLS] even
without a caption, the global token even without a region. What comes out at padded positions has no meaning.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capture_lib.model.config import CaptureSettings

norm = partial(nn.LayerNorm, eps=1e-12)  # as in BERT
LOCATION_FEATURES = 5  # xyxy as fractions, and the area's share

Maps = list[Tensor] | None  # where layers append attention maps


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """Split (B, T, 3·H·D), queries, keys and values side by side, into (3, B, H, T, D)."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float,
           maps: Maps) -> Tensor:
    """Return softmax(Q Kᵀ / √D) V over the valid keys, and append the softmax to `maps` if that is a list.

    query (B, H, Q, D); key, value (B, H, K, D); mask (B, K) bool; returns (B, Q, H·D), the softmax is (B, H, Q, K).
    (The released joint layers lay their masks out head by head where PyTorch expects sample by sample: in a batch
    with different paddings, samples see each other's masks.)
    """
    mask = mask[:, None, None]  # (B, 1, 1, K), the same for all heads and queries
    if maps is None and not query.is_cpu:
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout)  # (B, H, Q, D)
    else:
        # the same by hand: to see the weights, and on a CPU faster than the fused kernel
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, H, Q, K)
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        if maps is not None:
            maps.append(weights)
        mixed = F.dropout(weights, dropout) @ value
    # put the heads together again
    return mixed.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Every token looks at the valid tokens of its own sequence, with several heads side by side."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)  # queries, keys and values
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, maps: Maps = None) -> Tensor:
        query, key, value = split_heads(self.qkv(x), self.heads)  # (B, H, T, D) each
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, mask, dropout, maps)  # (B, T, W)
        return self.out(mixed)


class FeedForward(nn.Module):
    """Two linear layers on every token by itself: attention mixes tokens, this mixes their features."""

    def __init__(self, width: int, inner: int, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class AfterAttention(nn.Module):
    """The second half of a BERT layer: add what attention brought, norm, feed forward, add, norm."""

    def __init__(self, width: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = norm(width)
        self.ffn = FeedForward(width, ffn)
        self.ffn_norm = norm(width)
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

    def forward(self, x: Tensor, mask: Tensor, maps: Maps = None) -> Tensor:
        mixed = self.attention(x, mask, maps)
        return self.after(x, mixed)  # (B, T, W)


class CrossLayer(nn.Module):
    """Text attends to regions while regions attend to text: queries of one, keys and values of the other."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        width = settings.width
        inner = settings.cross_width
        self.heads = settings.cross_heads
        self.dropout = settings.dropout
        self.text_qkv = nn.Linear(width, 3 * inner)
        self.region_qkv = nn.Linear(width, 3 * inner)
        self.text_out = nn.Linear(inner, width)
        self.region_out = nn.Linear(inner, width)
        self.text_after = AfterAttention(width, settings.text_ffn, settings.dropout)
        self.region_after = AfterAttention(width, settings.visual_ffn, settings.dropout)

    def forward(
        self, text: Tensor, region: Tensor, text_mask: Tensor, region_mask: Tensor,
        text_maps: Maps = None, region_maps: Maps = None,
    ) -> tuple[Tensor, Tensor]:
        # project each stream to queries, keys and values
        text_q, text_k, text_v = split_heads(self.text_qkv(text), self.heads)  # (B, H, L, D)
        region_q, region_k, region_v = split_heads(self.region_qkv(region), self.heads)  # (B, H, R+1, D)

        # each stream's queries over the other's keys and values
        dropout = self.dropout if self.training else 0.0
        from_regions = attend(text_q, region_k, region_v, region_mask, dropout, text_maps)  # (B, L, H·D)
        from_text = attend(region_q, text_k, text_v, text_mask, dropout, region_maps)  # (B, R+1, H·D)

        # add, norm and feed forward, each stream by itself
        text = self.text_after(text, self.text_out(from_regions))  # (B, L, W)
        region = self.region_after(region, self.region_out(from_text))  # (B, R+1, W)
        return text, region


class JointLayer(nn.Module):
    """A layer over text and regions as one sequence: a CLIP block (norm first, no dropout inside)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = norm(width)
        self.attention = SelfAttention(width, heads, dropout=0.0)
        self.ffn_norm = norm(width)
        # QuickGELU, CLIP's approximation of GELU
        self.ffn = FeedForward(width, 4 * width, lambda x: x * torch.sigmoid(1.702 * x))

    def forward(self, x: Tensor, mask: Tensor, maps: Maps = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask, maps)  # (B, L+R+1, W)
        return x + self.ffn(self.ffn_norm(x))


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
    """Regions to vectors: how a region looks + where it is. They have no order; the box is their position."""

    def __init__(self, settings: CaptureSettings) -> None:
        super().__init__()
        self.features = nn.Linear(settings.region_features, settings.width)
        self.locations = nn.Linear(LOCATION_FEATURES, settings.width)
        self.norm = norm(settings.width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, region_features: Tensor, region_locations: Tensor) -> Tensor:
        x = self.features(region_features) + self.locations(region_locations)  # (B, R+1, W)
        return self.dropout(self.norm(x))


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
