"""The logits at the last position, with what a single token decides computed once for each token, and looked up.

Of a one-layer transformer: at each position a token's key and value; and the last position's query, attention output and MLP alone,
as nothing else reaches those logits. On all pairs of numbers that is about a third of the work. Of an MLP: what each token adds to the
pre-activations. Nothing between is computed where a hook point is, so a model with hooks needs its own forward pass.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hooked_rnn.affine import affine
from hooked_rnn.baselines.mlp import HookedMLP

BRIDGE = "transformer_lens.model_bridge."
"""Where TransformerLens's own hooks are defined; a user's are wrapped elsewhere."""


def has_hooks(model: nn.Module) -> bool:
    """Whether any module of the model, hook points included, has a hook, through TransformerLens or torch.

    Not counting those by which a bridge feeds its own hook points, from its first forward pass on.
    """
    return any(
        not str(getattr(hook, "__module__", "")).startswith(BRIDGE)
        for module in model.modules()
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        for hook in hooks.values()
    )


def transformer_logits(bridge: Any, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n d_vocab_out"]:
    """The numbers of ``bridge(tokens)[:, -1]``, and their gradients, up to rounding.

    Args:
        bridge: a ``TransformerBridge`` of one block, without hooks, that :func:`hooked_rnn.baselines.transformer.config_of` describes.
        tokens: on the model's device, no longer than its context.
    """
    block, n_positions = bridge.blocks[0], tokens.shape[1]
    attn = block.attn
    n_heads, _, d_head = attn.W_Q.shape
    stream = (bridge.W_pos[:n_positions, None] + bridge.W_E).flatten(0, 1)  # [pos * d_vocab, d_model]
    rows = tokens + len(bridge.W_E) * torch.arange(n_positions, device=tokens.device)
    last = rows[:, -1]

    def by_head(rows: Tensor, W: Tensor, b: Tensor) -> Tensor:
        table = stream @ W.transpose(0, 1).flatten(1) + b.flatten()
        return functional.embedding(rows, table).unflatten(-1, (n_heads, d_head))

    query = by_head(last, attn.W_Q, attn.b_Q)  # [n, head, d_head]
    key, value = by_head(rows, attn.W_K, attn.b_K), by_head(rows, attn.W_V, attn.b_V)  # [n, pos, head, d_head]
    pattern = ((query[:, None] * key).sum(-1) * d_head**-0.5).softmax(1)
    z = (pattern[..., None] * value).sum(1)
    resid_mid = functional.embedding(last, stream) + z.flatten(1) @ attn.W_O.flatten(0, 1) + attn.b_O
    resid_mid = resid_mid[:, None]
    logits: Tensor = bridge.unembed(resid_mid + block.mlp(resid_mid))
    return logits[:, 0]


def mlp_logits(model: HookedMLP, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n d_vocab_out"]:
    """The numbers of ``model(tokens)``, and their gradients, up to rounding; of a model without hooks."""
    columns = zip(tokens.unbind(1), model.W_E_in, strict=True)
    pre = torch.stack([functional.embedding(ids, table) for ids, table in columns]).sum(0)
    if model.mlp.b_in is not None:
        pre = pre + model.mlp.b_in
    return affine(model.mlp.act_fn(pre), model.W_U, model.unembed.b_U)
