"""A transformer to compare with: TransformerLens's own, with weights drawn as in Nanda et al. 2023 and saved by stable names.

The weights are named and shaped as HookedTransformer has them ("blocks.0.attn.W_Q" [head, d_model, d_head]; row vectors times
weights), whatever the modules of this version of TransformerLens are called.
"""

from collections.abc import Mapping
from typing import Any

import einops
import torch
from torch import Generator, Tensor, nn
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

from hooked_rnn.baselines.transformer_config import TransformerConfig
from hooked_rnn.errors import ConversionError

_PLAIN = {
    "normalization_type": None,
    "positional_embedding_type": "standard",
    "attention_dir": "causal",
    "attn_only": False,
    "gated_mlp": False,
    "parallel_attn_mlp": False,
    "use_attn_scale": True,
    "attn_scale": -1.0,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "n_key_value_heads": None,
    "final_rms": False,
}
"""What every transformer that a TransformerConfig describes has in TransformerLens's configuration."""


def build_transformer(cfg: TransformerConfig, normalization_type: str | None = None) -> TransformerBridge:
    """A ``TransformerBridge`` with weights drawn from ``cfg.seed`` alone; no global random state is read or changed.

    On the CPU and in train mode, as any new module. Where ``cfg.bias`` is False its biases are zeros that are not trained,
    since TransformerLens has no transformer without.

    Args:
        cfg: the configuration.
        normalization_type: a layer norm, by TransformerLens's name, for a transformer whose weights are about to be set; one that
            has any cannot be described by a TransformerConfig, and so neither trained nor saved here.
    """
    sizes = {
        name: getattr(cfg, name)
        for name in ("d_vocab", "d_vocab_out", "d_model", "n_heads", "d_head", "d_mlp", "n_layers", "n_ctx", "act_fn")
    }
    # With a seed, TransformerLens forks the global generator for its own initial weights; ours replace them.
    bridge = TransformerBridge.boot_native(
        TransformerBridgeConfig(**sizes, **_PLAIN | {"normalization_type": normalization_type}, seed=0)
    )
    _let_unembedding_bias_be_trained(bridge)
    for bias in _biases(bridge).values():
        bias.requires_grad_(cfg.bias)
    if normalization_type is None:
        set_weights(bridge, initial_weights(cfg))
    bridge.built_from = cfg
    return bridge


def initial_weights(cfg: TransformerConfig) -> dict[str, Tensor]:
    """Normal numbers, with the standard deviations of Nanda et al. 2023 times ``cfg.init_scale``; biases are zeros.

    1/sqrt(d_model) for every weight (also ``W_O`` and ``W_out``) but ``W_U``, which has 1/sqrt(d_vocab_out).
    """
    generator = Generator().manual_seed(cfg.seed)
    weights = {}
    for name, shape in weight_shapes(cfg).items():
        width = cfg.d_vocab_out if name == "unembed.W_U" else cfg.d_model
        drawn = torch.zeros(shape) if ".b_" in name else torch.empty(shape).normal_(generator=generator)
        weights[name] = drawn * (cfg.init_scale * width**-0.5)
    return weights


def weight_shapes(cfg: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The weights by name, in the order in which they are drawn; biases only where ``cfg.bias``."""
    assert cfg.d_head is not None  # the configuration saw to it
    per_head = (cfg.n_heads, cfg.d_model, cfg.d_head)
    block = {
        "attn.W_Q": per_head,
        "attn.W_K": per_head,
        "attn.W_V": per_head,
        "attn.W_O": (cfg.n_heads, cfg.d_head, cfg.d_model),
        **{f"attn.b_{letter}": (cfg.n_heads, cfg.d_head) for letter in "QKV"},
        "attn.b_O": (cfg.d_model,),
        "mlp.W_in": (cfg.d_model, cfg.d_mlp),
        "mlp.b_in": (cfg.d_mlp,),
        "mlp.W_out": (cfg.d_mlp, cfg.d_model),
        "mlp.b_out": (cfg.d_model,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (cfg.d_vocab, cfg.d_model),
        "pos_embed.W_pos": (cfg.n_ctx, cfg.d_model),
        **{f"blocks.{layer}.{name}": shape for layer in range(cfg.n_layers) for name, shape in block.items()},
        "unembed.W_U": (cfg.d_model, cfg.d_vocab_out),
        "unembed.b_U": (cfg.d_vocab_out,),
    }
    return {name: shape for name, shape in shapes.items() if cfg.bias or ".b_" not in name}


def config_of(bridge: TransformerBridge) -> TransformerConfig:
    """The inverse of :func:`build_transformer`; of any other transformer, the configuration that builds one of its kind.

    ``bias`` is True where a bias is trained or is not zero. Where the initial weights are not ours, their scale and seed are
    the defaults.

    Raises:
        ConversionError: a transformer that a TransformerConfig cannot describe, such as one with layer norm.
    """
    found = bridge.cfg
    architecture = getattr(found, "architecture", None)
    if architecture != "TransformerLensNative":
        raise ConversionError(
            f"a TransformerBridge of architecture {architecture!r}: expected one made by TransformerBridge.boot_native"
        )
    for name, value in _PLAIN.items():
        if getattr(found, name) != value:
            raise ConversionError(f"a transformer with {name}={getattr(found, name)!r}: expected {value!r}")
    sizes = ("d_vocab", "d_model", "n_heads", "d_head", "d_mlp", "n_layers", "n_ctx", "act_fn")
    built_from = getattr(bridge, "built_from", None)
    drawn = {name: getattr(built_from, name) for name in ("init_scale", "seed")} if built_from is not None else {}
    return TransformerConfig(
        **{name: getattr(found, name) for name in sizes},
        d_vocab_out=int(bridge.W_U.shape[1]),
        bias=any(bias.requires_grad or bool(bias.any()) for bias in _biases(bridge).values()),
        **drawn,
    )


def weights_of(bridge: TransformerBridge) -> dict[str, Tensor]:
    """The weights by HookedTransformer's names and in its shapes; biases only where :func:`config_of` says so.

    Detached; some are views of the parameters, so they are to be read or saved, not written in.
    """
    cfg = config_of(bridge)
    state = {name: tensor.detach() for name, tensor in bridge.state_dict().items()}
    weights = {
        "embed.W_E": state["embed.weight"],
        "pos_embed.W_pos": state["pos_embed.weight"],
        "unembed.W_U": state["unembed.weight"].T,
        "unembed.b_U": state["unembed.bias"],
    }
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}."
        for letter in "QKV":
            weight, bias = (state[f"{block}attn.{letter.lower()}.{kind}"] for kind in ("weight", "bias"))
            weights[f"{block}attn.W_{letter}"] = einops.rearrange(weight, "(head h) m -> head m h", head=cfg.n_heads)
            weights[f"{block}attn.b_{letter}"] = einops.rearrange(bias, "(head h) -> head h", head=cfg.n_heads)
        weight = state[f"{block}attn.o.weight"]
        weights[f"{block}attn.W_O"] = einops.rearrange(weight, "m (head h) -> head h m", head=cfg.n_heads)
        weights[f"{block}attn.b_O"] = state[f"{block}attn.o.bias"]
        for side in ("in", "out"):
            weights[f"{block}mlp.W_{side}"] = state[f"{block}mlp.{side}.weight"].T
            weights[f"{block}mlp.b_{side}"] = state[f"{block}mlp.{side}.bias"]
    return {name: weights[name] for name in weight_shapes(cfg)}


def set_weights(bridge: TransformerBridge, weights: Mapping[str, Tensor]) -> None:
    """Copy weights that are named and shaped as :func:`weights_of` has them into the model; biases not given become zeros.

    Raises:
        RuntimeError, ValueError: torch's or TransformerLens's, where names or shapes do not fit.
    """
    zeros = {name: torch.zeros_like(bias) for name, bias in _biases(bridge).items()}
    bridge.load_state_dict(zeros | convert_tl_checkpoint(dict(weights), bridge.cfg), strict=True)


def trained_parameters(bridge: TransformerBridge) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by the names that the bridge's own ``state_dict`` has: "blocks.0.attn.q.weight"."""
    parameters = bridge.state_dict(keep_vars=True)
    return {name: p for name, p in parameters.items() if isinstance(p, nn.Parameter) and p.requires_grad}


def _biases(bridge: TransformerBridge) -> dict[str, Any]:
    return {name: p for name, p in bridge.state_dict(keep_vars=True).items() if name.endswith(".bias")}


def _let_unembedding_bias_be_trained(bridge: TransformerBridge) -> None:
    """TransformerLens keeps the unembedding's bias, which it adds to the logits, as a buffer of zeros."""
    head = bridge.unembed.original_component
    bias = head.bias
    del head.bias
    head.bias = nn.Parameter(bias)
