"""Edges and paths, against a network unrolled by hand in which every edge carries a value of its own."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from analyses.edges import WAYS, Edge, Lattice, Node, edge_hooks, patch_edges, patch_paths, path_hooks, path_patch
from analyses.errors import EdgeError, PathError, SourceError
from hooked_rnn import HookedRNN, HookedRNNConfig

BATCH, STEPS, LAYERS, VOCAB, ANSWERS = 3, 4, 3, 7, 6
exact = {"rtol": 0.0, "atol": 1e-12}

Carry = Callable[[Edge, Tensor], Tensor]
"""What an edge carries, of the hidden state that it leaves."""

NODES = list(itertools.product(range(LAYERS), range(STEPS)))
EDGES = sorted(Lattice(LAYERS, STEPS).edges)
every_node = pytest.mark.parametrize("node", NODES, ids=str)
architectures = pytest.mark.parametrize(("act_fn", "bias"), list(itertools.product(("tanh", "relu"), (True, False))))


def make_model(
    n_layers: int = LAYERS, act_fn: str = "tanh", bias: bool = True, seed: int = 0, cell: str = "rnn"
) -> HookedRNN:
    cfg = HookedRNNConfig(
        d_vocab=VOCAB,
        d_vocab_out=ANSWERS,
        d_model=5,
        d_hidden=8,
        n_layers=n_layers,
        cell=cell,
        act_fn=act_fn,
        bias=bias,
        seed=seed,
        dtype=torch.float64,
    )
    model = HookedRNN(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".b_" in name:
                parameter.copy_(normal(*parameter.shape, seed=seed + 1) / 3)
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


TOKENS, SOURCE = integers(BATCH, STEPS), integers(BATCH, STEPS, seed=5)


class Unrolled:
    """The hidden state of every node, and the logits, of a network in which edges carry what one says."""

    def __init__(
        self,
        model: HookedRNN,
        tokens: Tensor,
        carry: Carry = lambda edge, h: h,
        nodes: dict[Node, Tensor] | None = None,
        initial_state: Tensor | None = None,
    ) -> None:
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        n_layers, act = model.cfg.n_layers, torch.tanh if model.cfg.act_fn == "tanh" else torch.relu

        def affine(x: Tensor, weight: str, bias: str) -> Tensor:
            return x @ weights[weight] + weights.get(bias, torch.zeros(()))

        self.h: dict[Node, Tensor] = {}
        logits = []
        for t in range(tokens.shape[1]):
            for layer in range(n_layers):
                block = f"blocks.{layer}"
                if layer == 0:
                    below = weights["embed.W_E"][tokens[:, t]]
                else:
                    below = carry(Edge(layer - 1, t, "upward"), self.h[layer - 1, t])
                if t > 0:
                    before = carry(Edge(layer, t - 1, "onward"), self.h[layer, t - 1])
                elif initial_state is None:
                    before = torch.zeros(len(tokens), model.cfg.d_hidden, dtype=torch.float64)
                else:
                    before = initial_state[layer]
                preact = affine(below, f"{block}.W_ih", f"{block}.b_ih") + affine(
                    before, f"{block}.W_hh", f"{block}.b_hh"
                )
                self.h[layer, t] = (nodes or {}).get((layer, t), act(preact))
            top = carry(Edge(n_layers - 1, t, "upward"), self.h[n_layers - 1, t])
            logits.append(affine(top, "unembed.W_U", "unembed.b_U"))
        self.logits = torch.stack(logits, dim=1)


def along(edges: Any, by_hand: Unrolled) -> Carry:
    """These edges carry what another run sends."""
    return lambda edge, h: by_hand.h[edge.layer, edge.pos] if edge in edges else h


def edges_patched(model: HookedRNN, edges: Any, tokens: Tensor = TOKENS, source: Tensor = SOURCE) -> Unrolled:
    return Unrolled(model, tokens, along(edges, Unrolled(model, source)))


def paths_patched(
    model: HookedRNN, sender: Node, allowed: Any, tokens: Tensor = TOKENS, source: Tensor = SOURCE
) -> Unrolled:
    """The sender as in the source run, all edges but the allowed ones as in the clean run."""
    clean = Unrolled(model, tokens)
    closed = Lattice(model.cfg.n_layers, tokens.shape[1]).edges - frozenset(allowed)
    return Unrolled(model, tokens, along(closed, clean), {sender: Unrolled(model, source).h[sender]})


def node_patched(model: HookedRNN, node: Node) -> Tensor:
    """By a hook on the hidden state alone."""
    layer, pos = node
    _, cache = model.run_with_cache(SOURCE)

    def patch(x: Tensor, hook: HookPoint) -> Tensor:
        x[:, pos] = cache["hidden", layer][:, pos]
        return x

    return model.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.{layer}.hook_hidden", patch)])


def differ(left: Tensor, right: Tensor) -> bool:
    return not torch.allclose(left, right, rtol=0, atol=1e-6)


# One edge


@architectures
@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_an_edge_carries_what_it_carries_in_the_other_run(edge: Edge, act_fn: str, bias: bool) -> None:
    model = make_model(act_fn=act_fn, bias=bias)
    got = patch_edges(model, TOKENS, SOURCE, [edge])
    assert_close(got, edges_patched(model, {edge}).logits, **exact)
    assert differ(got, model(TOKENS))
    for other in EDGES:  # it is that edge's patch and no other's
        assert other == edge or differ(got, edges_patched(model, {other}).logits)


@pytest.mark.parametrize("edge", [edge for edge in EDGES if edge.to == "onward"], ids=str)
def test_an_edge_onward_leaves_the_position_alone_and_changes_later_ones(edge: Edge) -> None:
    model = make_model()
    logits, clean = patch_edges(model, TOKENS, SOURCE, [edge]), model(TOKENS)
    assert torch.equal(logits[:, : edge.pos + 1], clean[:, : edge.pos + 1])
    assert all(differ(logits[:, t], clean[:, t]) for t in range(edge.pos + 1, STEPS))


@pytest.mark.parametrize("edge", [edge for edge in EDGES if edge.to == "upward"], ids=str)
def test_an_edge_upward_changes_no_earlier_position_and_nothing_later_in_its_layer(edge: Edge) -> None:
    model = make_model()
    with model.hooks(fwd_hooks=edge_hooks(model, TOKENS, SOURCE, [edge])):
        logits, cache = model.run_with_cache(TOKENS)
    clean, clean_cache = model.run_with_cache(TOKENS)
    assert torch.equal(logits[:, : edge.pos], clean[:, : edge.pos])
    assert differ(logits[:, edge.pos], clean[:, edge.pos])
    assert torch.equal(cache["hidden", edge.layer], clean_cache["hidden", edge.layer])
    later = differ(logits[:, edge.pos + 1 :], clean[:, edge.pos + 1 :])
    assert later == (edge.layer < LAYERS - 1 and edge.pos < STEPS - 1)


@every_node
def test_both_edges_of_a_node_are_the_node(node: Node) -> None:
    model = make_model()
    both = [Edge(*node, to) for to in WAYS if to == "upward" or node[1] < STEPS - 1]
    patched = node_patched(model, node)
    assert_close(patch_edges(model, TOKENS, SOURCE, both), patched, **exact)
    assert len(both) == 1 or all(differ(patch_edges(model, TOKENS, SOURCE, [edge]), patched) for edge in both)


def test_no_edge_is_the_clean_run_and_all_edges_are_the_other() -> None:
    model = make_model()
    assert torch.equal(patch_edges(model, TOKENS, SOURCE, []), model(TOKENS))
    assert_close(patch_edges(model, TOKENS, SOURCE, EDGES), model(SOURCE), **exact)
    assert torch.equal(patch_edges(model, TOKENS, TOKENS, EDGES), model(TOKENS))


def test_negative_layers_and_positions_count_from_the_end() -> None:
    model = make_model()
    for edge in EDGES:
        from_the_end = Edge(edge.layer - LAYERS, edge.pos - STEPS, edge.to)
        assert Lattice.of(model, TOKENS).edge(from_the_end) == edge
        patched = [patch_edges(model, TOKENS, SOURCE, [one]) for one in (edge, from_the_end)]
        assert torch.equal(*patched)


def test_a_cache_may_be_the_source() -> None:
    model, edges = make_model(), [Edge(1, 1, "onward"), Edge(0, 2, "upward")]
    _, cache = model.run_with_cache(SOURCE)
    expected = patch_edges(model, TOKENS, SOURCE, edges)
    assert torch.equal(patch_edges(model, TOKENS, cache, edges), expected)
    assert torch.equal(
        patch_paths(model, TOKENS, cache, (0, 0), EDGES), patch_paths(model, TOKENS, SOURCE, (0, 0), EDGES)
    )
    _, clean = model.run_with_cache(TOKENS)
    paths = [path_patch(model, TOKENS, SOURCE, (0, 1), (2, 2), clean=c) for c in (clean, None)]
    assert torch.equal(*paths)
    assert differ(patch_edges(model, TOKENS, clean, edges), expected)


def test_the_model_is_asked_for_what_the_caller_wants() -> None:
    model, edge = make_model(), Edge(1, 1, "onward")
    labels, state = integers(BATCH, STEPS) % ANSWERS, normal(LAYERS, BATCH, 8, seed=3)
    source = Unrolled(model, SOURCE, initial_state=state)
    expected = Unrolled(model, TOKENS, along({edge}, source), initial_state=state)
    loss = patch_edges(model, TOKENS, SOURCE, [edge], initial_state=state, return_type="loss", labels=labels)
    assert_close(loss, nn.functional.cross_entropy(expected.logits.flatten(0, 1), labels.flatten()), **exact)
    logits, end = patch_edges(model, TOKENS, SOURCE, [edge], initial_state=state, logits_to_keep=1, return_state=True)
    assert_close(logits, expected.logits[:, -1:], **exact)
    assert_close(end, torch.stack([expected.h[layer, STEPS - 1] for layer in range(LAYERS)]), **exact)
    assert differ(patch_edges(model, TOKENS, SOURCE, [edge]), expected.logits)
    paths = path_patch(model, TOKENS, SOURCE, (0, 1), (1, 2), initial_state=state)
    assert differ(paths, path_patch(model, TOKENS, SOURCE, (0, 1), (1, 2)))


# Paths


@pytest.mark.parametrize(("sender", "receiver"), list(itertools.product(NODES, NODES)), ids=str)
def test_the_difference_goes_by_way_of_the_receiver(sender: Node, receiver: Node) -> None:
    model = make_model()
    if receiver[0] < sender[0] or receiver[1] < sender[1]:
        with pytest.raises(PathError):
            path_patch(model, TOKENS, SOURCE, sender, receiver)
        return
    got = path_patch(model, TOKENS, SOURCE, sender, receiver)
    # The receiver's state, of a run in which nothing but the sender differs, put into the clean run.
    reached = Unrolled(model, TOKENS, nodes={sender: Unrolled(model, SOURCE).h[sender]}).h[receiver]
    assert_close(got, Unrolled(model, TOKENS, nodes={receiver: reached}).logits, **exact)
    assert differ(got, model(TOKENS))
    another_way = sender != receiver and sender[1] < STEPS - 1  # from the last position all ways lead straight up
    assert differ(got, node_patched(model, sender)) == another_way


@architectures
def test_along_any_edges_the_difference_travels_as_in_the_unrolled_network(act_fn: str, bias: bool) -> None:
    model = make_model(act_fn=act_fn, bias=bias)
    for seed, sender in enumerate(NODES):
        allowed = [edge for edge, x in zip(EDGES, normal(len(EDGES), seed=seed), strict=True) if x > -0.5]
        got = patch_paths(model, TOKENS, SOURCE, sender, allowed)
        assert_close(got, paths_patched(model, sender, allowed).logits, **exact)


@every_node
def test_along_all_edges_the_difference_is_that_of_the_node(node: Node) -> None:
    model = make_model()
    patched = node_patched(model, node)
    for edges in (EDGES, Lattice(LAYERS, STEPS).paths_from(node)):
        assert_close(patch_paths(model, TOKENS, SOURCE, node, edges), patched, **exact)
    assert torch.equal(patch_paths(model, TOKENS, SOURCE, node, []), model(TOKENS))
    assert differ(patched, model(TOKENS))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_path_straight_through_time_is_the_loop_of_one_layer(layer: int) -> None:
    """From (layer, 0) onward to (layer, 2), then straight up: written as the two products that it is made of."""
    model = make_model()
    clean = Unrolled(model, TOKENS)
    x = clean.h
    h = Unrolled(model, SOURCE).h[layer, 0]
    block = model.blocks[layer]
    for t in (1, 2):
        below = model.W_E[TOKENS[:, t]] if layer == 0 else x[layer - 1, t]
        h = torch.tanh(below @ block.W_ih + block.b_ih + h @ block.W_hh + block.b_hh)
    for upper in range(layer + 1, LAYERS):
        block = model.blocks[upper]
        h = torch.tanh(h @ block.W_ih + block.b_ih + x[upper, 1] @ block.W_hh + block.b_hh)
    edges = [Edge(layer, t, "onward") for t in (0, 1)] + [Edge(upper, 2, "upward") for upper in range(layer, LAYERS)]
    got = patch_paths(model, TOKENS, SOURCE, (layer, 0), edges)
    assert_close(got[:, 2], h @ model.W_U + model.b_U, **exact)
    for t in (0, 1, 3):
        assert_close(got[:, t], clean.logits[:, t], **exact)
    assert torch.equal(patch_paths(model, TOKENS, SOURCE, (layer, 0), edges[1:]), model(TOKENS))  # the path is cut


def test_two_paths_that_meet_are_not_the_sum_of_each() -> None:
    model, sender = make_model(2), (0, 0)
    up, on = Edge(0, 0, "upward"), Edge(0, 0, "onward")
    rest = {Edge(1, 0, "onward"), Edge(0, 1, "upward"), Edge(1, 1, "upward")}
    over, under, both = (patch_paths(model, TOKENS, SOURCE, sender, rest | first) for first in ({up}, {on}, {up, on}))
    for got, allowed in ((over, rest | {up}), (under, rest | {on}), (both, rest | {up, on})):
        assert_close(got, paths_patched(model, sender, allowed).logits, **exact)
    clean = model(TOKENS)
    assert differ(both - clean, (over - clean) + (under - clean))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_edges_and_paths_of_any_depth_and_length(data: st.DataObject) -> None:
    n_layers, n_steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    model = make_model(n_layers, data.draw(st.sampled_from(["tanh", "relu"])), data.draw(st.booleans()))
    tokens, source = integers(2, n_steps, seed=1), integers(2, n_steps, seed=2)
    every = sorted(Lattice.of(model, tokens).edges)
    assert len(every) == n_layers * (2 * n_steps - 1)
    edges = set(data.draw(st.lists(st.sampled_from(every))))
    got = patch_edges(model, tokens, source, edges)
    assert_close(got, edges_patched(model, edges, tokens, source).logits, **exact)
    sender = data.draw(st.integers(0, n_layers - 1)), data.draw(st.integers(0, n_steps - 1))
    got = patch_paths(model, tokens, source, sender, edges)
    assert_close(got, paths_patched(model, sender, edges, tokens, source).logits, **exact)
    receiver = data.draw(st.integers(sender[0], n_layers - 1)), data.draw(st.integers(sender[1], n_steps - 1))
    between = Lattice(n_layers, n_steps).paths_between(sender, receiver)
    assert between == edges_by_walking(sender, receiver)
    got = path_patch(model, tokens, source, sender, receiver)
    reached = paths_patched(model, sender, between, tokens, source).h[receiver]
    assert_close(got, Unrolled(model, tokens, nodes={receiver: reached}).logits, **exact)


def edges_by_walking(sender: Node, receiver: Node) -> set[Edge]:
    """The edges of every path, each walked in turn."""
    steps = ["onward"] * (receiver[1] - sender[1]) + ["upward"] * (receiver[0] - sender[0])
    edges = set()
    for path in set(itertools.permutations(steps)):
        node = sender
        for to in path:
            edges.add(Edge(*node, to))
            node = Edge(*node, to).head
        assert node == receiver
    return edges


# Gated cells, whose state goes on past the product with W_hh too


class GatedUnrolled:
    """Every node's hidden state and cell (a GRU's cell is its hidden state), with edges that carry pairs of both."""

    def __init__(
        self, model: HookedRNN, tokens: Tensor, carry: Any = lambda edge, h, c: (h, c), nodes: Any = ()
    ) -> None:
        self.h: dict[Node, Tensor] = {}
        self.c: dict[Node, Tensor] = {}
        step = {"gru": self.gru, "lstm": self.lstm}[model.cfg.cell]
        nodes, logits = dict(nodes), []
        for t in range(tokens.shape[1]):
            below = model.W_E[tokens[:, t]]
            for layer, block in enumerate(model.blocks):
                h = c = torch.zeros(len(tokens), 8, dtype=torch.float64)
                if t > 0:
                    h, c = carry(Edge(layer, t - 1, "onward"), self.h[layer, t - 1], self.c[layer, t - 1])
                made = step(below @ block.W_ih + block.b_ih, h @ block.W_hh + block.b_hh, c)
                self.h[layer, t], self.c[layer, t] = nodes.get((layer, t), made)
                below, _ = carry(Edge(layer, t, "upward"), self.h[layer, t], self.c[layer, t])
            logits.append(below @ model.W_U + model.b_U)
        self.logits = torch.stack(logits, dim=1)

    @staticmethod
    def gru(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        r, z = torch.sigmoid(x[:, :8] + h[:, :8]), torch.sigmoid(x[:, 8:16] + h[:, 8:16])
        new = (1 - z) * torch.tanh(x[:, 16:] + r * h[:, 16:]) + z * c
        return new, new

    @staticmethod
    def lstm(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (x + h).split(8, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def along(self, edges: Any) -> Any:
        return lambda edge, h, c: (
            (self.h[edge.layer, edge.pos], self.c[edge.layer, edge.pos]) if edge in edges else (h, c)
        )


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_edge_onward_carries_the_state_past_the_product_too(cell: str) -> None:
    model = make_model(cell=cell)
    assert_close(model(TOKENS), GatedUnrolled(model, TOKENS).logits, **exact)
    source, clean = GatedUnrolled(model, SOURCE), GatedUnrolled(model, TOKENS)
    for edge in EDGES:
        got = patch_edges(model, TOKENS, SOURCE, [edge])
        assert_close(got, GatedUnrolled(model, TOKENS, source.along({edge})).logits, **exact)
        if edge.to == "onward":
            hooks = edge_hooks(model, TOKENS, SOURCE, [edge])
            assert [name.rpartition(".")[2] for name, _ in hooks] == ["hook_recurrent", "hook_carry"]
            assert all(differ(got, model.run_with_hooks(TOKENS, fwd_hooks=[hook])) for hook in hooks)
    for seed, node in enumerate(NODES):
        allowed = frozenset(e for e, x in zip(EDGES, normal(len(EDGES), seed=seed), strict=True) if x > -0.5)
        sender = {node: (source.h[node], source.c[node])}
        expected = GatedUnrolled(model, TOKENS, clean.along(frozenset(EDGES) - allowed), sender)
        assert_close(patch_paths(model, TOKENS, SOURCE, node, allowed), expected.logits, **exact)
        whole = GatedUnrolled(model, TOKENS, nodes=sender).logits
        assert_close(path_patch(model, TOKENS, SOURCE, node, node), whole, **exact)
        leaves_the_cell_behind = differ(whole, node_patched(model, node))
        assert leaves_the_cell_behind == (cell == "lstm" and node[1] < STEPS - 1)


def test_edges_of_a_network_driven_by_signals() -> None:
    model = HookedRNN(
        HookedRNNConfig(input="continuous", d_in=2, d_vocab_out=3, d_model=4, d_hidden=5, n_layers=2, cell="gru")
    )
    x, y = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert_close(path_patch(model, x, y, (0, 0), (0, 0))[:, 0], model(y)[:, 0])
    assert not torch.allclose(path_patch(model, x, y, (0, 0), (0, 0))[:, 0], model(x)[:, 0])


# Hooks of the user's, gradients, what is left behind


@pytest.mark.parametrize("kind", ["input", "recurrent", "preact", "hidden", "out"])
def test_hooks_that_are_on_the_model_stay_and_act_in_every_run(kind: str) -> None:
    plain, hooked = make_model(), make_model()
    hooked.add_hook(f"blocks.1.hook_{kind}", lambda x, hook: 1.5 * x - 0.25)
    before = hooked.list_hooks()
    edges = [Edge(1, 1, "onward"), Edge(1, 2, "upward")]
    _, cache = hooked.run_with_cache(SOURCE)
    for edge, (name, pos) in zip(edges, (("recurrent", 2), ("out", 2)), strict=True):

        def patch(x: Tensor, hook: HookPoint, name: str = name, pos: int = pos) -> None:
            x[:, pos] = cache[name, 1][:, pos]

        expected = hooked.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.1.hook_{name}", patch)])
        assert torch.equal(patch_edges(hooked, TOKENS, SOURCE, [edge]), expected)
        assert differ(expected, patch_edges(plain, TOKENS, SOURCE, [edge]))
    assert torch.equal(patch_paths(hooked, TOKENS, SOURCE, (1, 1), []), hooked(TOKENS))
    assert hooked.list_hooks() == before
    assert plain.list_hooks() == {}


def test_gradients_pass_through_what_is_not_patched() -> None:
    model, edge = make_model(), Edge(1, 1, "onward")
    (grad,) = torch.autograd.grad(patch_edges(model, TOKENS, SOURCE, [edge]).pow(2).sum(), model.blocks[1].W_hh)
    twin = make_model()
    _, cache = twin.run_with_cache(SOURCE)
    with twin.hooks(fwd_hooks=[("blocks.1.hook_recurrent", lambda x, hook: put(x, cache["recurrent", 1], 2))]):
        (expected,) = torch.autograd.grad(twin(TOKENS).pow(2).sum(), twin.blocks[1].W_hh)
    assert_close(grad, expected, **exact)
    assert grad.any()


def put(x: Tensor, values: Tensor, pos: int) -> Tensor:
    return torch.cat([x[:, :pos], values[:, pos : pos + 1], x[:, pos + 1 :]], dim=1)


def test_nothing_is_left_behind_by_a_hook_that_raises() -> None:
    model = make_model()

    def fail(x: Tensor, hook: HookPoint) -> None:
        raise RuntimeError("no")

    with model.hooks(fwd_hooks=[("hook_logits", fail)]):
        before = model.list_hooks()
        with pytest.raises(RuntimeError, match="no"):
            patch_edges(model, TOKENS, SOURCE, EDGES)
        with pytest.raises(RuntimeError, match="no"):
            path_patch(model, TOKENS, SOURCE, (0, 0), (1, 1))
        assert model.list_hooks() == before
    assert model.list_hooks() == {}
    assert torch.equal(model(TOKENS), make_model()(TOKENS))


def test_train_and_eval_are_alike_and_stay_as_they_are() -> None:
    model = make_model()
    for mode in (True, False):
        model.train(mode)
        assert_close(patch_edges(model, TOKENS, SOURCE, EDGES[:3]), edges_patched(model, EDGES[:3]).logits, **exact)
        assert model.training is mode
    assert all(parameter.grad is None for parameter in model.parameters())


# Refusals


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (Edge(3, 0, "upward"), "layer 3 .*-3 to 2"),
        (Edge(-4, 0, "upward"), "layer -4 .*-3 to 2"),
        (Edge(0, 4, "upward"), "position 4 .*-4 to 3"),
        (Edge(0, -5, "onward"), "position -5 .*-4 to 3"),
        (Edge(0, 3, "onward"), "no edge leads onward from the last of 4 positions"),
        (Edge(0, -1, "onward"), "no edge leads onward from the last of 4 positions"),
    ],
    ids=str,
)
def test_an_edge_that_there_is_not_is_refused(edge: Edge, message: str) -> None:
    model = make_model()
    for function in (patch_edges, edge_hooks):
        with pytest.raises(EdgeError, match=message):
            function(model, TOKENS, SOURCE, [edge])
    with pytest.raises(EdgeError, match=message):
        patch_paths(model, TOKENS, SOURCE, (0, 0), [edge])


def test_an_edge_that_leads_nowhere_is_refused_at_once() -> None:
    with pytest.raises(EdgeError, match="'sideways': expected 'onward' or 'upward'"):
        Edge(0, 0, "sideways")


def test_a_node_that_there_is_not_is_refused() -> None:
    model = make_model()
    for node, message in (((3, 0), "layer 3"), ((0, 4), "position 4"), ((0, -5), "position -5")):
        with pytest.raises(EdgeError, match=message):
            patch_paths(model, TOKENS, SOURCE, node, [])
        with pytest.raises(EdgeError, match=message):
            path_patch(model, TOKENS, SOURCE, (0, 0), node)
    with pytest.raises(PathError, match=r"from node \(1, 2\) to node \(0, 3\)"):
        path_patch(model, TOKENS, SOURCE, (1, 2), (0, -1))


def test_a_source_that_does_not_fit_is_refused() -> None:
    model, edge = make_model(), Edge(0, 0, "onward")
    with pytest.raises(SourceError, match=r"\[3, 3\]: expected \[3, 4\]"):
        patch_edges(model, TOKENS, SOURCE[:, :3], [edge])
    with pytest.raises(SourceError, match=r"\[2, 4\]: expected \[3, 4\]"):
        patch_paths(model, TOKENS, SOURCE[:2], (0, 0), [])
    _, other = model.run_with_cache(SOURCE, names_filter="blocks.0.hook_hidden")
    with pytest.raises(SourceError, match=r"without blocks\.0\.hook_recurrent"):
        patch_edges(model, TOKENS, other, [edge])
    for cache in (
        model.run_with_cache(SOURCE[:, :3])[1],
        model.run_with_cache(SOURCE, pos_slice=0)[1],
        model.run_with_cache(SOURCE[:1], remove_batch_dim=True)[1],
    ):
        with pytest.raises(SourceError, match=r"expected \[3, 4, d\]"):
            patch_edges(model, TOKENS, cache, [edge])


def test_hooks_on_a_run_of_another_shape_are_refused() -> None:
    model = make_model()
    for hooks in (
        edge_hooks(model, TOKENS, SOURCE, [Edge(0, 0, "onward")]),
        path_hooks(model, TOKENS, SOURCE, (0, 0), []),
    ):
        for tokens in (TOKENS[:1], TOKENS[:, :2]):
            with pytest.raises(SourceError, match=r"expected \[3, 4, 8\]"):
                model.run_with_hooks(tokens, fwd_hooks=hooks)
        assert model.list_hooks() == {}
