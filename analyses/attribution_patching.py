"""Attribution patching: what patching each neuron would do, estimated for all of them by one gradient; and measured.

Directions as in TransformerLens: the model runs on corrupted tokens, and values of the clean run are patched
in. The estimate is first-order, (clean - corrupted) times the metric's gradient at the corrupted run (Nanda,
"Attribution Patching", 2023); it is exact where the metric is linear along the patch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.errors import MetricError, SourceError
from hooked_rnn import HookedRNN
from hooked_rnn.caching import SaveActivation
from hooked_rnn.errors import UnknownHookPointError, nearest
from hooked_rnn.tokens import TokensLike

NamedHooks = list[tuple[str, Callable[..., Any]]]
Metric = Callable[[Tensor], Tensor]
"""From logits [batch, pos, d_vocab_out] to a scalar."""

ROWS = 4096
"""Sequences in one pass of :func:`exact_patch`, which measures as many patches at once as this has room for."""


@dataclass(frozen=True)
class Attribution:
    """Estimated effects on a metric of patching an activation, by layer, position and neuron."""

    per_neuron: Float[Tensor, "layer pos d"]
    """(clean - corrupted) times gradient, summed over the batch."""
    clean: Float[Tensor, ""]
    """The metric of the clean run."""
    corrupted: Float[Tensor, ""]
    """The metric of the corrupted run, to which an effect is what the patch would add."""

    def summed(self) -> Float[Tensor, "layer pos"]:
        """The estimate for all neurons of a layer and position patched together."""
        return self.per_neuron.sum(-1)


def attribution_patch(
    model: HookedRNN,
    clean: TokensLike,
    corrupted: TokensLike,
    metric: Metric,
    *,
    activation: str = "hook_hidden",
    **model_kwargs: Any,
) -> Attribution:
    """Estimate what patching clean values into the corrupted run would add to a metric.

    The gradient at a layer and position is the total one, through all that follows: later steps and upper
    layers. Parameters' ``grad`` is left alone; frozen parameters, ``torch.no_grad`` and hooks on the model,
    which act in both runs, are no hindrance.

    Args:
        clean, corrupted: tokens [batch, pos], of one shape.
        metric: of logits [batch, pos, d_vocab_out], a scalar tensor that has a gradient.
        activation: a hook point that every layer has, "hook_hidden" or for short "hidden". "hook_out" stands for
            what a layer sends upward alone, and "hook_recurrent" for what it is sent by its previous step.
        model_kwargs: as for calling the model, both times: ``initial_state``, ``logits_to_keep``.

    Raises:
        UnknownHookPointError: an activation that not every layer has.
        SourceError: tokens of two shapes.
        MetricError: a metric that gives no scalar, or one without a gradient.
    """
    names = _names(model, activation)
    clean, corrupted = _of_one_shape(model, clean, corrupted)
    of_clean, at_clean = _measured(model, clean, metric, names, model_kwargs)
    of_corrupted, at_corrupted, grads = _differentiated(model, corrupted, metric, names, model_kwargs)
    effects = [((at_clean[name] - at_corrupted[name]) * grads[name]).sum(0) for name in names]
    return Attribution(torch.stack(effects), of_clean, of_corrupted)


@torch.no_grad()
def exact_patch(
    model: HookedRNN,
    clean: TokensLike,
    corrupted: TokensLike,
    metric: Metric,
    *,
    activation: str = "hook_hidden",
    by_neuron: bool = False,
    **model_kwargs: Any,
) -> Float[Tensor, "layer pos *d"]:
    """Measure what patching clean values into the corrupted run adds to a metric: what attribution estimates.

    Up to ``ROWS`` sequences are run at once, with as many patches. Where the model has hooks, which may
    count on their batch, or starts from a state, it is run once for every patch.

    Args:
        clean, corrupted, activation, model_kwargs: see :func:`attribution_patch`.
        metric: of logits [batch, pos, d_vocab_out], a scalar tensor; it needs no gradient.
        by_neuron: patch each neuron alone, instead of all neurons of a layer and position together.

    Returns:
        The metric of each patched run less that of the corrupted one, [layer, pos], or [layer, pos, d] by neuron.

    Raises:
        UnknownHookPointError, SourceError, MetricError: as :func:`attribution_patch`.
    """
    names = _names(model, activation)
    clean, corrupted = _of_one_shape(model, clean, corrupted)
    _, at_clean = _measured(model, clean, metric, names, model_kwargs)
    baseline, _ = _measured(model, corrupted, metric, [], model_kwargs)
    alone = _is_hooked(model) or model_kwargs.get("initial_state") is not None
    at_once = 1 if alone else max(1, ROWS // len(corrupted))
    effects = []
    for name in names:
        values = at_clean[name]
        shape = values.shape[1:] if by_neuron else values.shape[1:2]
        patched = [
            value
            for patches in torch.arange(shape.numel(), device=values.device).split(at_once)
            for value in _patched(model, corrupted, metric, name, values, _masks(patches, shape), model_kwargs)
        ]
        effects.append((torch.stack(patched) - baseline).view(shape))
    return torch.stack(effects)


class _PatchWhere:
    """A hook on a batch repeated once for each mask, that sets where the mask is true to given values."""

    def __init__(self, values: Float[Tensor, "batch pos d"], masks: Bool[Tensor, "patch pos #d"]) -> None:
        self.values = values.repeat(len(masks), 1, 1)
        self.masks = masks.repeat_interleave(len(values), dim=0)

    def __call__(self, x: Tensor, hook: Any) -> None:
        # The tensor is this hook's own; inside the time loop only the step's position counts.
        here = slice(None) if hook.step is None else slice(hook.step, hook.step + 1)
        x[:, here] = torch.where(self.masks[:, here], self.values[:, here], x[:, here])


def _masks(patches: Int[Tensor, " patch"], shape: torch.Size) -> Bool[Tensor, "patch pos #d"]:
    """True at one position, or at one neuron of one position, numbered in the shape [pos] or [pos, d]."""
    masks = patches[:, None] == torch.arange(shape.numel(), device=patches.device)
    return masks.view(len(patches), shape[0], -1)


def _patched(
    model: HookedRNN,
    tokens: Tensor,
    metric: Metric,
    name: str,
    values: Tensor,
    masks: Tensor,
    model_kwargs: dict[str, Any],
) -> list[Tensor]:
    """The metric of a run for each mask, with the values patched in where it is true."""
    hook = (name, _PatchWhere(values, masks))
    logits = model.run_with_hooks(torch.cat([tokens] * len(masks)), fwd_hooks=[hook], **model_kwargs)
    return [_value(metric, one) for one in logits.split(len(tokens))]


@torch.no_grad()
def _measured(
    model: HookedRNN, tokens: Tensor, metric: Metric, names: list[str], model_kwargs: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The metric, and the named activations."""
    kept: dict[str, Tensor] = {}
    save = [(name, SaveActivation(kept)) for name in names]
    logits = model.run_with_hooks(tokens, fwd_hooks=save, **model_kwargs)
    return _value(metric, logits), kept


def _differentiated(
    model: HookedRNN, tokens: Tensor, metric: Metric, names: list[str], model_kwargs: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The metric, the named activations, and its total gradient at each of them."""
    kept: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        # All that is differentiated for, so that no parameter's grad is touched. Added to what each layer is
        # given it makes every position depend on something, also in a frozen model; where a hook may cut that
        # off again, it is added at the points themselves, which costs O(T^2) inside the time loop.
        zero = torch.zeros((), dtype=model.cfg.dtype, device=model.cfg.device, requires_grad=True)
        starts = names if _is_hooked(model) else _names(model, "hook_input")
        forward: NamedHooks = [(name, lambda x, hook: x + zero) for name in [*starts, "hook_logits"]]
        forward += [(name, SaveActivation(kept)) for name in names]
        backward = [(name, SaveActivation(grads)) for name in names]
        with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
            value = _value(metric, model.forward(tokens.clone(), **model_kwargs))  # no inference tensor any more
            depends = value.requires_grad and torch.autograd.grad(value, zero, allow_unused=True)[0] is not None
    if not depends:
        raise MetricError("the metric has no gradient by the logits: expected a differentiable one, not an accuracy")
    return value.detach(), kept, {name: grads.get(name, torch.zeros_like(kept[name])) for name in names}


def _names(model: HookedRNN, activation: str) -> list[str]:
    """The activation's hook points, of every layer."""
    kind = activation if activation.startswith("hook_") else f"hook_{activation}"
    names = [f"blocks.{layer}.{kind}" for layer in range(model.cfg.n_layers)]
    if not all(name in model.hook_dict for name in names):
        known = [name.removeprefix("blocks.0.") for name in model.hook_dict if name.startswith("blocks.0.")]
        raise UnknownHookPointError(
            f"no activation of the layers is named {activation!r}; nearest: {nearest(kind, known)}"
        )
    return names


def _of_one_shape(model: HookedRNN, clean: TokensLike, corrupted: TokensLike) -> tuple[Tensor, Tensor]:
    pair = model.to_input(clean), model.to_input(corrupted)
    if pair[0].shape != pair[1].shape:
        raise SourceError(
            f"the clean tokens have shape {list(pair[0].shape)}: expected {list(pair[1].shape)}, as the corrupted ones"
        )
    return pair


def _value(metric: Metric, logits: Tensor) -> Tensor:
    value = metric(logits)
    if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
        got = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise MetricError(
            f"the metric gave {got}: expected a floating point scalar tensor, of logits {list(logits.shape)}"
        )
    return value


def _is_hooked(model: HookedRNN) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
