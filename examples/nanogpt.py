"""A plain GPT as people write it, converted: `python examples/nanogpt.py`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sleepc

WINDOW = 8
TOLERANCE = 1e-4  # float32, sums in another order


class Attention(nn.Module):
    """Causal attention of [B,T,C], fused (`flash`) or spelled out."""

    causal: Tensor

    def __init__(self, width: int, heads: int, context: int, flash: bool) -> None:
        super().__init__()
        self.heads, self.flash = heads, flash
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("causal", torch.ones(context, context, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,C] -> [B,T,C]."""
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(x).split(c, dim=2))
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5
            scores = scores.masked_fill(~self.causal[:t, :t], float("-inf"))
            y = scores.softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, c))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the stream [B,T,C]."""

    def __init__(self, width: int, heads: int, context: int, flash: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, context, flash)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,C] -> [B,T,C]."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """tokens [B,T] -> logits [B,T,V], T up to `context`."""

    def __init__(  # noqa: PLR0913 (the whole of a model's sizes)
        self, vocab: int = 50, width: int = 32, heads: int = 4, blocks: int = 3, context: int = 64,
        flash: bool = True, tied: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, context, flash) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B,T,V] of tokens [B,T]."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def compare(model: GPT, length: int = WINDOW) -> float:
    """Convert `model` and return the largest difference of its logits from the original's over `length` tokens."""
    program = sleepc.convert(model, {"window": WINDOW, "sinks": 0})
    tokens = torch.randint(0, program.graphs.vocab, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens).numpy()
    got = program.session().feed(tokens.tolist(), logits="all")
    return float(abs(got - expected).max())


if __name__ == "__main__":
    torch.manual_seed(0)
    for flash in (True, False):
        error = compare(GPT(flash=flash).eval())
        print(f"{'fused' if flash else 'spelled out'} attention: largest difference of a logit {error:.1e}")
        if error > TOLERANCE:
            raise SystemExit("the converted model differs from the original")
    print(f"The converted model equals the original inside its window of {WINDOW} tokens.")
