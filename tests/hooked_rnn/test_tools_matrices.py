"""Tools that take a HookedRNN's weights and activations as tensors: factored matrices, subspaces, probes, statistics."""

import itertools

import pytest
import torch
from tool_verdicts import works
from torch.testing import assert_close
from transformer_lens import FactoredMatrix
from transformer_lens.tools.analysis.projection_kernel import (
    orthonormal_subspace,
    projection_kernel,
    random_projection_kernel_moments,
)
from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe, sweep_sparse_probe
from transformer_lens.utilities import (
    composition_scores,
    get_corner,
    get_matrix_corner,
    lm_accuracy,
    lm_cross_entropy_loss,
    logits_to_df,
    sample_logits,
    statistics,
    to_numpy,
)
from transformer_lens.utilities.parameter_swap import temporarily_swap_parameter
from unrolled_cells import BATCH, STEPS, TOKENS, VOCAB, by_hand, every_cell, exact, integers, make_model


def factored(cell: str) -> tuple[FactoredMatrix, torch.Tensor]:
    """What each token puts into layer 0, W_E W_ih, and the same multiplied out."""
    model = make_model(cell)
    W_E, W_ih = model.W_E.detach(), model.blocks[0].W_ih.detach()
    return FactoredMatrix(W_E, W_ih), W_E @ W_ih


@works(
    "FactoredMatrix",
    "FactoredMatrix.AB",
    "FactoredMatrix.T",
    "FactoredMatrix.norm",
    "FactoredMatrix.make_even",
    "FactoredMatrix.collapse_l",
    "FactoredMatrix.collapse_r",
    "FactoredMatrix.ndim",
    "FactoredMatrix.pair",
    "FactoredMatrix.get_corner",
    "FactoredMatrix.unsqueeze",
    "get_matrix_corner",
)
@every_cell
def test_a_factored_matrix_is_its_product(cell: str) -> None:
    matrix, product = factored(cell)
    assert_close(matrix.AB, product, **exact)
    assert_close(matrix.T.AB, product.T, **exact)
    assert_close(matrix.norm(), product.norm(), **exact)
    assert_close(matrix.make_even().AB, product, **exact)
    assert_close(matrix.collapse_l().norm(), product.norm(), **exact)
    assert_close(matrix.collapse_r().norm(), product.norm(), **exact)
    assert matrix.ndim == 2
    assert_close(matrix.get_corner(2), product[:2, :2], **exact)
    assert_close(get_matrix_corner(matrix, 2), product[:2, :2], **exact)
    assert_close(matrix.unsqueeze(0).AB, product[None], **exact)
    assert matrix.pair == (matrix.A, matrix.B)
    assert not torch.allclose(matrix.AB, torch.roll(product, 1, 0))


@works(
    "FactoredMatrix.svd",
    "FactoredMatrix.U",
    "FactoredMatrix.S",
    "FactoredMatrix.V",
    "FactoredMatrix.Vh",
    "upcast_for_linalg",
)
@every_cell
def test_what_a_factored_matrix_calls_vh_is_v(cell: str) -> None:
    matrix, product = factored(cell)
    U, S, V = matrix.svd()
    assert_close(U @ S.diag() @ V.T, product, **exact)
    assert_close(S, torch.linalg.svdvals(product)[: len(S)], **exact)
    assert torch.equal(matrix.V, V)
    with pytest.deprecated_call(match="returned V"):
        assert torch.equal(matrix.Vh, V)
    assert V.shape == (product.shape[1], len(S))  # not as V^T
    if V.shape[0] == V.shape[1]:
        assert not torch.allclose(U @ S.diag() @ V, product)
    assert torch.equal(matrix.U, U)
    assert torch.equal(matrix.S, S)


@works("FactoredMatrix.eigenvalues", "FactoredMatrix.BA", "composition_scores")
@every_cell
def test_two_steps_of_the_recurrence_as_one_factored_matrix(cell: str) -> None:
    W_hh = make_model(cell).blocks[0].W_hh.detach()[:, :4]
    twice = FactoredMatrix(W_hh, W_hh)
    assert_close(twice.BA, W_hh @ W_hh, **exact)
    wanted = torch.linalg.eigvals(W_hh @ W_hh)
    assert_close(twice.eigenvalues.abs().sort().values, wanted.abs().sort().values, rtol=0, atol=1e-8)
    again = FactoredMatrix(W_hh, torch.eye(4, dtype=W_hh.dtype))
    found = composition_scores(twice, again)
    assert_close(found, (W_hh @ W_hh @ W_hh).norm() / (W_hh @ W_hh).norm() / W_hh.norm(), **exact)


@works(
    "orthonormal_subspace",
    "projection_kernel",
    "SubspaceBasis",
    "SubspaceBasis.ambient_dim",
    "ProjectionKernelResult",
    "random_projection_kernel_moments",
    "RandomSubspaceReference",
)
@every_cell
def test_subspaces_that_layers_write_and_read_overlap_as_their_projections(cell: str) -> None:
    model = make_model(cell)
    write, read = model.blocks[0].W_hh.detach()[:, :2], model.W_U.detach()[:, :1]
    a, b = orthonormal_subspace(write), orthonormal_subspace(read)
    result = projection_kernel(a, b)

    def projector(matrix: torch.Tensor) -> torch.Tensor:
        return matrix @ torch.linalg.pinv(matrix)

    wanted = (projector(write) * projector(read)).sum()
    assert_close(result.score, wanted, **exact)
    assert_close(result.normalized, wanted / 2**0.5, **exact)
    assert a.ambient_dim == 4
    assert random_projection_kernel_moments(4, 2).mean == pytest.approx(2 * 2 / 4)  # E tr(PQ)
    assert projection_kernel(a, a).score == pytest.approx(2.0)
    assert wanted < 1.0 - 1e-6  # no overlap of everything, as a subspace has with itself


@works(
    "fit_sparse_probe",
    "sweep_sparse_probe",
    "SparseProbeResult",
    "SparseProbeMetrics",
    "SparseProbeSweep",
    "SparseProbeControl",
)
@every_cell
def test_a_sparse_probe_finds_the_neuron_that_says_what_came_in(cell: str) -> None:
    model = make_model(cell, n_layers=1)
    tokens = integers(200, 3)
    planted = 2
    _, cache = model.run_with_cache(tokens)
    features = cache["hidden", 0][:, -1].clone()
    labels = tokens[:, 0] % 2
    generator = torch.Generator().manual_seed(0)
    features[:, planted] = labels + 0.1 * torch.randn(200, generator=generator, dtype=features.dtype)
    scale = features.std(0).clamp_min(1e-3)  # a relu may be shut throughout
    result = fit_sparse_probe(features / scale, labels, k=1, seed=0)
    assert result.selected_features.tolist() == [planted]
    assert result.metrics.accuracy == 1.0
    difference = (features / scale)[result.train_indices]
    of_train = labels[result.train_indices]
    wanted = (difference[of_train == 1].mean(0) - difference[of_train == 0].mean(0)).abs()
    assert wanted.argmax() == planted
    assert_close(result.feature_scores.abs().double(), wanted, rtol=1e-4, atol=1e-4)
    sweep = sweep_sparse_probe(features / scale, labels, ks=[1, 2], n_label_shuffles=20, seed=0)
    assert sweep.results[0].selected_features.tolist() == [planted]
    assert sweep.label_shuffle_controls[0].accuracy.mean() < 0.8  # the control: labels that mean nothing


@works("bootstrap_ci", "standard_error", "sign_flip_permutation_pvalue", "derive_generator")
@every_cell
def test_statistics_of_a_metric_over_sequences(cell: str) -> None:
    model = make_model(cell)
    values = by_hand(model, integers(10, STEPS)).logits[:, -1, 0].detach()
    assert_close(statistics.standard_error(values), values.std() / 10**0.5, **exact)
    low, high = statistics.bootstrap_ci(values, n_resamples=500, generator=statistics.derive_generator(1))
    index = torch.randint(0, 10, (256, 10), generator=statistics.derive_generator(1))
    first = values[index].mean(1)
    assert low < values.mean() < high
    assert (first < low).double().mean() < 0.1
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=10)), dtype=values.dtype)
    wanted = ((signs * values).mean(1).abs() >= values.mean().abs() - 1e-12).double().mean()
    assert_close(statistics.sign_flip_permutation_pvalue(values).double(), wanted, rtol=0, atol=1e-6)
    assert statistics.sign_flip_permutation_pvalue(values.abs() + 1) < 0.01


@works("success_rate_ci", "SuccessRateInterval")
def test_a_success_rate_s_interval_holds_the_rate() -> None:
    interval = statistics.success_rate_ci([True] * 8 + [False] * 2)
    bounds = sorted(v for v in vars(interval).values() if isinstance(v, float) and 0 < v < 1)
    assert bounds[0] < 0.8 < bounds[-1]


@works("lm_cross_entropy_loss", "lm_accuracy")
@every_cell
def test_the_loss_of_the_next_token(cell: str) -> None:
    """Where a network predicts its own input, its labels are the tokens moved by one."""
    model = make_model(cell, d_vocab_out=VOCAB)
    labels = torch.cat([TOKENS[:, 1:], torch.full((BATCH, 1), -100)], 1)
    logits = by_hand(model).logits
    assert_close(
        lm_cross_entropy_loss(model(TOKENS), TOKENS), model(TOKENS, return_type="loss", labels=labels), **exact
    )
    wanted = (logits.argmax(-1)[:, :-1] == TOKENS[:, 1:]).double().mean()
    assert_close(lm_accuracy(model(TOKENS), TOKENS).double(), wanted)
    shifted = torch.roll(labels, 1, 1)
    assert not torch.allclose(lm_cross_entropy_loss(logits, TOKENS), model(TOKENS, return_type="loss", labels=shifted))


@works("temporarily_swap_parameter", "to_numpy", "get_corner", "logits_to_df", "sample_logits")
@every_cell
def test_small_helpers(cell: str) -> None:
    model = make_model(cell)
    logits = by_hand(model).logits.detach()
    other = make_model(cell, seed=5)
    with temporarily_swap_parameter(model.unembed.W_U, other.W_U.detach()):
        hidden = by_hand(model).stacked("out", 1)
        assert_close(model(TOKENS), hidden @ other.W_U + model.b_U, **exact)
    assert_close(model(TOKENS), logits, **exact)
    assert to_numpy(logits).tolist() == logits.tolist()
    assert_close(get_corner(logits, 2), logits[:2, :2, :2], **exact)
    frame = logits_to_df(logits[0, -1])
    assert frame.iloc[0]["token_index"] == logits[0, -1].argmax()
    assert torch.equal(sample_logits(logits[:, -1], top_k=1), logits[:, -1].argmax(-1))
