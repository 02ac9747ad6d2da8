"""State dicts of a ``TransformerBridge`` made by ``boot_native``, as TransformerLens 4 writes them."""

import einops

from hooked_rnn.errors import WeightsError
from hooked_rnn.loaders import hooked_transformer
from hooked_rnn.loaders.formats import Format, Known, Parts, StateDict

_EMBEDDINGS = {
    "embed.weight": "embed.W_E",
    "pos_embed.weight": "pos_embed.W_pos",
    "unembed.bias": "unembed.b_U",
}


def fits(weights: StateDict) -> bool:
    return "blocks.0.attn.q.weight" in weights and "embed.weight" in weights


def read(weights: StateDict, known: Known, notes: list[str]) -> Parts:
    """As a HookedTransformer; the number of heads, which no shape tells, is the stored configuration's."""
    n_heads = known.config.get("n_heads")
    width = len(weights["blocks.0.attn.q.weight"])
    if not isinstance(n_heads, int) or n_heads < 1 or width % n_heads:
        raise WeightsError(
            f"{known.source} is a TransformerBridge's state dict, and n_heads={n_heads!r} beside it: expected one that divides {width}, "
            "which no shape tells; save {'model': bridge.state_dict(), 'config': {'n_heads': bridge.cfg.n_heads}}, or hooked_rnn.save_model(bridge, directory)"
        )
    return hooked_transformer.read(_renamed(weights, n_heads, known.source), known, notes)


def _renamed(weights: StateDict, n_heads: int, source: str) -> StateDict:
    """With HookedTransformer's names and shapes."""
    renamed = {}
    for name, tensor in weights.items():
        module, kind = name.rsplit(".", 1)
        block, _, part = module.rpartition(".")
        if name in _EMBEDDINGS:
            renamed[_EMBEDDINGS[name]] = tensor
        elif name == "unembed.weight":
            renamed["unembed.W_U"] = tensor.T
        elif block.endswith(".attn") and part in ("q", "k", "v"):
            if kind == "weight":
                renamed[f"{block}.W_{part.upper()}"] = einops.rearrange(tensor, "(head h) m -> head m h", head=n_heads)
            else:
                renamed[f"{block}.b_{part.upper()}"] = einops.rearrange(tensor, "(head h) -> head h", head=n_heads)
        elif block.endswith(".attn") and part == "o":
            per_head = einops.rearrange(tensor, "m (head h) -> head h m", head=n_heads) if kind == "weight" else tensor
            renamed[f"{block}.{'W' if kind == 'weight' else 'b'}_O"] = per_head
        elif block.endswith(".mlp") and part in ("in", "out"):
            renamed[f"{block}.{'W' if kind == 'weight' else 'b'}_{part}"] = tensor.T if kind == "weight" else tensor
        elif part in ("ln1", "ln2", "ln_final"):
            renamed[f"{module}.{'w' if kind == 'weight' else 'b'}"] = tensor
        else:
            raise WeightsError(f"{source} has {name}: expected the weights of a transformer that boot_native makes")
    return renamed


TRANSFORMER_BRIDGE = Format(
    "TransformerBridge",
    "blocks.0.attn.q.weight and embed.weight, with n_heads in a configuration beside them: TransformerLens 4",
    fits,
    read,
)
