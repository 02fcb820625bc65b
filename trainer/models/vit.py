"""The vision transformer: an image as a sequence of patches, mixed by self-attention."""

from functools import partial
from math import gcd

import torch
from torch import Tensor, nn

from trainer.base.checks import check_choice, check_that, check_whole
from trainer.models.parts import (
    StochasticDepth,
    activation_layer,
    check_dropout,
    check_stochastic_depth,
    depth_drop_probs,
    with_plans,
)

_EPS = 1e-6  # of layer norm, in the authors' code
_STD = 0.02  # of position embeddings, as in BERT
_LARGEST_PATCH, _PATCHES_A_SIDE, _MOST_PATCHES = 16, 7, 1024
_norm = partial(nn.LayerNorm, eps=_EPS)


class Patches(nn.Module):
    """Embeds patches of P x P pixels and adds learned positions: images (N, C, H, W) -> tokens (N, T, D).

    T = H W / P^2 in row order, plus a learned class token before them if there is one.
    """

    def __init__(self, num_channels: int, height: int, width: int, *, patch: int, dim: int, has_class: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(num_channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if has_class else None
        num_tokens = (height // patch) * (width // patch) + has_class
        self.positions = nn.Parameter(torch.empty(1, num_tokens, dim).normal_(std=_STD))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        tokens_NTD: Tensor = self.embed(images_NCHW).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens_NTD = torch.cat([self.class_token.expand(len(tokens_NTD), -1, -1), tokens_NTD], 1)
        return (tokens_NTD + self.positions).contiguous()


class Attention(nn.Module):
    """x + W_o concat_h(softmax(q_h k_h^T / sqrt(E)) v_h) + b_o; (N, T, D) -> (N, T, D).

    q, k and v are linear in LN(x), and head h has E = D / `num_heads` numbers of each.
    """

    residual_end = "output"

    def __init__(self, dim: int, num_heads: int, drop_prob: float, depth_drop_prob: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.norm = _norm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(drop_prob) if drop_prob else nn.Identity()
        self.stochastic_depth = StochasticDepth(depth_drop_prob) if depth_drop_prob else nn.Identity()

    def forward(self, tokens_NTD: Tensor) -> Tensor:
        normed_NTD = self.norm(tokens_NTD)
        q_NHTE, k_NHTE, v_NHTE = (
            layer(normed_NTD).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        # not torch's fused function, which second-order optimizers cannot differentiate twice
        scores_NHTT = (q_NHTE * self.head_dim**-0.5) @ k_NHTE.transpose(2, 3)
        mixed_NTD = (scores_NHTT.softmax(3) @ v_NHTE).transpose(1, 2).flatten(2)
        branch_NTD: Tensor = self.stochastic_depth(self.dropout(self.output(mixed_NTD)))
        return tokens_NTD + branch_NTD


class FeedForward(nn.Module):
    """x + W_2 f(W_1 LN(x)), with biases, on each token alone; (N, T, D) -> (N, T, D)."""

    residual_end = "linear2"

    def __init__(self, dim: int, hidden: int, activation: str, drop_prob: float, depth_drop_prob: float) -> None:
        super().__init__()
        self.norm = _norm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.activation = activation_layer(activation)
        self.dropout1 = nn.Dropout(drop_prob) if drop_prob else nn.Identity()
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout2 = nn.Dropout(drop_prob) if drop_prob else nn.Identity()
        self.stochastic_depth = StochasticDepth(depth_drop_prob) if depth_drop_prob else nn.Identity()

    def forward(self, tokens_NTD: Tensor) -> Tensor:
        hidden_NTM = self.dropout1(self.activation(self.linear1(self.norm(tokens_NTD))))
        branch_NTD: Tensor = self.stochastic_depth(self.dropout2(self.linear2(hidden_NTM)))
        return tokens_NTD + branch_NTD


class Pool(nn.Module):
    """Tokens (N, T, D) -> (N, D): the class token, or the mean of all tokens."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, tokens_NTD: Tensor) -> Tensor:
        return tokens_NTD[:, 0] if self.pool == "class_token" else tokens_NTD.mean(1)

    def extra_repr(self) -> str:
        return self.pool


def vit(
    *,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    patch: int | None = None,
    dim: int = 64,
    depth: int = 6,
    num_heads: int = 4,
    hidden: int = 128,
    pool: str = "class_token",
    activation: str = "gelu",
    drop_prob: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Sequential:
    """Vision transformer (Dosovitskiy et al. 2021): an encoder as in Vaswani et al. 2017, with norms before branches.

    Patches of `patch` x `patch` pixels are embedded as T tokens of D = `dim` numbers, with learned positions. `depth`
    times self-attention with `num_heads` heads and a feed-forward network of M = `hidden` units follow, then layer norm
    and a linear output of the class token or of the mean token. With I = C `patch`^2 and K outputs it has

        (I + 1) D + (T + 2) D + depth (4 D^2 + 2 D M + 9 D + M) + 2 D + (D + 1) K

    parameters, 2 D less for the mean: ViT-B/16 (dim 768, depth 12, num_heads 12, hidden 3072) has 86,567,656 for 1000
    classes and 224x224 pixels. Transformers usually need a warm-up (CUHK ELEG 5491, "Learning Rate Warmup").

    `patch`: null for the largest divisor of both sides that is at most 16 and leaves about 7 patches a side (2 for 8x8
    images, 4 for 28x28 and 32x32, 16 for 224x224); `num_heads`: divides `dim`; `pool`: class_token or mean;
    `drop_prob`: in [0, 1), after every linear layer but those of query, key and value and the output, and after the
    positions; `stochastic_depth`: drop probability of the last block's branches, in [0, 1), from block to block as in
    Huang et al. 2016. Attention is not torch's fused function, so that optimizers of second order can be used.

    Raises ValueError for other values, and for images whose sides only small patches divide.
    """
    num_channels, height, width = input_shape
    patch = _patch(patch, height, width)
    for key, value in (("dim", dim), ("depth", depth), ("num_heads", num_heads), ("hidden", hidden)):
        check_whole(key, value, 1)
    check_that(dim % num_heads == 0, "num_heads", num_heads, f"a divisor of dim={dim}")
    check_choice("pool", pool, ("class_token", "mean"))
    check_dropout(drop_prob)
    check_stochastic_depth(stochastic_depth)
    has_class = pool == "class_token"
    layers: dict[str, nn.Module] = {
        "patches": Patches(num_channels, height, width, patch=patch, dim=dim, has_class=has_class)
    }
    if drop_prob:
        layers["dropout"] = nn.Dropout(drop_prob)
    plan: dict[str, str] = {}
    for number, depth_drop_prob in enumerate(depth_drop_probs(stochastic_depth, depth), 1):
        layers[f"attention{number}"] = Attention(dim, num_heads, drop_prob, depth_drop_prob)
        layers[f"feed_forward{number}"] = FeedForward(dim, hidden, activation, drop_prob, depth_drop_prob)
        plan |= {f"attention{number}.{name}": kind for name, kind in _ATTENTION_PLAN.items()}
        plan |= {f"feed_forward{number}.{name}": kind for name, kind in _FEED_FORWARD_PLAN.items()}
        if not drop_prob:
            del plan[f"feed_forward{number}.dropout1"]
    layers |= {"norm": _norm(dim), "pool": Pool(pool), "output": nn.Linear(dim, num_outputs)}
    return with_plans(layers, plan)


# heads, and hidden units, are split
_ATTENTION_PLAN = {"query": "column", "key": "column", "value": "column", "output": "row"}
_FEED_FORWARD_PLAN = {"linear1": "column", "dropout1": "split", "linear2": "row"}


def _patch(patch: int | None, height: int, width: int) -> int:
    """Return the patch size. Raises ValueError if it does not divide both sides, or makes too many patches."""
    common = gcd(height, width)
    if patch is not None:
        check_whole("patch", patch, 1)
        check_that(common % patch == 0, "patch", patch, f"a divisor of both sides of the {height}x{width} images")
        return patch
    limit = min(_LARGEST_PATCH, max(2, min(height, width) // _PATCHES_A_SIDE))
    found = next(size for size in range(min(limit, common), 0, -1) if common % size == 0)
    must = f"given, or crop or pad the images: no patch size up to {limit} divides both sides of {height}x{width}"
    check_that(height * width // found**2 <= _MOST_PATCHES, "patch", None, must)
    return found
