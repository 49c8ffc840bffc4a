"""A causal transformer over bytes: pre-norm blocks, learned positions, output weights tied to the embedding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlorun.errors import ConfigError

BYTES = 256
ATTENTIONS = ("fused", "math")


def attention_kernel(name: str) -> AbstractContextManager[None]:
    """`fused`: the fastest that torch has, with first derivatives alone. `math`: with derivatives of any order."""
    if name not in ATTENTIONS:
        raise ConfigError(
            "no such attention kernel", where="attention", seen=name, fix=f"one of {', '.join(ATTENTIONS)}"
        )
    return sdpa_kernel(SDPBackend.MATH) if name == "math" else nullcontext()


class Block(nn.Module):
    """Causal self-attention and a perceptron, each added to what it reads: (B, L, width) to the same."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.hidden = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.queries_keys_values(self.norms[0](x)).reshape(batch, length, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, L, width / heads)
        with attention_kernel(self.attention):
            attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.mixed(attended.transpose(1, 2).reshape(batch, length, width))
        change: Tensor = self.output(F.gelu(self.hidden(self.norms[1](x))))
        return x + change


class ByteTransformer(nn.Module):
    """Bytes (B, L) to logits of each next byte (B, L, 256), L up to `context`.

    attention   `fused` or `math`, see `attention_kernel`
    """

    def __init__(self, context: int, width: int, depth: int, heads: int, attention: str) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError("heads must divide width", where="width", seen=f"{width} and {heads} heads")
        attention_kernel(attention)
        self.embedding = nn.Embedding(BYTES, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(*[Block(width, heads, attention) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self._draw(depth)

    def forward(self, sequences: Tensor) -> Tensor:
        x = self.embedding(sequences.long()) + self.positions[: sequences.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.embedding.weight)

    def _draw(self, depth: int) -> None:
        """Small weights, and smaller ones for what is added to the stream, as GPT-2 (Radford et al. 2019)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("mixed.weight", "output.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if into_stream else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
