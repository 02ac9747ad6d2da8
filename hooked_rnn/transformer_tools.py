"""What TransformerLens's tools ask of a model that only a transformer has, and what to say instead.

A tool that reads attention, an MLP, a residual stream or a tokenizer cannot mean anything on a recurrent
network. Where it asks, it gets one error that says why and what comes nearest. docs/transformer-lens.md is
the whole table.
"""

import re
from collections.abc import Collection
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hooked_rnn.errors import TransformerOnlyAttributeError, TransformerOnlyError, nearest

NO_ATTENTION = "a recurrent network has no attention: what comes from earlier positions is hook_recurrent"
NO_MLP = "a recurrent network has no MLP: its neurons are hook_hidden"
NO_STREAM = "a recurrent network has no residual stream that its layers add to: each layer's output is hook_out"
NO_NORM = "a recurrent network has no layer norm"
NO_SSM = "a recurrent network has no state-space mixer: its state at each step is hook_hidden"
NO_TOKENIZER = "a HookedRNN has no tokenizer: pass token ids, or classes, as integers"

ATTRIBUTES = {
    "n_key_value_heads": NO_ATTENTION,
    "use_attn_result": NO_ATTENTION,
    "use_split_qkv_input": NO_ATTENTION,
    "attn_only": NO_ATTENTION,
    "d_head": NO_ATTENTION,
    "d_mlp": NO_MLP,
    "use_hook_mlp_in": NO_MLP,
    "default_prepend_bos": NO_TOKENIZER,
    "tokenizer": NO_TOKENIZER,
}
"""Attributes of a transformer's configuration, or of the model, that tools read, and why there are none."""

HOOK_POINTS = [
    (r"blocks\.0\.hook_(?:in|resid_pre)", NO_STREAM, "hook_embed"),
    (r"blocks\.(\d+)\.hook_(?:in|resid_pre)", NO_STREAM, "blocks.{below}.hook_out"),
    (r"blocks\.(\d+)\.hook_resid_post", NO_STREAM, "blocks.{layer}.hook_out"),
    (r"blocks\.(\d+)\.hook_resid_mid", NO_STREAM, None),
    (r"blocks\.(\d+)\.(?:attn\.\w+|hook_attn_\w+|hook_[qkv]_input)", NO_ATTENTION, "blocks.{layer}.hook_recurrent"),
    (r"blocks\.(\d+)\.mlp\.hook_pre", NO_MLP, "blocks.{layer}.hook_preact"),
    (r"blocks\.(\d+)\.(?:mlp\.\w+|hook_mlp_\w+)", NO_MLP, "blocks.{layer}.hook_hidden"),
    (r"(?:blocks\.(\d+)\.)?ln\w*\.\w+", NO_NORM, None),
    (r"(?:hook_pos_embed|pos_embed\.\w+)", "a recurrent network has no embedding of positions", None),
    (r"embed\.hook_out", "the embedding has one hook point", "hook_embed"),
    (r"unembed\.hook_out", "the unembedding has one hook point", "hook_logits"),
]
"""Hook points of a transformer, why there are none, and which of ours comes nearest."""


def unknown_hook_point(name: object, known: Collection[str]) -> str:
    """What to say of a name that no hook point has: where it is a transformer's, the counterpart, else the nearest names."""
    for pattern, reason, counterpart in HOOK_POINTS:
        match = re.fullmatch(pattern, str(name).removesuffix("_grad"))
        if match is None:
            continue
        layer = int(match[1]) if match.re.groups and match[1] else 0
        instead = counterpart and counterpart.format(layer=layer, below=layer - 1)
        return f"no hook point is named {name!r}, as {reason}" + (f"; nearest: {instead!r}" if instead in known else "")
    step = step_of(str(name))
    if step is not None and re.sub(r"steps\.\d+\.", "", str(name)) in known:
        return f"no hook point is named {name!r}: expected model.set_use_step_hooks(True, n_steps) first, with n_steps above {step}"
    return f"no hook point is named {name!r}; nearest: {nearest(str(name), known)}"


def step_of(name: str) -> int | None:
    """Which step a step point is of, by its name; None for any other name."""
    match = re.fullmatch(r"blocks\.\d+\.steps\.(\d+)\.hook_\w+", name)
    return None if match is None else int(match[1])


class TransformerFields:
    """Base of the configuration: what tools read of a transformer's."""

    normalization_type: None = None
    """There is no layer norm: tools that would apply one leave a vector as it is."""

    def __getattr__(self, name: str) -> NoReturn:
        raise missing_attribute(self, name)


class TransformerTools:
    """Base of the model: what tools ask of it besides hooks."""

    W_U: Any

    def __getattr__(self, name: str) -> Any:
        if name in ATTRIBUTES:
            raise missing_attribute(self, name)
        return super().__getattr__(name)  # type: ignore[misc]  # nn.Module's, which comes after this class

    def tokens_to_residual_directions(self, tokens: int | Tensor) -> Float[Tensor, "*classes d_hidden"]:
        """The unembedding's column of each class: what the top layer's output is multiplied by for its logit.

        Args:
            tokens: a class, or an integer tensor of classes of any shape.

        Raises:
            TransformerOnlyError: a string.
        """
        if isinstance(tokens, str):
            self.to_single_token(tokens)
        index = torch.as_tensor(tokens, device=self.W_U.device)
        if index.numel() == 1:
            index = index.reshape(())  # as TransformerLens has it
        return functional.embedding(index, self.W_U.T)

    def to_single_token(self, text: str) -> NoReturn:
        """Asked by tools that are given a string."""
        raise TransformerOnlyError(f"cannot read {text!r} as a class: {NO_TOKENIZER}")

    def tl_parameters(self) -> NoReturn:
        """Asked by ``transformer_lens.SVDInterpreter``."""
        raise TransformerOnlyError(
            "SVDInterpreter reads a transformer's OV, W_in and W_out matrices, which a recurrent network does not have; "
            "use transformer_lens.FactoredMatrix, or torch.linalg.svd on blocks[layer].W_hh"
        )


def missing_attribute(owner: object, name: str) -> AttributeError:
    """The error for an attribute that ``owner`` lacks."""
    if name in ATTRIBUTES:
        return TransformerOnlyAttributeError(f"there is no {name}, as {ATTRIBUTES[name]}")
    return AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}")
