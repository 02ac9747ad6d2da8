"""Patching edges and paths: what a hidden state sends on to the next step, apart from what it sends up.

A node (layer, pos) is the state of a layer after the step at a position. Two edges leave it:

- "onward", to the same layer's next step: what reaches ``hook_recurrent`` at pos + 1, and in a gated block
  also ``hook_carry`` there, the state that goes past the product with W_hh (in an LSTM the cell state);
- "upward", to the next layer at the same position, or from the top layer to the unembedding: ``hook_out``.

So an edge is patched where it arrives, by an ordinary hook; the node that it leaves stays as it is.

Path patching as in Wang et al., "Interpretability in the Wild" (2022), and Goldowsky-Dill et al., "Localizing
Model Behavior with Path Patching" (2023): the sender is taken from another run, and each edge that the
difference may not travel along is set to what it carries in the clean run.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from analyses.errors import EdgeError, PathError, SourceError
from hooked_rnn import HookedRNN
from hooked_rnn.errors import choices
from hooked_rnn.tokens import TokensLike

WAYS = ("onward", "upward")
ARRIVALS = {"onward": ("hook_recurrent", "hook_carry"), "upward": ("hook_out",)}
"""The points of the sending block at which an edge arrives, of those that the block has."""
STATE = ("hook_cell", "hook_hidden")
"""The points that make up a node's state, of those that the block has."""

Node = tuple[int, int]
"""Layer and position; negative ones count from the end."""
Places = dict[str, set[int]]
"""Positions by the name of a hook point."""
NamedHooks = list[tuple[str, Callable[..., Any]]]


@dataclass(frozen=True, order=True)
class Edge:
    """What one hidden state sends one way. Negative layers and positions count from the end.

    Raises:
        EdgeError: at once, for a way that there is not. Layer and position are checked where a model is at hand.
    """

    layer: int
    pos: int
    to: str
    """One of "onward", to the layer's next step, and "upward", to the next layer or the unembedding."""

    def __post_init__(self) -> None:
        if self.to not in WAYS:
            raise EdgeError(f"an edge to {self.to!r}: expected {choices(WAYS)}")

    @property
    def head(self) -> Node:
        """Where it leads; from the top layer upward, to the unembedding, one layer above."""
        return (self.layer, self.pos + 1) if self.to == "onward" else (self.layer + 1, self.pos)


@dataclass(frozen=True)
class Lattice:
    """The nodes and edges of a network of so many layers, unrolled over so many positions."""

    n_layers: int
    n_positions: int

    @classmethod
    def of(cls, model: HookedRNN, tokens: TokensLike) -> "Lattice":
        """That of a model's run on these tokens."""
        return cls(model.cfg.n_layers, model.to_input(tokens).shape[1])

    @property
    def edges(self) -> frozenset[Edge]:
        """Every edge."""
        return self.paths_from((0, 0))

    def node(self, node: Node) -> Node:
        """The node, layer and position counted from the start. Raises EdgeError where there is no such node."""
        layer, pos = node
        for what, value, size in (("layer", layer, self.n_layers), ("position", pos, self.n_positions)):
            if not -size <= value < size:
                raise EdgeError(f"{what} {value} of node {node}: expected {-size} to {size - 1}")
        return layer % self.n_layers, pos % self.n_positions

    def edge(self, edge: Edge) -> Edge:
        """The edge, layer and position counted from the start. Raises EdgeError where there is no such edge."""
        layer, pos = self.node((edge.layer, edge.pos))
        if edge.to == "onward" and pos == self.n_positions - 1:
            raise EdgeError(f"{edge}: no edge leads onward from the last of {self.n_positions} positions")
        return Edge(layer, pos, edge.to)

    def paths_from(self, node: Node) -> frozenset[Edge]:
        """Every edge on a path from the node to the logits of any position."""
        layer, pos = self.node(node)
        nodes = itertools.product(range(layer, self.n_layers), range(pos, self.n_positions))
        leaving = (Edge(*sender, to) for sender in nodes for to in WAYS)
        return frozenset(edge for edge in leaving if edge.head[1] < self.n_positions)

    def paths_between(self, sender: Node, receiver: Node) -> frozenset[Edge]:
        """Every edge on a path from one node to another; none where the two are one.

        Raises:
            EdgeError: a node that there is not.
            PathError: a receiver in a lower layer or at an earlier position than the sender.
        """
        sender, (to_layer, to_pos) = self.node(sender), self.node(receiver)
        if to_layer < sender[0] or to_pos < sender[1]:
            raise PathError(
                f"no path leads from node {sender} to node {(to_layer, to_pos)}, (layer, position): "
                "expected a receiver in no lower layer and at no earlier position than the sender"
            )
        heads = ((edge, edge.head) for edge in self.paths_from(sender))
        return frozenset(edge for edge, (layer, pos) in heads if layer <= to_layer and pos <= to_pos)


def edge_hooks(
    model: HookedRNN,
    tokens: TokensLike,
    source: TokensLike | ActivationCache,
    edges: Iterable[Edge],
    *,
    initial_state: Any = None,
) -> NamedHooks:
    """Ordinary hooks for a run on ``tokens``, which let edges carry what they carry in the run on ``source``.

    They go wherever TransformerLens takes hooks, such as ``model.run_with_hooks(tokens, fwd_hooks=...)``, and
    act after hooks that are on the model already, which act in the run on ``source`` too.

    Args:
        tokens: [batch, pos], of the run that the hooks are for.
        source: tokens of the same shape; or the cache of a run on such tokens, with the edges' hook points.
        edges: which.
        initial_state: of the run on source, where that is tokens.

    Raises:
        EdgeError: an edge that the model, on so many positions, does not have.
        SourceError: a source that does not fit the tokens, or a cache that lacks a hook point; from the
            hooks, for a run of another shape.
    """
    lattice = Lattice.of(model, tokens)
    places = _places(model, {lattice.edge(edge) for edge in edges})
    return _setting(places, _values(model, tokens, source, places, initial_state))


def patch_edges(
    model: HookedRNN,
    tokens: TokensLike,
    source: TokensLike | ActivationCache,
    edges: Iterable[Edge],
    **model_kwargs: Any,
) -> Any:
    """The run on ``tokens`` in which edges carry what they carry in the run on ``source``, all else following.

    What is taken from the source is a constant to autograd.

    Args:
        tokens, source, edges: see :func:`edge_hooks`, which raises the errors.
        model_kwargs: as for calling the model; ``initial_state`` is that of both runs.

    Returns:
        What the model returns: unless asked otherwise, logits [batch, pos, d_vocab_out].
    """
    hooks = edge_hooks(model, tokens, source, edges, initial_state=model_kwargs.get("initial_state"))
    return model.run_with_hooks(tokens, fwd_hooks=hooks, **model_kwargs)


def path_hooks(
    model: HookedRNN,
    tokens: TokensLike,
    source: TokensLike | ActivationCache,
    sender: Node,
    edges: Iterable[Edge],
    *,
    clean: ActivationCache | None = None,
    initial_state: Any = None,
) -> NamedHooks:
    """Ordinary hooks for a run on ``tokens``, which let the difference that a sender makes travel along edges alone.

    The sender is patched whole, in an LSTM with its cell state. Every other edge on the way from there is
    set to what it carries in the clean run; where no difference could have come, nothing is set.

    Args:
        tokens: [batch, pos], of the run that the hooks are for.
        source: tokens of the same shape, or a cache with the sender's state: what the sender is taken from.
        sender: layer and position.
        edges: along which the difference may travel; those that no path from the sender reaches do nothing.
        clean: the cache of the run on ``tokens``, where it is at hand; None to run the model.
        initial_state: of the runs on tokens and source.

    Raises:
        EdgeError: a sender or an edge that the model, on so many positions, does not have.
        SourceError: as :func:`edge_hooks`.
    """
    lattice = Lattice.of(model, tokens)
    layer, pos = lattice.node(sender)
    state: Places = {name: {pos} for name in _points(model, layer, STATE)}
    closed = _places(model, lattice.paths_from(sender) - {lattice.edge(edge) for edge in edges})
    of_source = _values(model, tokens, source, state, initial_state)
    of_clean = _values(model, tokens, tokens if clean is None else clean, closed, initial_state)
    return _setting(state, of_source) + _setting(closed, of_clean)


def patch_paths(
    model: HookedRNN,
    tokens: TokensLike,
    source: TokensLike | ActivationCache,
    sender: Node,
    edges: Iterable[Edge],
    *,
    clean: ActivationCache | None = None,
    **model_kwargs: Any,
) -> Any:
    """The run on ``tokens`` with the sender's state from ``source``, the difference travelling along ``edges`` alone.

    To be seen in the logits it needs the top layer's upward edges too. A state that the model is asked to
    return (``return_state``) is that of the last nodes, to which no further edge needs to lead.

    Args:
        tokens, source, sender, edges, clean: see :func:`path_hooks`, which raises the errors.
        model_kwargs: as for calling the model; ``initial_state`` is that of all runs.

    Returns:
        What the model returns: unless asked otherwise, logits [batch, pos, d_vocab_out].
    """
    state = model_kwargs.get("initial_state")
    hooks = path_hooks(model, tokens, source, sender, edges, clean=clean, initial_state=state)
    return model.run_with_hooks(tokens, fwd_hooks=hooks, **model_kwargs)


def path_patch(
    model: HookedRNN,
    tokens: TokensLike,
    source: TokensLike | ActivationCache,
    sender: Node,
    receiver: Node,
    *,
    clean: ActivationCache | None = None,
    **model_kwargs: Any,
) -> Any:
    """The run on ``tokens`` in which the sender's difference goes by way of the receiver.

    It reaches the receiver by all paths between the two, and goes on freely from there; what else the
    sender leads to sees the clean run. Where the two are one, that node is patched.

    Args:
        tokens, source, sender, clean, model_kwargs: see :func:`patch_paths`.
        receiver: layer and position.

    Returns:
        What the model returns: unless asked otherwise, logits [batch, pos, d_vocab_out].

    Raises:
        PathError: a receiver in a lower layer or at an earlier position than the sender.
        EdgeError, SourceError: as :func:`path_hooks`.
    """
    lattice = Lattice.of(model, tokens)
    edges = lattice.paths_between(sender, receiver) | lattice.paths_from(receiver)
    return patch_paths(model, tokens, source, sender, edges, clean=clean, **model_kwargs)


class SetPositions:
    """A hook that sets positions of an activation to those of another run."""

    def __init__(self, values: Float[Tensor, "batch pos d"], positions: set[int]) -> None:
        self.values = values
        self.positions = positions

    def __call__(self, x: Tensor, hook: Any) -> None:
        if x.shape != self.values.shape:
            raise SourceError(
                f"an activation of shape {list(x.shape)} at {hook.name}: expected {list(self.values.shape)}, as in the run that is patched in"
            )
        # The tensor is this hook's own; inside the time loop only the step's position counts.
        for pos in self.positions if hook.step is None else self.positions & {hook.step}:
            x[:, pos] = self.values[:, pos]


def _points(model: HookedRNN, layer: int, kinds: Iterable[str]) -> list[str]:
    """The names of those hook points that the layer has."""
    names = (f"blocks.{layer}.{kind}" for kind in kinds)
    return [name for name in names if name in model.hook_dict]


def _places(model: HookedRNN, edges: Iterable[Edge]) -> Places:
    """Where these edges arrive."""
    places: Places = {}
    for edge in sorted(edges):
        for name in _points(model, edge.layer, ARRIVALS[edge.to]):
            places.setdefault(name, set()).add(edge.pos + 1 if edge.to == "onward" else edge.pos)
    return places


def _setting(places: Places, values: Mapping[str, Tensor]) -> NamedHooks:
    return [(name, SetPositions(values[name], positions)) for name, positions in places.items()]


def _values(
    model: HookedRNN, tokens: TokensLike, source: TokensLike | ActivationCache, names: Iterable[str], initial_state: Any
) -> dict[str, Tensor]:
    """Activations of the run on ``source``, checked to fit the run on ``tokens``."""
    shape = model.to_input(tokens).shape
    if isinstance(source, ActivationCache):
        return {name: _cached(source.cache_dict, name, tuple(shape[:2])) for name in names}
    if (given := model.to_input(source).shape) != shape:
        raise SourceError(f"the source's tokens have shape {list(given)}: expected {list(shape)}, as the tokens")
    names = list(names)
    if not names:
        return {}
    with torch.no_grad():
        _, cache = model.run_with_cache(source, names_filter=names, return_type=None, initial_state=initial_state)
    return cache.cache_dict


def _cached(cache: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in cache:
        raise SourceError(f"the source is a cache without {name}: expected one that run_with_cache filled with it")
    value = cache[name]
    if value.ndim != 3 or tuple(value.shape[:2]) != shape:
        raise SourceError(
            f"the source's {name} has shape {list(value.shape)}: expected [{shape[0]}, {shape[1]}, d], [batch, pos, d] of the tokens"
        )
    return value
