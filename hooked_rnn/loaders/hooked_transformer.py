"""State dicts of HookedTransformer, as TransformerLens 1 to 3 wrote them, and as ``hooked_rnn.save_model`` writes a transformer."""

import re

from hooked_rnn.baselines.transformer_config import ACTIVATIONS, TransformerConfig
from hooked_rnn.errors import WeightsError, choices
from hooked_rnn.loaders.formats import Format, Known, Parts, StateDict, check_activation, check_ndim

BUFFERS = (".mask", ".IGNORE")
"""What the names end in of tensors that are no weights."""
NORMALIZATIONS = (None, "LN", "LNPre", "RMS", "RMSPre")
_REQUIRED = {
    "positional_embedding_type": "standard",
    "attention_dir": "causal",
    "attn_only": False,
    "gated_mlp": False,
    "parallel_attn_mlp": False,
    "use_attn_scale": True,
    "scale_attn_by_inverse_layer_idx": False,
    "use_local_attn": False,
    "use_normalization_before_and_after": False,
    "final_rms": False,
}
"""What a configuration beside the weights must say where it says anything: another transformer would have the same weights."""
NORM = re.compile(r"(blocks\.\d+\.ln[12]|ln_final)\.[wb]")
_DIMS = {
    "embed.W_E": 2,
    "pos_embed.W_pos": 2,
    "blocks.0.attn.W_Q": 3,
    "blocks.0.mlp.W_in": 2,
    "unembed.W_U": 2,
}


def fits(weights: StateDict) -> bool:
    output = weights.get("blocks.0.attn.W_O")
    return output is not None and output.ndim == 3 and "blocks.0.attn.W_Q" in weights


def read(weights: StateDict, known: Known, notes: list[str]) -> Parts:
    """Dimensions are the weights'; biases that are missing are zeros."""
    _check_kind(known)
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(BUFFERS)}
    check_ndim(weights, _DIMS, known.source)
    n_heads, d_model, d_head = weights["blocks.0.attn.W_Q"].shape
    cfg = TransformerConfig(
        d_vocab=len(weights["embed.W_E"]),
        d_vocab_out=weights["unembed.W_U"].shape[1],
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=weights["blocks.0.mlp.W_in"].shape[1],
        n_layers=1 + max(int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))),
        n_ctx=len(weights["pos_embed.W_pos"]),
        act_fn=check_activation(known.activation(notes), ACTIVATIONS),
        bias=any(".b_" in name for name in weights),
    )
    return Parts(cfg, weights, _normalization(weights, known))


def _check_kind(known: Known) -> None:
    for name, value in _REQUIRED.items():
        if known.config.get(name, value) != value:
            raise WeightsError(
                f"{known.source} has {name}={known.config[name]!r} in its configuration: expected {value!r}"
            )


def _normalization(weights: StateDict, known: Known) -> str | None:
    """By the names where there are weights of a layer norm, else what the configuration beside the weights says, or None."""
    if any(NORM.fullmatch(name) for name in weights):
        return "LN" if any(NORM.fullmatch(name) and name.endswith(".b") for name in weights) else "RMS"
    found = known.config.get("normalization_type")
    if found not in NORMALIZATIONS:
        raise WeightsError(f"{known.source} has normalization_type={found!r}: expected {choices(NORMALIZATIONS)}")
    if found in ("LN", "RMS"):
        raise WeightsError(
            f"{known.source} has normalization_type={found!r}, but lacks the weights blocks.0.ln1.w and on"
        )
    return found


HOOKED_TRANSFORMER = Format(
    "HookedTransformer",
    "blocks.0.attn.W_O [head, d_head, d_model], as TransformerLens 1 to 3 and hooked_rnn.save_model write",
    fits,
    read,
)
