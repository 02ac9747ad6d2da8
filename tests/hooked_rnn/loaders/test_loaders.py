"""A file of every format, written here, gives the model that it was written from; what is of no format is refused by name."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from analyses.fourier import FourierBasis
from hooked_rnn import (
    HookedMLP,
    HookedMLPConfig,
    HookedRNN,
    HookedRNNConfig,
    LoadedModel,
    ModularAddition,
    TransformerConfig,
    build_model,
    load_checkpoint,
    save_model,
)
from hooked_rnn.architectures import architecture_of
from hooked_rnn.checkpoints import save_checkpoint
from hooked_rnn.errors import (
    ConfigError,
    HookedRNNError,
    RunDirectoryError,
    TaskError,
    UnknownFormatError,
    UnknownModelError,
    WeightsError,
)

P = 5
TASK = ModularAddition(P, equals_token=True)
SHARED = Path(__file__).parents[4] / "shared" / "checkpoints"


def transformer(**fields: Any) -> Any:
    """A small transformer with every bias that it has at random."""
    sizes = {"d_vocab": P + 1, "d_vocab_out": P, "d_model": 8, "n_heads": 2, "d_mlp": 12}
    return with_biases(build_model(TransformerConfig(**sizes | fields)))


def with_biases(model: Any) -> Any:
    kind = architecture_of(model)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.empty_like(w).normal_(generator=generator) if ".b_" in name else w
        for name, w in kind.weights_of(model).items()
    }
    kind.set_weights(model, weights)
    return model.eval()


def paper_state_dict(d_vocab: int = P + 1) -> dict[str, Tensor]:
    """Random weights, in the layout of the paper's own code."""
    normal = torch.Generator().manual_seed(2)
    shapes = {
        "embed.W_E": (8, d_vocab),
        "pos_embed.W_pos": (3, 8),
        "blocks.0.attn.W_K": (2, 4, 8),
        "blocks.0.attn.W_Q": (2, 4, 8),
        "blocks.0.attn.W_V": (2, 4, 8),
        "blocks.0.attn.W_O": (8, 8),
        "blocks.0.mlp.W_in": (12, 8),
        "blocks.0.mlp.b_in": (12,),
        "blocks.0.mlp.W_out": (8, 12),
        "blocks.0.mlp.b_out": (8,),
        "unembed.W_U": (8, d_vocab),
    }
    weights = {name: torch.randn(shape, generator=normal) / 2 for name, shape in shapes.items()}
    return {**weights, "blocks.0.attn.mask": torch.ones(3, 3).tril()}


def paper_logits(W: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """What the paper's transformer computes from such weights, column vectors behind output-first matrices."""
    x = W["embed.W_E"].T[tokens] + W["pos_embed.W_pos"]
    q, k, v = (torch.einsum("ihd,bpd->biph", W[f"blocks.0.attn.W_{letter}"], x) for letter in "QKV")
    scores = torch.einsum("biqh,bikh->biqk", q, k) / 2  # sqrt(d_head)
    pattern = scores.masked_fill(W["blocks.0.attn.mask"] == 0, -1e10).softmax(-1)
    z = torch.einsum("biqk,bikh->bqih", pattern, v).flatten(2)
    x = x + torch.einsum("df,bqf->bqd", W["blocks.0.attn.W_O"], z)
    post = torch.relu(torch.einsum("md,bpd->bpm", W["blocks.0.mlp.W_in"], x) + W["blocks.0.mlp.b_in"])
    x = x + torch.einsum("dm,bpm->bpd", W["blocks.0.mlp.W_out"], post) + W["blocks.0.mlp.b_out"]
    return x @ W["unembed.W_U"]


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@torch.no_grad()
def close(loaded: LoadedModel, expected: Tensor) -> None:
    torch.testing.assert_close(loaded.model(loaded.task.tokens), expected.detach())
    assert not loaded.model.training


# The grokking paper's format


def test_the_papers_format(tmp_path: Path) -> None:
    weights = paper_state_dict()
    content = {"model": weights, "train_losses": [1.0], "epoch": 7, "config": {"p": P, "fn_name": "add"}}
    loaded = load_checkpoint(saved(content, tmp_path / "final.pth"))
    assert [loaded.format, loaded.task, loaded.p] == ["the grokking paper's", TASK, P]
    full = paper_logits(weights, TASK.tokens)
    close(loaded, full[..., :P])
    n = int((full[:, -1].argmax(-1) == P).sum())
    assert n > 0  # as the weights are random
    assert f"surplus output column 5 left out: it has the largest logit of {n} of the 25 sequences" in loaded.notes
    assert load_checkpoint(weights).task == TASK  # the same without a configuration: the last token is '='


def test_one_of_the_papers_list_of_state_dicts(tmp_path: Path) -> None:
    first, last = paper_state_dict(), {name: 1.25 * w for name, w in paper_state_dict().items()}
    last["blocks.0.attn.mask"] = first["blocks.0.attn.mask"]
    path = saved({"state_dicts": [first, last], "epochs": [0, 100], "test_losses": [3.0, 2.0]}, tmp_path / "full.pth")
    loaded = load_checkpoint(path)
    close(loaded, paper_logits(last, TASK.tokens)[..., :P])
    assert "the last of 2 state dicts, of epoch 100" in loaded.notes
    close(load_checkpoint(path, epoch=0), paper_logits(first, TASK.tokens)[..., :P])
    with pytest.raises(WeightsError, match=r"of epochs 0 to 100: .* not 50"):
        load_checkpoint(path, epoch=50)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the paper's checkpoint is not beside the project")
def test_the_papers_own_checkpoint() -> None:
    loaded = load_checkpoint(SHARED / "transformer_mod113_paper_format.pth")
    task = ModularAddition(113, equals_token=True)
    assert loaded.task == task
    assert "surplus output column 113 left out: it has the largest logit of no sequence" in loaded.notes
    with torch.no_grad():
        answers = loaded.model(task.tokens)[:, -1].argmax(-1)
    assert int((answers == task.labels).sum()) == 12_769
    power = FourierBasis(113).power(loaded.model.W_E.detach()[:113].double())
    assert sorted(power[1:].topk(5).indices.add(1).tolist()) == [6, 23, 37, 39, 41]


# HookedTransformer's and TransformerBridge's


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_hooked_transformer(tmp_path: Path, bias: bool, wrapped: bool) -> None:
    model = transformer(n_layers=2, bias=bias)
    weights = architecture_of(model).weights_of(model)
    buffers = {"blocks.0.attn.mask": torch.ones(3, 3).tril().bool(), "blocks.0.attn.IGNORE": torch.tensor(-torch.inf)}
    content = {"model": weights | buffers, "config": {"act_fn": "relu"}} if wrapped else weights | buffers
    loaded = load_checkpoint(saved(content, tmp_path / "model.pt"))
    assert [loaded.format, loaded.task] == ["HookedTransformer", TASK]
    assert len(loaded.notes) == (0 if wrapped else 1)
    close(loaded, model(TASK.tokens))


def test_a_configuration_object_of_transformer_lens_is_read_without_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TransformerLens's grokking demo saves one."""
    module = types.ModuleType("transformer_lens.HookedTransformerConfig")
    cls = type("HookedTransformerConfig", (), {"__module__": module.__name__})
    module.HookedTransformerConfig = cls  # type: ignore[attr-defined]
    config: Any = cls()
    config.act_fn, config.dtype, config.initializer_range = "gelu", torch.float32, np.float64(0.8) / np.sqrt(8)
    model = transformer(act_fn="gelu")
    weights = architecture_of(model).weights_of(model)
    content = {"model": weights, "config": config, "checkpoints": [weights], "checkpoint_epochs": [0]}
    with monkeypatch.context() as context:
        context.setitem(sys.modules, module.__name__, module)
        path = saved(content, tmp_path / "grokking_demo.pth")
    loaded = load_checkpoint(path)
    assert loaded.notes == ()
    close(loaded, model(TASK.tokens))


@pytest.mark.parametrize("kind", ["LN", "LNPre"])
def test_a_transformer_with_layer_norm(tmp_path: Path, kind: str) -> None:
    model = transformer()
    weights = dict(architecture_of(model).weights_of(model))
    if kind == "LN":
        for i, name in enumerate(("blocks.0.ln1", "blocks.0.ln2", "ln_final")):
            weights |= {f"{name}.w": torch.full((8,), 1.0 + i), f"{name}.b": torch.full((8,), 0.1 * i)}
    content = {"model": weights, "cfg": {"act_fn": "relu", "normalization_type": kind}}
    loaded = load_checkpoint(saved(content, tmp_path / "model.pt"))
    _, cache = loaded.model.run_with_cache(TASK.tokens)
    for read, norm in (("resid_pre", "ln1"), ("resid_mid", "ln2"), ("resid_post", "ln_final")):
        x = cache[read, 0]
        x = x - x.mean(-1, keepdim=True)
        w, b = (weights.get(f"{'' if norm == 'ln_final' else 'blocks.0.'}{norm}.{kind}") for kind in "wb")
        expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        name = f"{norm}.hook_out" if norm == "ln_final" else f"blocks.0.{norm}.hook_out"
        torch.testing.assert_close(cache[name], expected if w is None else expected * w + b)
    assert loaded.model.cfg.normalization_type == kind


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention_dir": "bidirectional"}, "attention_dir='bidirectional' in its configuration: expected 'causal'"),
        ({"positional_embedding_type": "rotary"}, "expected 'standard'"),
        ({"normalization_type": "LN"}, r"lacks the weights blocks\.0\.ln1"),
        ({"normalization_type": "batch"}, "expected None, 'LN'"),
    ],
)
def test_a_transformer_of_another_kind_with_the_same_weights_is_refused(config: dict[str, Any], message: str) -> None:
    weights = architecture_of(transformer()).weights_of(transformer())
    with pytest.raises(WeightsError, match=message):
        load_checkpoint({"model": weights, "config": {"act_fn": "relu", **config}})


def test_a_bridges_own_state_dict(tmp_path: Path) -> None:
    model = transformer(bias=True)
    content = {"model": model.state_dict(), "config": {"n_heads": 2, "act_fn": "relu"}}
    loaded = load_checkpoint(saved(content, tmp_path / "bridge.pt"))
    assert loaded.format == "TransformerBridge"
    close(loaded, model(TASK.tokens))
    with pytest.raises(WeightsError, match="n_heads=None beside it: expected one that divides 8"):
        load_checkpoint(model.state_dict())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the checkpoint of TransformerLens 3.9 is not beside the project")
def test_a_state_dict_of_transformer_lens_3() -> None:
    path = SHARED / "hooked_transformer_3.9_random.pt"
    written = torch.load(path, weights_only=True, map_location="cpu")
    loaded = load_checkpoint(path)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(written["tokens"]), written["logits"])
    assert loaded.task == ModularAddition(113, equals_token=True)


# A plain MLP


class PlainMLP(nn.Module):
    """An MLP of torch's modules under names of choice."""

    def __init__(self, combine: str, embeddings: tuple[str, ...], hidden: str, readout: str, bias: bool) -> None:
        super().__init__()
        self.combine, self.embeddings, self.names = combine, embeddings, (hidden, readout)
        self.add_module(hidden, nn.Linear(8 if combine == "concat" else 4, 7, bias=bias))
        self.add_module(readout, nn.Linear(7, P, bias=bias))
        for name in embeddings:
            self.add_module(name, nn.Embedding(P, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        tables = [self.get_submodule(self.embeddings[i % len(self.embeddings)]) for i in (0, 1)]
        operands = [table(ids) for table, ids in zip(tables, tokens.T, strict=True)]
        x = sum(operands) if self.combine == "sum" else torch.cat(operands, dim=1)
        hidden, readout = (self.get_submodule(name) for name in self.names)
        return readout(torch.relu(hidden(x)))


@pytest.mark.parametrize("combine", ["sum", "concat"])
@pytest.mark.parametrize(
    ("embeddings", "hidden", "readout", "bias"),
    [
        (("embed",), "fc1", "fc2", True),
        (("embedding",), "linear1", "linear2", False),
        (("embedding_a", "embedding_b"), "hidden", "unembed", True),
        (("Embedding_left", "Embedding_right"), "linear", "Umbedding", False),
    ],
)
def test_a_plain_mlp(
    tmp_path: Path, combine: str, embeddings: tuple[str, ...], hidden: str, readout: str, bias: bool
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PlainMLP(combine, embeddings, hidden, readout, bias)
    loaded = load_checkpoint(saved(model.state_dict(), tmp_path / "mlp.pt"), act_fn="relu")
    assert [loaded.format, loaded.task] == ["plain MLP", ModularAddition(P)]
    assert loaded.model.cfg.combine == combine
    assert len(loaded.notes) == 1
    assert all(name in loaded.notes[0] for name in (*embeddings, hidden, readout))
    close(loaded, model(ModularAddition(P).tokens))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "mlp.safetensors")  # which keeps no order of names
    close(load_checkpoint(tmp_path / "mlp.safetensors"), model(ModularAddition(P).tokens))


def test_a_hidden_layer_in_two_halves() -> None:
    normal = torch.Generator().manual_seed(0)
    left, right, embedding = (torch.randn(7, 4, generator=normal) for _ in range(3))
    readout = torch.randn(7, 7, generator=normal)
    weights = {
        "embedding.weight": embedding,
        "linear1r.weight": right,
        "linear1l.weight": left,
        "linear1l.bias": torch.ones(7),
        "linear1r.bias": torch.ones(7) / 2,
        "linear2.weight": readout,
    }
    loaded = load_checkpoint(weights, act_fn="tanh")
    a, b = ModularAddition(7).tokens.T
    close(loaded, torch.tanh(embedding[a] @ left.T + embedding[b] @ right.T + 1.5) @ readout.T)


# This project's own


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_hooked_rnns_weights_alone(tmp_path: Path, cell: str, suffix: str) -> None:
    cfg = HookedRNNConfig(d_vocab=P, d_vocab_out=P, d_model=3, d_hidden=4, n_layers=2, cell=cell, bias=True)
    model, path = with_biases(HookedRNN(cfg)), tmp_path / f"alone{suffix}"
    (torch.save if suffix == ".pt" else safetensors.torch.save_file)(model.state_dict(), path)
    loaded = load_checkpoint(path)
    assert [loaded.format, loaded.task] == ["HookedRNN", ModularAddition(P)]
    close(loaded, model(ModularAddition(P).tokens))


@pytest.mark.parametrize("combine", ["sum", "concat"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_hooked_mlps_weights_alone(combine: str, shared: bool) -> None:
    cfg = HookedMLPConfig(
        d_vocab=P, d_vocab_out=P, d_model=3, d_mlp=4, combine=combine, shared_embedding=shared, bias=True
    )
    model = with_biases(HookedMLP(cfg))
    loaded = load_checkpoint(model.double().state_dict())
    assert loaded.format == "HookedMLP"
    assert loaded.model.cfg == cfg
    assert loaded.model.cfg.dtype == torch.float64
    close(loaded, model(ModularAddition(P).tokens))


@pytest.mark.parametrize(
    "model", [transformer(), HookedRNN(HookedRNNConfig(d_vocab=6, d_vocab_out=5, d_model=3, d_hidden=4, act_fn="tanh"))]
)
def test_a_run_and_its_checkpoints(tmp_path: Path, model: Any) -> None:
    save_model(model, tmp_path)
    kind = architecture_of(model)
    earlier = {name: 2 * w for name, w in kind.weights_of(model).items()}
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path, 1, {**earlier, "training.step": torch.tensor(1)})
    for source in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load_checkpoint(source)
        assert [loaded.format, loaded.task, loaded.notes] == ["hooked_rnn", TASK, ()]
        close(loaded, model(TASK.tokens))
    kind.set_weights(model, earlier)
    close(load_checkpoint(tmp_path / "checkpoints" / "step-000001.safetensors"), model(TASK.tokens))


def test_an_embedded_name_has_its_own_task() -> None:
    loaded = load_checkpoint("mod-add-113")
    assert [loaded.task, loaded.source] == [ModularAddition(113), "mod-add-113"]
    with pytest.raises(TaskError, match="p=97: expected 113, as mod-add-113 was trained on"):
        load_checkpoint("mod-add-113", p=97)


def test_a_model_in_memory_is_taken_as_it_is() -> None:
    model = transformer(d_vocab_out=P + 1).train()
    loaded = load_checkpoint(model)
    assert loaded.model is model
    assert not model.training
    assert [loaded.task, loaded.notes] == [TASK, ("output column 5 is no answer, and is kept",)]
    mlp = HookedMLP(HookedMLPConfig(d_vocab=6, d_vocab_out=6))
    assert load_checkpoint(mlp).task == ModularAddition(6)
    assert load_checkpoint(mlp, p=5).task == ModularAddition(5)


# What is refused


class Evil:
    """Something that would run code if it were unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_a_file_of_no_known_format_says_which_there_are_and_what_was_found(tmp_path: Path) -> None:
    path = saved({"conv.weight": torch.zeros(2, 3), "conv.bias": torch.zeros(2)}, tmp_path / "net.pt")
    with pytest.raises(UnknownFormatError) as caught:
        load_checkpoint(path)
    for part in ("net.pt", "conv.weight [2, 3], conv.bias [2]", "grokking paper", "HookedTransformer", "plain MLP"):
        assert part in str(caught.value)
    with pytest.raises(
        UnknownFormatError, match=r"what was found is step \(int\), losses \(list of 2\); expected a dict"
    ):
        load_checkpoint(saved({"step": 1, "losses": [1, 2]}, tmp_path / "losses.pt"))
    with pytest.raises(UnknownFormatError, match="of type Tensor"):
        load_checkpoint(saved(torch.zeros(2), tmp_path / "tensor.pt"))
    with pytest.raises(
        UnknownFormatError, match="a Linear: expected a HookedRNN, a TransformerBridge or a HookedMLP; or a file"
    ):
        load_checkpoint(nn.Linear(1, 1))


def test_an_mlp_with_another_hidden_layer_is_of_no_known_format() -> None:
    weights = {"embed.weight": (P, 4), "fc1.weight": (4, 4), "fc2.weight": (4, 4), "fc3.weight": (P, 4)}
    with pytest.raises(UnknownFormatError, match="plain MLP"):
        load_checkpoint({name: torch.zeros(shape) for name, shape in weights.items()})


def test_objects_are_not_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved({"model": paper_state_dict(), "config": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"holds objects of '(builtins|__builtin__).print', which are not made"):
        load_checkpoint(path)
    with pytest.raises(WeightsError, match=r"holds objects of .*Linear"):
        load_checkpoint(saved(nn.Linear(1, 1), tmp_path / "module.pt"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    (torch.save if name == "cut.pth" else safetensors.torch.save_file)(paper_state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(WeightsError, match=f"{name} cannot be read as"):
        load_checkpoint(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("weights: none\n" * 20)
    with pytest.raises(WeightsError, match=r"text.pt cannot be read as a file of torch.save"):
        load_checkpoint(tmp_path / "text.pt")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"no file 'gone/model\.pth'"):
        load_checkpoint("gone/model.pth")
    with pytest.raises(UnknownModelError, match="expected an embedded one"):
        load_checkpoint("mod-add-112")
    saved(paper_state_dict(), tmp_path / "final.pth")
    with pytest.raises(RunDirectoryError, match=r"has no config.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="a JSON list"):
        load_checkpoint(tmp_path)


def changed(change: Any) -> dict[str, Tensor]:
    weights = paper_state_dict()
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["embed.W_E"][0].fill_(torch.nan), "6 of the 48 numbers of embed.W_E are NaN or infinite"),
        (lambda w: w.pop("blocks.0.mlp.W_in"), "lacks blocks.0.mlp.W_in"),
        (lambda w: w.pop("blocks.0.mlp.W_out"), "lacks blocks.0.mlp.W_out"),
        (lambda w: w.update({"blocks.0.attn.W_O": torch.zeros(8, 6)}), r"W_O has shape \[8, 6\], expected \[8, 8\]"),
        (lambda w: w.update({"unembed.W_U": torch.zeros(7, 6)}), r"W_U has shape \[7, 6\], expected \[8, 6\]"),
        (lambda w: w.update({"embed.W_E": torch.zeros(6)}), r"embed.W_E has shape \[6\], expected 2 axes"),
        (lambda w: w.update({"blocks.0.attn.rotary": torch.zeros(6)}), r"has blocks.0.attn.rotary beside"),
    ],
)
def test_weights_that_do_not_go_together_are_refused(change: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(changed(change))


def test_another_modulus_is_refused() -> None:
    with pytest.raises(
        TaskError, match="p=97: expected 5 or 6, as the state dict has weights for 6 tokens and 6 answers"
    ):
        load_checkpoint(paper_state_dict(), p=97)
    assert load_checkpoint(paper_state_dict(), p=6).task == ModularAddition(6, operands=3)
    with pytest.raises(TaskError, match="weights for 9 tokens and 5 answers: expected p or p"):
        load_checkpoint(HookedRNN(HookedRNNConfig(d_vocab=9, d_vocab_out=5, d_model=2, d_hidden=2)))
    with pytest.raises(TaskError, match="input='continuous': expected tokens"):
        load_checkpoint(HookedRNN(HookedRNNConfig(input="continuous", d_in=5, d_vocab_out=5, d_model=2, d_hidden=2)))


def test_a_nonlinearity_that_there_is_not_is_refused() -> None:
    with pytest.raises(HookedRNNError, match="act_fn='tanh': expected 'relu', 'gelu'"):
        load_checkpoint(paper_state_dict(), act_fn="tanh")
