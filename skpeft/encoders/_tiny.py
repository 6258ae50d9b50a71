"""A small seeded transformer, the frozen part of the encoders that need no download."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

ROLE_TABLE = {
    "blocks": "blocks",
    **{
        role: role
        for role in (
            "query",
            "key",
            "value",
            "attention_output",
            "ffn_in",
            "ffn_out",
            "attention_norm",
            "ffn_norm",
        )
    },
}


class Block(nn.Module):
    """One pre-normalised transformer block."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.attention_output = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, 2 * dim)
        self.ffn_out = nn.Linear(2 * dim, dim)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Map hidden states (batch, seq, dim), mask (batch, seq), to (batch, seq, dim)."""
        batch, seq, dim = hidden.shape

        def heads(x: Tensor) -> Tensor:
            return x.view(batch, seq, self.n_heads, dim // self.n_heads).transpose(1, 2)

        x = self.attention_norm(hidden)
        mixed = nn.functional.scaled_dot_product_attention(
            heads(self.query(x)),
            heads(self.key(x)),
            heads(self.value(x)),
            attn_mask=None if mask is None else mask[:, None, None, :],
        )
        hidden = hidden + self.attention_output(
            mixed.transpose(1, 2).reshape(batch, seq, dim)
        )
        return hidden + self.ffn_out(
            nn.functional.gelu(self.ffn_in(self.ffn_norm(hidden)))
        )


class TinyTransformer(nn.Module):
    """Embeds a batch by `embed`, runs the blocks, takes the mean over real tokens.

    Parameters
    ----------
    embed : torch.nn.Module
        Maps a batch, a dict of tensors, to hidden states of shape (batch, seq, dim).
    dim, n_layers, n_heads : int
        Hidden width, number of blocks and of attention heads.
    """

    def __init__(self, embed: nn.Module, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(Block(dim, n_heads) for _ in range(n_layers))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Map a batch to features of shape (batch, dim)."""
        hidden = self.embed(batch)
        mask = batch.get("attention_mask")
        for block in self.blocks:
            hidden = block(hidden, mask)
        if mask is None:
            return hidden.mean(dim=1)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


class ColumnEmbedding(nn.Module):
    """One token a column: a direction scaled by the value, plus an offset."""

    def __init__(self, n_columns: int, dim: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(n_columns, dim))
        self.offset = nn.Parameter(torch.empty(n_columns, dim))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Map values (batch, n_columns) to hidden states (batch, n_columns, dim)."""
        return batch["values"].unsqueeze(-1) * self.direction + self.offset


class WordEmbedding(nn.Module):
    """Hashed words plus sinusoidal positions."""

    def __init__(self, n_buckets: int, max_length: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_buckets, dim)
        position = torch.arange(
            max_length, dtype=torch.float32, device="cpu"
        ).unsqueeze(1)
        step = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu")
        frequency = torch.exp(step * (-math.log(1e4) / dim))
        table = torch.cat(
            [(position * frequency).sin(), (position * frequency).cos()], dim=1
        )
        self.positions: Tensor
        self.register_buffer("positions", 0.1 * table)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Map token ids (batch, seq) to hidden states (batch, seq, dim)."""
        ids = batch["input_ids"]
        return self.words(ids) + self.positions[: ids.shape[1]]


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module and fill all parameters from one seed.

    Norms get weight 1 and bias 0, biases are 0, matrices are normal with variance
    1 / in, embeddings are standard normal. The module is built without storage, so that
    torch's global generator, from which it would draw, is left alone.
    """
    with torch.device("meta"):
        module = build()
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for part in module.modules():
        for name, parameter in sorted(part.named_parameters(recurse=False)):
            values = torch.randn(
                parameter.shape, generator=generator, dtype=torch.float32, device="cpu"
            )
            if isinstance(part, nn.LayerNorm):
                values = torch.full_like(values, float(name == "weight"))
            elif name == "bias":
                values = torch.zeros_like(values)
            elif isinstance(part, nn.Linear):
                values *= part.in_features**-0.5
            setattr(part, name, nn.Parameter(values))
    return module
