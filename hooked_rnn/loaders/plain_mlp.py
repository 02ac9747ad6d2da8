"""State dicts of an MLP made of torch's own modules: embeddings, one hidden layer, a readout, whatever they are called.

Which weight is which follows from these rules:

- An embedding is a 2-D ``weight`` [d_vocab, d_model] of a module that has "emb" in its name, and not "unemb" or "umb": one for all
  operands, or two of the same shape, the first operand's first in the order of their names.
- The hidden layer is an ``nn.Linear``, ``weight`` [d_mlp, d_in]. It reads the sum of the embeddings where d_in is d_model, and the
  embeddings side by side where d_in is 2 * d_model. Two of [d_mlp, d_model], whose names differ by "l" and "r", "left" and "right"
  or "a" and "b" at the end, are the two halves of one.
- The readout is an ``nn.Linear``, ``weight`` [d_vocab_out, d_mlp]. Where shapes alone do not tell it from the hidden layer, it is
  the last in the order of names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hooked_rnn.baselines.mlp import ACTIVATIONS, HookedMLPConfig
from hooked_rnn.loaders.formats import Format, Known, Parts, StateDict, check_activation

_HALVES = (("l", "r"), ("left", "right"), ("a", "b"))


@dataclass(frozen=True)
class _Layers:
    """The modules' names."""

    embeddings: list[str]
    """One, or two in the order of the operands."""
    hidden: list[str]
    """One, or two that are the halves of one, in the order of the operands."""
    readout: str


def fits(weights: StateDict) -> bool:
    return _layers(weights) is not None


def read(weights: StateDict, known: Known, notes: list[str]) -> Parts:
    """As a HookedMLP: input-first, the halves of a hidden layer as one."""
    layers = _layers(weights)
    assert layers is not None  # it fits
    tables = [weights[f"{name}.weight"] for name in layers.embeddings]
    halves = [weights[f"{name}.weight"].T for name in layers.hidden]
    biases = [weights[f"{name}.bias"] for name in layers.hidden if f"{name}.bias" in weights]
    W_in, W_U = torch.cat(halves), weights[f"{layers.readout}.weight"].T
    found = {
        "embed.W_E": tables[0] if len(tables) == 1 else torch.stack(tables),
        "blocks.0.mlp.W_in": W_in,
        "unembed.W_U": W_U,
    }
    if biases:
        found["blocks.0.mlp.b_in"] = torch.stack(biases).sum(0)
    if f"{layers.readout}.bias" in weights:
        found["unembed.b_U"] = weights[f"{layers.readout}.bias"]
    d_vocab, d_model = tables[0].shape
    combine = "sum" if len(W_in) == d_model else "concat"
    notes.append(
        f"an MLP that reads the {'sum' if combine == 'sum' else 'concatenation'} of {' and '.join(layers.embeddings)}"
        f"{'' if len(tables) == 2 else ' of both operands'}; hidden layer {' and '.join(layers.hidden)}, readout {layers.readout}"
    )
    cfg = HookedMLPConfig(
        d_vocab=d_vocab,
        d_vocab_out=W_U.shape[1],
        d_model=d_model,
        d_mlp=W_in.shape[1],
        combine=combine,
        shared_embedding=len(tables) == 1,
        act_fn=check_activation(known.activation(notes), tuple(ACTIVATIONS)),
        bias=bool(biases),
        unembed_bias="unembed.b_U" in found,
    )
    return Parts(cfg, found)


def _layers(weights: StateDict) -> _Layers | None:
    """Which module is which; None where the rules do not say."""
    modules = sorted({name.rpartition(".")[0] for name in weights}, key=_in_order)
    if any(name.rpartition(".")[2] not in ("weight", "bias") for name in weights):
        return None
    if any(f"{module}.weight" not in weights or weights[f"{module}.weight"].ndim != 2 for module in modules):
        return None
    embeddings = [module for module in modules if _is_embedding(module, weights)]
    linear = [module for module in modules if module not in embeddings]
    shapes = {tuple(weights[f"{module}.weight"].shape) for module in embeddings}
    if len(embeddings) not in (1, 2) or len(shapes) != 1 or not all(_bias_fits(module, weights) for module in linear):
        return None
    d_model = shapes.pop()[1]
    for hidden, readout in _orders(linear):
        W_in = [weights[f"{module}.weight"] for module in hidden]
        d_in = [d_model] if len(hidden) == 2 else [d_model, 2 * d_model]
        reads = weights[f"{readout}.weight"].shape[1]
        if all(weight.shape[1] in d_in and len(weight) == reads for weight in W_in):
            return _Layers(embeddings, hidden, readout)
    return None


def _orders(linear: list[str]) -> Iterator[tuple[list[str], str]]:
    """Which of the other modules might be hidden layer and readout, the likelier first."""
    if len(linear) == 2:
        yield [linear[0]], linear[1]
        yield [linear[1]], linear[0]
    if len(linear) == 3:
        for readout in reversed(linear):
            halves = [module for module in linear if module != readout]
            if any(_is_pair(halves, ends) for ends in _HALVES):
                yield halves, readout


def _is_pair(names: list[str], ends: tuple[str, str]) -> bool:
    """Whether two names differ by such an end alone."""
    (left, right), (left_end, right_end) = names, ends
    same_stem = left.removesuffix(left_end) == right.removesuffix(right_end)
    return left.endswith(left_end) and right.endswith(right_end) and same_stem


def _is_embedding(module: str, weights: StateDict) -> bool:
    name = module.lower()
    return "emb" in name and "unemb" not in name and "umb" not in name and f"{module}.bias" not in weights


def _bias_fits(module: str, weights: StateDict) -> bool:
    bias: Tensor | None = weights.get(f"{module}.bias")
    return bias is None or tuple(bias.shape) == (len(weights[f"{module}.weight"]),)


def _in_order(name: str) -> list[tuple[int, str]]:
    """So that "net.10" comes after "net.2"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


PLAIN_MLP = Format(
    "plain MLP",
    "weights of nn.Embedding (its name has 'emb' in it), [d_vocab, d_model], once or twice; of a hidden nn.Linear, [d_mlp, d_model] for the "
    "sum of the embeddings or [d_mlp, 2 * d_model] for both side by side; of a last nn.Linear, [d_vocab_out, d_mlp]; and nothing else",
    fits,
    read,
)
