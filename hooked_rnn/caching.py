"""Which activations a cache keeps, and the hook that keeps them."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice, remove_batch_dim

from hooked_rnn.errors import UnknownHookPointError, choices, nearest
from hooked_rnn.hook_points import ObservingHook

NamesFilter = str | Collection[str] | Callable[[str], bool] | None


class SaveActivation(ObservingHook):
    """Keep an activation, or a gradient, in a dictionary under its hook point's name."""

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
        if self.drop_batch:
            kept = remove_batch_dim(kept)
        self.cache[f"{hook.name}{self.suffix}"] = self.pos_slice.apply(kept, dim=-2)


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
            raise UnknownHookPointError(
                f"the filter {names_filter!r} matches no hook point; there are {choices(known)}"
            )
        return matched
    wanted = [names_filter] if isinstance(names_filter, str) else list(names_filter)
    for name in wanted:
        if name not in known:
            raise UnknownHookPointError(f"no hook point is named {name!r}; nearest: {nearest(str(name), known)}")
    return [name for name in known if name in wanted]
