"""The format of Nanda et al. 2023, "Progress measures for grokking": names as HookedTransformer's, weights output-first."""

import einops

from hooked_rnn.errors import WeightsError
from hooked_rnn.loaders import hooked_transformer
from hooked_rnn.loaders.formats import Format, Known, Parts, StateDict, check_ndim

_DIMS = {f"blocks.0.attn.W_{letter}": 3 for letter in "QKV"} | {
    "embed.W_E": 2,
    "pos_embed.W_pos": 2,
    "blocks.0.attn.W_O": 2,
    "blocks.0.mlp.W_in": 2,
    "unembed.W_U": 2,
}


def fits(weights: StateDict) -> bool:
    output = weights.get("blocks.0.attn.W_O")
    return output is not None and output.ndim == 2 and "embed.W_E" in weights


def read(weights: StateDict, known: Known, notes: list[str]) -> Parts:
    """As a HookedTransformer, once every weight but the unembedding and the positions is turned input-first."""
    check_ndim(weights, _DIMS, known.source)
    n_heads, d_head, d_model = weights["blocks.0.attn.W_Q"].shape
    W_O = weights["blocks.0.attn.W_O"]
    if list(W_O.shape) != [d_model, n_heads * d_head]:
        raise WeightsError(
            f"{known.source}: blocks.0.attn.W_O has shape {list(W_O.shape)}, expected {[d_model, n_heads * d_head]}, "
            f"as blocks.0.attn.W_Q has {[n_heads, d_head, d_model]} (head, d_head, d_model)"
        )
    turned = {}
    for name, tensor in weights.items():
        kind = name.rsplit(".", 1)[-1]
        if kind in ("W_Q", "W_K", "W_V"):
            tensor = tensor.transpose(-1, -2)
        elif kind in ("W_E", "W_in", "W_out"):
            tensor = tensor.T
        elif kind == "W_O":
            tensor = einops.rearrange(tensor, "m (head h) -> head h m", head=n_heads)
        turned[name] = tensor
    return hooked_transformer.read(turned, known, notes)


GROKKING_PAPER = Format(
    "the grokking paper's",
    "blocks.0.attn.W_O [d_model, head * d_head] and embed.W_E [d_model, d_vocab]: Nanda et al. 2023, weights output-first",
    fits,
    read,
)
