"""``transformer_lens.tools.training.train`` on a HookedRNN, which needs labels."""

from typing import Any

import pytest
import torch
from tool_verdicts import works
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens.evals import evaluate_on_dataset
from transformer_lens.tools.training import TrainConfig, train
from unrolled_cells import LABELS, TOKENS, by_hand, every_cell, exact, make_model

from hooked_rnn import HookedRNN
from hooked_rnn.errors import LabelError

CONFIG = TrainConfig(num_epochs=2, batch_size=3, lr=0.01, device="cpu", print_every=None)


class WithLabels(nn.Module):
    """Reads each row's label from its last column, as docs/transformer-lens.md shows."""

    def __init__(self, model: HookedRNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor, return_type: Any) -> Any:
        return self.model(rows[:, :-1], labels=rows[:, -1], return_type=return_type)


def rows() -> list[dict[str, Tensor]]:
    return [{"tokens": torch.cat([tokens, label[-1:]])} for tokens, label in zip(TOKENS, LABELS, strict=True)]


@works("train", "TrainConfig")
@every_cell
def test_training_with_labels_is_adam_on_the_unrolled_network(cell: str) -> None:
    model, reference = make_model(cell), make_model(cell)
    state = torch.get_rng_state()
    train(WithLabels(model), CONFIG, rows())
    torch.set_rng_state(state)
    parameters = list(reference.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(reference).logits[:, -1], LABELS[:, -1]).backward()
        optimizer.step()
    for found, wanted, before in zip(model.parameters(), parameters, make_model(cell).parameters(), strict=True):
        assert_close(found, wanted, rtol=0, atol=1e-9)
        assert not torch.equal(found, before)


@works("evaluate_on_dataset")
@every_cell
def test_the_loss_over_batches_with_labels(cell: str) -> None:
    model = make_model(cell)
    batch = {"tokens": torch.stack([row["tokens"] for row in rows()])}
    wanted = nn.functional.cross_entropy(by_hand(model).logits[:, -1], LABELS[:, -1])
    found = evaluate_on_dataset(WithLabels(model), [batch, batch], device="cpu")
    assert_close(torch.tensor(found, dtype=wanted.dtype), wanted.detach(), **exact)


def test_without_labels_there_is_one_error_that_says_so() -> None:
    with pytest.raises(LabelError, match="labels are NoneType"):
        train(make_model("gru"), CONFIG, [{"tokens": tokens} for tokens in TOKENS])
    with pytest.raises(LabelError, match="labels are NoneType"):
        evaluate_on_dataset(make_model("gru"), [{"tokens": TOKENS}], device="cpu")
