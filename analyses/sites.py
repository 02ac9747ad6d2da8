"""Where frequencies are removed, in any model: the :class:`analyses.ablation.Site` of W_E, of the last state and of W_U.

What a removal costs is a forward pass, so accuracy in the controls, of which there are many, may be taken on some of the
pairs; what is removed is always fitted on all of them. Where the model is a linear map behind its last state, the two later sites need a
matrix product alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.linalg import multi_dot

from analyses.ablation import Part, Site, frequency_hook
from analyses.adder import Adder
from analyses.errors import ActivationError
from analyses.fourier import FourierBasis
from analyses.grid import grid_functions
from analyses.places import Place, last_place, logits_with, read
from analyses.weight_removal import live_weight
from hooked_rnn import HookedRNN
from hooked_rnn.affine import affine
from hooked_rnn.architectures import architecture_of
from hooked_rnn.errors import ConversionError, choices
from hooked_rnn.prefixes import PrefixTrie, has_hooks, last_logits

SITES = ("W_E", "hidden", "W_U")
"""The embedding of the numbers, the last state (:func:`analyses.places.last_place`), the unembedding of the answers."""
APART = 1_000_003
"""What is added to the seed of drawn pairs (torch's generator takes its lower 32 bits alone)."""
ROUNDING = 1e-4
"""Logits differ by no more than this, relative to the largest, if they differ by rounding alone."""

AFTER_NORM = ("unembed.hook_in", "ln_final.hook_out", "ln_final.hook_normalized")
"""Hook points between a final norm and W_U, in the order in which they are looked for."""


def sites(adder: Adder, n_pairs: int | None = None, seed: int = 0) -> dict[str, Site]:
    """The three sites of a model that adds two numbers, by the names of :data:`SITES`.

    Args:
        adder: the model and its task.
        n_pairs: on how many pairs, drawn without replacement, ``accuracy_less`` is taken; all of them if None or if there are no
            more. ``accuracy_without`` is of all pairs, but at the W_E of a model of which :func:`is_quick` is not true, where
            each is a forward pass.
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
        # Not the generator of ModularTask.split, whose first pairs are those that a model of the same seed was trained on.
        chosen = torch.randperm(n, generator=Generator().manual_seed(APART + seed))[:n_pairs].sort().values
    return chosen.to(adder.tokens.device)


@torch.no_grad()
def embedding_site(adder: Adder, pairs: Int[Tensor, " n"]) -> Site:
    """Frequencies of the numbers, removed from their rows of W_E."""
    numbers = adder.W_E.clone()
    on_some = _accuracy_by_rows(adder, pairs)
    on_all = _accuracy_by_rows(adder, drawn_pairs(adder)) if is_quick(adder) else on_some
    return _weight_site(
        numbers,
        FourierBasis(adder.p),
        lambda part: on_all(numbers - part.tensor()),
        lambda part: on_some(numbers - part.tensor()),
    )


@torch.no_grad()
def state_site(adder: Adder, pairs: Int[Tensor, " n"], state: Float[Tensor, "pairs d"]) -> Site:
    """Family "sum" of the last state, removed over the grid of all pairs, as :func:`analyses.ablation.frequency_hook` does."""
    place, plain = last_place(adder), adder.logits()
    linear = reads_linearly(adder, state, plain)
    every, W_U = drawn_pairs(adder), adder.W_U

    def part(frequencies: Sequence[int]) -> Part:
        functions = grid_functions(adder.p, frequencies, "sum").to(state)
        return Part(functions.T, functions @ state)

    def accuracy_on(chosen: Tensor, part: Part) -> float:
        if linear:
            logits = _rows(plain, chosen) - multi_dot([_rows(part.left, chosen), part.right, W_U])
        else:
            logits = logits_with(adder, place, (state - part.tensor())[chosen], chosen)
        return accuracy(logits, adder.labels[chosen])

    def accuracy_without(frequencies: Sequence[int]) -> float:
        if linear:
            return accuracy_on(every, part(frequencies))
        hook = frequency_hook(adder.p, frequencies, "sum", place.position)
        return accuracy(adder.logits([(place.hook_name, hook)]), adder.labels)

    return Site(state, part, lambda part: accuracy_on(pairs, part), accuracy_without)


@torch.no_grad()
def unembedding_site(adder: Adder, pairs: Int[Tensor, " n"], state: Float[Tensor, "pairs d"]) -> Site:
    """Frequencies of the answers, removed from their columns of W_U."""
    answers, plain = adder.W_U.T.clone(), adder.logits()
    linear = reads_linearly(adder, state, plain)

    def accuracy_on(chosen: Tensor, part: Part) -> float:
        if linear:
            logits = _rows(plain, chosen) - multi_dot([_rows(state, chosen), part.right.T, part.left.T])
            return accuracy(logits, adder.labels[chosen])
        with _written(live_weight(adder.model, "W_U").detach(), (answers - part.tensor()).T):
            return accuracy(adder.logits(tokens=adder.tokens[chosen]), adder.labels[chosen])

    every = drawn_pairs(adder)
    return _weight_site(
        answers, FourierBasis(adder.p), lambda part: accuracy_on(every, part), lambda part: accuracy_on(pairs, part)
    )


def reads_linearly(adder: Adder, state: Float[Tensor, "pairs d"], logits: Float[Tensor, "pairs p"]) -> bool:
    """Whether the logits are state W_U + b_U on all pairs: no norm, and nothing else, is between."""
    if state.shape[1] != adder.W_U.shape[0]:
        return False
    bias = getattr(adder.model, "b_U", None)
    expected = state @ adder.W_U + (0 if bias is None else bias.detach()[: adder.p])
    return bool((logits - expected).abs().max() <= ROUNDING * logits.abs().max())


def logits_from_state(
    adder: Adder, state: Float[Tensor, "pairs d"]
) -> Callable[[Float[Tensor, "n d"], Int[Tensor, " n"]], Float[Tensor, "n p"]]:
    """The logits of some pairs with other rows for the last state, which is ``state`` itself on all pairs: a product with W_U
    where the model reads it so, a forward pass with the rows put in where it does not."""
    if not reads_linearly(adder, state, adder.logits()):
        return lambda rows, pairs: logits_with(adder, last_place(adder), rows, pairs)
    bias = getattr(adder.model, "b_U", None)
    W_U, b_U = adder.W_U, None if bias is None else bias.detach()[: adder.p]
    return lambda rows, pairs: affine(rows, W_U, b_U)


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


def _weight_site(
    value: Float[Tensor, "p d"],
    basis: FourierBasis,
    on_all: Callable[[Part], float],
    on_some: Callable[[Part], float],
) -> Site:
    """A site whose rows are the numbers, or the answers."""

    def part(frequencies: Sequence[int]) -> Part:
        functions = basis.functions(frequencies, like=value)
        return Part(functions.T, functions @ value)

    return Site(value, part, on_some, lambda frequencies: on_all(part(frequencies)))


def is_quick(adder: Adder) -> bool:
    """Whether the logits are to be had for less than a forward pass, by shared prefixes or by lookup."""
    return shares_prefixes(adder) or looks_up(adder)


def shares_prefixes(adder: Adder) -> bool:
    """Whether a pass over shared prefixes is the model's own."""
    return isinstance(adder.model, HookedRNN) and not has_hooks(adder.model) and _answers_last(adder)


def looks_up(adder: Adder) -> bool:
    """Whether the logits by :mod:`hooked_rnn.baselines.lookup` are the model's own: of an MLP, or a block without norm; no hooks."""
    try:
        kind = architecture_of(adder.model)
        cfg = kind.config_of(adder.model)  # raises for a transformer of another kind than those looked up
    except ConversionError:
        return False
    return kind.looks_up(adder.model) and kind.runs_on(cfg, adder.task.n_ctx) and _answers_last(adder)


def _answers_last(adder: Adder) -> bool:
    return adder.position in (-1, adder.task.n_ctx - 1)


def own_logits(adder: Adder) -> Callable[[], Float[Tensor, "pairs p"]]:
    """The logits of all pairs by the weights as they are when it is called: over shared prefixes where that is the model's own pass."""
    if not shares_prefixes(adder):
        return adder.logits
    trie = PrefixTrie.of(adder.tokens)
    return lambda: last_logits(adder.model, trie)[:, : adder.p]


def _rows(x: Float[Tensor, "pairs d"], chosen: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """Some rows, which are in ascending order and distinct; the tensor itself, not a copy, if they are all."""
    return x if len(chosen) == len(x) else x[chosen]


def _accuracy_by_rows(adder: Adder, pairs: Int[Tensor, " n"]) -> Callable[[Float[Tensor, "p d_model"]], float]:
    """Accuracy on these pairs with other rows for the numbers in W_E, by the quickest way that is the model's own."""
    model, tokens, labels = adder.model, adder.tokens[pairs], adder.labels[pairs]
    if shares_prefixes(adder):
        trie, rest = PrefixTrie.of(tokens), model.W_E.detach()[adder.p :]  # rest: the '=' token
        return lambda rows: accuracy(last_logits(model, trie, W_E=torch.cat([rows, rest]))[:, : adder.p], labels)
    weight = live_weight(model, "W_E").detach()[: adder.p]
    kind = architecture_of(model) if looks_up(adder) else None

    def with_rows(rows: Float[Tensor, "p d_model"]) -> float:
        with _written(weight, rows):
            if kind is None:
                return accuracy(adder.logits(tokens=tokens), labels)
            return accuracy(kind.last_logits(model, tokens)[:, : adder.p], labels)

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
