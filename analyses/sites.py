"""Where frequencies are removed, in any model: the :class:`analyses.ablation.Site` of W_E, of the last state and of W_U.

What a removal costs is a forward pass, so accuracy may be taken on some of the pairs; what is removed is always fitted
on all of them. Where the model is a linear map behind its last state, the two later sites need a matrix product alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from analyses.ablation import Part, Site, frequency_hook
from analyses.adder import Adder
from analyses.errors import ActivationError
from analyses.fourier import FourierBasis
from analyses.grid import grid_functions
from analyses.places import Place, last_place, logits_with, read
from analyses.weight_removal import live_weight
from hooked_rnn import HookedRNN
from hooked_rnn.errors import choices
from hooked_rnn.prefixes import PrefixTrie, has_hooks, last_logits

SITES = ("W_E", "hidden", "W_U")
"""The embedding of the numbers, the last state (:func:`analyses.places.last_place`), the unembedding of the answers."""
ROUNDING = 1e-4
"""Logits differ by no more than this, relative to the largest, if they differ by rounding alone."""

AFTER_NORM = ("unembed.hook_in", "ln_final.hook_out", "ln_final.hook_normalized")
"""Hook points between a final norm and W_U, in the order in which they are looked for."""


def sites(adder: Adder, n_pairs: int | None = None, seed: int = 0) -> dict[str, Site]:
    """The three sites of a model that adds two numbers, by the names of :data:`SITES`.

    Args:
        adder: the model and its task.
        n_pairs: on how many pairs, drawn without replacement, accuracy is taken; all of them if None or if there are no more.
        seed: of that draw.

    Raises:
        ActivationError: no hook point that could be the last state's is found.
        RemovalSiteError: weights that are no parameters of the model.
    """
    pairs = drawn_pairs(adder, n_pairs, seed)
    state = read(adder, last_place(adder))
    return {
        "W_E": embedding_site(adder, pairs),
        "hidden": state_site(adder, pairs, state),
        "W_U": unembedding_site(adder, pairs, state),
    }


def drawn_pairs(adder: Adder, n_pairs: int | None = None, seed: int = 0) -> Int[Tensor, " n"]:
    """Indices of so many pairs, in ascending order; all of them if None or if there are no more."""
    n = len(adder.tokens)
    if n_pairs is None or n_pairs >= n:
        chosen = torch.arange(n)
    else:
        chosen = torch.randperm(n, generator=Generator().manual_seed(seed))[:n_pairs].sort().values
    return chosen.to(adder.tokens.device)


@torch.no_grad()
def embedding_site(adder: Adder, pairs: Int[Tensor, " n"]) -> Site:
    """Frequencies of the numbers, removed from their rows of W_E."""
    with_rows = _recurrent(adder, pairs) or _any_model(adder, pairs)
    numbers = adder.W_E.clone()
    labels = adder.labels[pairs]

    def accuracy_less(part: Part) -> float:
        return accuracy(with_rows(numbers - part.tensor()), labels)

    return _weight_site(numbers, FourierBasis(adder.p), accuracy_less)


@torch.no_grad()
def state_site(adder: Adder, pairs: Int[Tensor, " n"], state: Float[Tensor, "pairs d"]) -> Site:
    """Family "sum" of the last state, removed over the grid of all pairs, as :func:`analyses.ablation.frequency_hook` does."""
    place, labels, plain = last_place(adder), adder.labels[pairs], adder.logits()
    linear = reads_linearly(adder, state, plain)

    def part(frequencies: Sequence[int]) -> Part:
        functions = grid_functions(adder.p, frequencies, "sum").to(state)
        return Part(functions.T, functions @ state)

    def accuracy_less(part: Part) -> float:
        if linear:
            return accuracy(plain[pairs] - part.left[pairs] @ (part.right @ adder.W_U), labels)
        return accuracy(logits_with(adder, place, (state - part.tensor())[pairs], pairs), labels)

    def accuracy_without(frequencies: Sequence[int]) -> float:
        return accuracy_less(part(frequencies)) if linear else _by_hook(adder, place, frequencies, pairs)

    return Site(state, part, accuracy_less, accuracy_without)


@torch.no_grad()
def unembedding_site(adder: Adder, pairs: Int[Tensor, " n"], state: Float[Tensor, "pairs d"]) -> Site:
    """Frequencies of the answers, removed from their columns of W_U."""
    answers, labels = adder.W_U.T.clone(), adder.labels[pairs]
    plain = adder.logits()
    linear = reads_linearly(adder, state, plain)

    def accuracy_less(part: Part) -> float:
        if linear:
            return accuracy(plain[pairs] - (state[pairs] @ part.right.T) @ part.left.T, labels)
        with _written(live_weight(adder.model, "W_U"), (answers - part.tensor()).T):
            return accuracy(adder.logits(tokens=adder.tokens[pairs]), labels)

    return _weight_site(answers, FourierBasis(adder.p), accuracy_less)


def reads_linearly(adder: Adder, state: Float[Tensor, "pairs d"], logits: Float[Tensor, "pairs p"]) -> bool:
    """Whether the logits are state W_U + b_U on all pairs: no norm, and nothing else, is between."""
    if state.shape[1] != adder.W_U.shape[0]:
        return False
    bias = getattr(adder.model, "b_U", None)
    expected = state @ adder.W_U + (0 if bias is None else bias.detach()[: adder.p])
    return bool((logits - expected).abs().max() <= ROUNDING * logits.abs().max())


def unembedded(adder: Adder) -> Float[Tensor, "pairs d"]:
    """What W_U reads where the model answers: the last state, or what a final norm makes of it.

    Raises:
        ActivationError: no hook point is known to hold it.
    """
    logits, last = adder.logits(), last_place(adder)
    after_norm = [Place(name, adder.position) for name in AFTER_NORM if name in adder.model.hook_dict]
    for place in (last, *after_norm):
        if reads_linearly(adder, x := read(adder, place), logits):
            return x
    raise ActivationError(f"the logits are W_U's of neither {last} nor {choices(AFTER_NORM)}")


def accuracy(logits: Float[Tensor, "n p"], labels: Int[Tensor, " n"]) -> float:
    """Share of the rows whose largest logit is the label's."""
    return float((logits.argmax(-1) == labels).double().mean())


def _weight_site(value: Float[Tensor, "p d"], basis: FourierBasis, accuracy_less: Callable[[Part], float]) -> Site:
    """A site whose rows are the numbers, or the answers."""

    def part(frequencies: Sequence[int]) -> Part:
        functions = basis.functions(frequencies, like=value)
        return Part(functions.T, functions @ value)

    return Site(value, part, accuracy_less, lambda frequencies: accuracy_less(part(frequencies)))


WithRows = Callable[[Float[Tensor, "p d_model"]], Float[Tensor, "n p"]]
"""The logits with other rows for the numbers in W_E."""


def _recurrent(adder: Adder, pairs: Int[Tensor, " n"]) -> WithRows | None:
    """Over shared prefixes; None where that is not the model's own forward pass."""
    model = adder.model
    if not isinstance(model, HookedRNN) or has_hooks(model) or adder.position not in (-1, adder.task.n_ctx - 1):
        return None
    trie, rest = PrefixTrie.of(adder.tokens[pairs]), model.W_E.detach()[adder.p :]  # rest: the '=' token
    return lambda rows: last_logits(model, trie, W_E=torch.cat([rows, rest]))[:, : adder.p]


def _any_model(adder: Adder, pairs: Int[Tensor, " n"]) -> WithRows:
    """By an ordinary forward pass."""
    tokens, weight = adder.tokens[pairs], live_weight(adder.model, "W_E")

    def with_rows(rows: Float[Tensor, "p d_model"]) -> Float[Tensor, "n p"]:
        with _written(weight[: adder.p], rows):
            return adder.logits(tokens=tokens)

    return with_rows


@contextmanager
def _written(weight: Tensor, value: Tensor) -> Iterator[None]:
    """Another value in a weight's first columns; after the ``with`` every bit is what it was."""
    weight = weight[:, : value.shape[1]]
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.copy_(value)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def _by_hook(adder: Adder, place: Place, frequencies: Sequence[int], pairs: Int[Tensor, " n"]) -> float:
    hook = frequency_hook(adder.p, frequencies, "sum", place.position)
    return accuracy(adder.logits([(place.hook_name, hook)])[pairs], adder.labels[pairs])
