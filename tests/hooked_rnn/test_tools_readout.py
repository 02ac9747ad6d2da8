"""``logit_readout`` on a HookedRNN."""

from typing import Any

import pytest
import torch
from tool_verdicts import works
from torch.testing import assert_close
from transformer_lens.tools.analysis.logit_lens import logit_readout
from unrolled_cells import ANSWERS, LABELS, STEPS, TOKENS, by_hand, every_cell, exact, make_model

from hooked_rnn.readout import Readout


class Names:
    """What stands for a tokenizer."""

    def decode(self, ids: list[int]) -> str:
        return f"#{ids[0]}"


def ways(cell: str) -> list[tuple[Any, Any]]:
    """A model, and what to give the tool: the model itself where d_model is d_hidden, and for any widths its Readout."""
    square, oblong = make_model(cell, d_model=4), make_model(cell)
    return [(square, square), (square, Readout(square)), (oblong, Readout(oblong))]


@works("logit_readout", "LogitReadout.*")
@every_cell
def test_the_top_layer_s_output_is_read_out_as_the_logits(cell: str) -> None:
    for model, reader in ways(cell):
        _, cache = model.run_with_cache(TOKENS)
        logits = by_hand(model).logits.detach()
        probs = logits.softmax(-1)
        entropy = -(probs * probs.log()).sum(-1)
        for kind in ("out", "hidden"):
            read = logit_readout(reader, cache[kind, -1], chunk_size=5)
            assert_close(read.values, logits, **exact)
            assert_close(read.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logit_readout(reader, cache["out", 0]).values, logits)  # which is not the logits


@works("LogitReadout.*")
@every_cell
def test_classes_are_ranked_and_chosen(cell: str) -> None:
    for model, reader in ways(cell):
        _, cache = model.run_with_cache(TOKENS)
        logits = by_hand(model).logits.detach()
        top = logit_readout(reader, cache["out", -1], top_k=2, return_type="probs")
        wanted = logits.softmax(-1).topk(2)
        assert torch.equal(top.top_ids, wanted.indices)
        assert_close(top.values.double(), wanted.values, rtol=1e-5, atol=1e-6)
        assert torch.equal(top.row_ids((0, 1)), wanted.indices[0, 1])
        assert torch.equal(top.selected_ids, wanted.indices)
        assert top.decode(Names())[0][1] == [f"#{i}" for i in wanted.indices[0, 1].tolist()]
        answers = logit_readout(reader, cache["out", -1], targets=LABELS)
        chosen = logits.gather(-1, LABELS[..., None])
        assert_close(answers.values, chosen, **exact)
        assert torch.equal(answers.target_ranks, (logits > chosen).sum(-1, keepdim=True))
        some = logit_readout(reader, cache["out", -1][:, -1], vocab=[5, 1], return_type="log_probs")
        assert_close(some.values.double(), logits[:, -1].log_softmax(-1)[:, [5, 1]], rtol=1e-5, atol=1e-5)


@every_cell
def test_a_step_point_is_read_out_as_its_position(cell: str) -> None:
    model = make_model(cell)
    model.set_use_step_hooks(True, STEPS)
    _, cache = model.run_with_cache(TOKENS)
    logits = by_hand(model).logits.detach()
    for t in range(STEPS):
        assert_close(logit_readout(Readout(model), cache["hidden", -1, f"steps.{t}"]).values, logits[:, t], **exact)


def test_vectors_of_another_width_are_refused() -> None:
    model = make_model("gru")
    _, cache = model.run_with_cache(TOKENS)
    with pytest.raises(ValueError, match="must end in d_model=3"):
        logit_readout(model, cache["out", -1])  # the model's d_model is not what is unembedded: that is Readout's
    with pytest.raises(ValueError, match="must end in d_model=4"):
        logit_readout(Readout(model), cache["embed"])
    with pytest.raises(ValueError, match=rf"\[0, {ANSWERS}\)"):
        logit_readout(Readout(model), cache["out", -1], vocab=[ANSWERS])
    with pytest.raises(ValueError, match="evaluation"):
        logit_readout(make_model("gru", d_model=4).train(), cache["out", -1])
