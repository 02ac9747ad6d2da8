"""Which activations a cache keeps, the hook that keeps them, and the cache."""

from collections.abc import Callable, Collection
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice, remove_batch_dim

from hooked_rnn.errors import TransformerOnlyError, UnknownHookPointError, choices
from hooked_rnn.hook_points import ObservingHook
from hooked_rnn.transformer_tools import NO_ATTENTION, NO_MLP, NO_SSM, NO_STREAM, step_of, unknown_hook_point

NamesFilter = str | Collection[str] | Callable[[str], bool] | None


class SaveActivation(ObservingHook):
    """Keep an activation, or a gradient, in a dictionary under its hook point's name.

    ``pos_slice`` applies to [batch, pos, d]. A step point's [batch, d] is one position, which its name says, and
    is kept whole: its first axis is the batch.
    """

    def __init__(
        self,
        cache: dict[str, Tensor],
        suffix: str = "",
        device: torch.device | str | None = None,
        drop_batch: bool = False,
        pos_slice: Slice | None = None,
    ) -> None:
        self.cache = cache
        self.suffix = suffix
        self.device = device
        self.drop_batch = drop_batch
        self.pos_slice = Slice.unwrap(pos_slice)

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        kept = tensor.detach().to(self.device)
        if kept.ndim == 3:
            kept = self.pos_slice.apply(kept, dim=1)
        self.cache[f"{hook.name}{self.suffix}"] = remove_batch_dim(kept) if self.drop_batch else kept


def _refusal(tool: str, why: str, instead: str) -> Callable[..., NoReturn]:
    def method(self: "RNNActivationCache", *args: Any, **kwargs: Any) -> NoReturn:
        raise TransformerOnlyError(f"{tool} cannot mean anything here, as {why}; use {instead}")

    method.__name__ = tool
    method.__doc__ = f"Refused: {why}."
    return method


class RNNActivationCache(ActivationCache):
    """TransformerLens's cache, of a recurrent network: what it cannot mean anything by, it refuses.

    ``cache["hidden", 0]`` is the whole sequence [batch, pos, d], ``cache["hidden", 0, "steps.2"]`` the step point's
    [batch, d]; ``stack_activation`` takes the same names.

    Raises:
        UnknownHookPointError: a name that the model, or this cache, does not have.
        TransformerOnlyError: a method that needs attention, an MLP, a residual stream or a state-space mixer.
    """

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return super().__getitem__(key)
        except KeyError as error:
            name = key if isinstance(key, str) and "." in key else error.args[0]
            raise UnknownHookPointError(self._why_not(name)) from None

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "RNNActivationCache":
        """The same cache for some of the sequences; an integer drops the batch axis."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        return RNNActivationCache(sliced.cache_dict, self.model, has_batch_dim=sliced.has_batch_dim)

    def _why_not(self, name: str) -> str:
        known: list[str] = list(self.cache_dict if self.model is None else self.model.hook_dict)
        if name.removesuffix("_grad") not in known:
            return unknown_hook_point(name, known)
        how = "run_with_cache with incl_bwd=True" if name.endswith("_grad") else "a names_filter that takes it"
        step = step_of(name.removesuffix("_grad"))
        if step is not None:
            how += f", and a sequence with a position {step}"
        held = [kept for kept in self.cache_dict if step_of(kept) is None or step is not None]
        return f"this cache does not hold {name!r}, but {choices(held) or 'nothing'}: expected {how}"

    accumulated_resid = _refusal("accumulated_resid", NO_STREAM, "stack_activation('out')")
    decompose_resid = _refusal("decompose_resid", NO_STREAM, "stack_activation('out')")
    get_full_resid_decomposition = _refusal("get_full_resid_decomposition", NO_STREAM, "stack_activation('out')")
    logit_lens = _refusal(
        "logit_lens",
        "only the top layer's output is what the unembedding reads, and lower layers have coordinates of their own",
        "hook_logits, or logit_readout on cache['out', -1]",
    )
    compute_head_results = _refusal("compute_head_results", NO_ATTENTION, "cache['recurrent', layer]")
    stack_head_results = _refusal("stack_head_results", NO_ATTENTION, "stack_activation('recurrent')")
    get_neuron_results = _refusal("get_neuron_results", NO_MLP, "logit_attrs on cache['out', -1], neuron by neuron")
    stack_neuron_results = _refusal("stack_neuron_results", NO_MLP, "stack_activation('hidden')")
    compute_ssm_effective_attention = _refusal("compute_ssm_effective_attention", NO_SSM, "cache['recurrent', layer]")
    compute_ssm_state = _refusal("compute_ssm_state", NO_SSM, "cache['hidden', layer]")


def matching_names(known: Collection[str], names_filter: NamesFilter) -> list[str]:
    """The hook points that a filter selects, in the order in which the model has them.

    Args:
        known: every hook point's name.
        names_filter: None for all; a name; a collection of names; or a predicate on names.

    Raises:
        UnknownHookPointError: a name that no hook point has, or a predicate that none satisfies.
    """
    if names_filter is None:
        return list(known)
    if callable(names_filter):
        matched = [name for name in known if names_filter(name)]
        if not matched:
            whole_first = sorted(known, key=lambda name: step_of(name) is not None)
            raise UnknownHookPointError(
                f"the filter {names_filter!r} matches no hook point; there are {choices(whole_first)}"
            )
        return matched
    wanted = [names_filter] if isinstance(names_filter, str) else list(names_filter)
    for name in wanted:
        if name not in known:
            raise UnknownHookPointError(unknown_hook_point(name, known))
    return [name for name in known if name in wanted]
