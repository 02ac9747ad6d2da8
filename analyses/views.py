"""Interactive views, drawn by circuitsvis."""

import torch
from circuitsvis.activations import text_neuron_activations
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from analyses.key_frequencies import neuron_hook
from hooked_rnn import HookedRNN, ModularTask

SAMPLES = 12
"""Pairs that the view shows."""
NEURONS = 48
"""Units that the view shows: the most active ones."""


@torch.no_grad()
def hidden_view(adder: Adder) -> str:
    """Hidden activations of some pairs, token by token, as HTML whose script is inline (it works offline).

    Of a recurrent network every layer's state; of another model the neurons that key frequencies are looked for in.

    Raises:
        ActivationError: the model has no hook point of neurons.
    """
    rows = torch.linspace(0, len(adder.tokens) - 1, min(SAMPLES, len(adder.tokens))).long()
    tokens = adder.tokens[rows]
    hidden = _activations(adder, tokens).float().cpu()  # [layer, batch, pos, d_hidden]
    active = hidden.abs().mean((0, 1, 2)).argsort(descending=True)[:NEURONS]
    words = [[_word(token, adder.task) for token in row] for row in tokens.tolist()]
    rendered = text_neuron_activations(
        tokens=words if hidden.shape[2] == tokens.shape[1] else [[" ".join(row)] for row in words],
        activations=[sample.permute(1, 0, 2) for sample in hidden[..., active].unbind(1)],
        second_dimension_labels=[str(int(neuron)) for neuron in active],
    )
    return rendered.local_src


def _activations(adder: Adder, tokens: Tensor) -> Float[Tensor, "layer batch pos d"]:
    """Of a model without positions, as if it had one."""
    names = [neuron_hook(adder)]
    if isinstance(adder.model, HookedRNN):
        names = [f"blocks.{layer}.hook_hidden" for layer in range(adder.model.cfg.n_layers)]
    _, cache = adder.model.run_with_cache(tokens, names_filter=names)
    stacked = torch.stack([cache[name] for name in names])
    return stacked if stacked.ndim == 4 else stacked[:, :, None]


def _word(token: int, task: ModularTask) -> str:
    return "=" if token == task.p else f" {token} "
