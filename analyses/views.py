"""Interactive views, drawn by circuitsvis."""

import torch
from circuitsvis.activations import text_neuron_activations

from hooked_rnn import HookedRNN, ModularTask

SAMPLES = 12
"""Pairs that the view shows."""
NEURONS = 48
"""Units that the view shows: the most active ones."""


@torch.no_grad()
def hidden_view(model: HookedRNN, task: ModularTask) -> str:
    """Hidden activations of some pairs, token by token, as HTML whose script is inline (it works offline)."""
    n = len(task.tokens)
    tokens = task.tokens[torch.linspace(0, n - 1, min(SAMPLES, n)).long()].to(model.cfg.device)
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_hidden"))
    hidden = cache.stack_activation("hidden").float().cpu()  # [layer, batch, pos, d_hidden]
    active = hidden.abs().mean((0, 1, 2)).argsort(descending=True)[:NEURONS]
    rendered = text_neuron_activations(
        tokens=[[_word(token, task) for token in row] for row in tokens.tolist()],
        activations=[sample.permute(1, 0, 2) for sample in hidden[..., active].unbind(1)],
        second_dimension_labels=[str(int(neuron)) for neuron in active],
    )
    return rendered.local_src


def _word(token: int, task: ModularTask) -> str:
    return "=" if token == task.p else f" {token} "
