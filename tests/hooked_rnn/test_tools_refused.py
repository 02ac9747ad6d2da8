"""TransformerLens's tools that cannot mean anything on a recurrent network: one error that says why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tool_verdicts import refused
from transformer_lens import SVDInterpreter, evals, patching
from transformer_lens.head_detector import detect_head
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient as with_gradient
from transformer_lens.tools.analysis.attribution_patching import enumerate_edges, enumerate_nodes
from transformer_lens.utilities import move_to_and_update_config, test_prompt
from unrolled_cells import OTHERS, TOKENS, every_cell, make_model, score

from hooked_rnn import HookedRNN
from hooked_rnn.errors import (
    HookedRNNError,
    TokenError,
    TransformerOnlyAttributeError,
    TransformerOnlyError,
    UnknownHookPointError,
)

test_prompt.__test__ = False  # a tool, and no test

CACHE_METHODS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "accumulated_resid": (lambda cache: cache.accumulated_resid(), "no residual stream"),
    "decompose_resid": (lambda cache: cache.decompose_resid(), "no residual stream"),
    "get_full_resid_decomposition": (lambda cache: cache.get_full_resid_decomposition(), "no residual stream"),
    "logit_lens": (lambda cache: cache.logit_lens(top_k=1), "only the top layer"),
    "compute_head_results": (lambda cache: cache.compute_head_results(), "no attention"),
    "stack_head_results": (lambda cache: cache.stack_head_results(layer=1), "no attention"),
    "get_neuron_results": (lambda cache: cache.get_neuron_results(0), "no MLP"),
    "stack_neuron_results": (lambda cache: cache.stack_neuron_results(1), "no MLP"),
    "compute_ssm_effective_attention": (lambda cache: cache.compute_ssm_effective_attention(), "no state-space"),
    "compute_ssm_state": (lambda cache: cache.compute_ssm_state(), "no state-space"),
}


@refused(
    "ActivationCache.accumulated_resid",
    "ActivationCache.decompose_resid",
    "ActivationCache.get_full_resid_decomposition",
    "ActivationCache.logit_lens",
    "ActivationCache.compute_head_results",
    "ActivationCache.stack_head_results",
    "ActivationCache.get_neuron_results",
    "ActivationCache.stack_neuron_results",
    "ActivationCache.compute_ssm_effective_attention",
    "ActivationCache.compute_ssm_state",
)
@pytest.mark.parametrize("method", CACHE_METHODS)
@every_cell
def test_a_cache_refuses_what_only_a_transformer_has(cell: str, method: str) -> None:
    call, says = CACHE_METHODS[method]
    _, cache = make_model(cell).run_with_cache(TOKENS)
    with pytest.raises(TransformerOnlyError, match=rf"^{method} cannot mean anything.*{says}.*; use "):
        call(cache)


ATTENTION_PATCHES = [name for name in dir(patching) if name.startswith("get_act_patch_attn_head")]
OTHER_PATCHES = ["resid_pre", "resid_mid", "attn_out", "mlp_out", "block_every"]


@refused(
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_block_every",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_pre",
)
@pytest.mark.parametrize("name", [*ATTENTION_PATCHES, *(f"get_act_patch_{name}" for name in OTHER_PATCHES)])
@every_cell
def test_patches_of_a_transformer_s_parts(cell: str, name: str) -> None:
    model = make_model(cell)
    _, clean_cache = model.run_with_cache(TOKENS)
    with pytest.raises((UnknownHookPointError, TransformerOnlyError), match=r"no (attention|MLP|residual stream)"):
        getattr(patching, name)(model, OTHERS, clean_cache, score)
    assert model.list_hooks() == {}


def pairs(model: HookedRNN) -> Any:
    return model.run_with_cache(TOKENS)[1], model.run_with_cache(OTHERS)[1]


TOOLS: dict[str, tuple[Callable[[HookedRNN], Any], type[Exception], str]] = {
    # HookedRNN's errors
    "direct_logit_attribution": (
        lambda m: analysis.direct_logit_attribution(m, TOKENS, 3),
        TransformerOnlyError,
        "no residual",
    ),
    "logit_lens": (lambda m: analysis.logit_lens(m, TOKENS), UnknownHookPointError, "no residual stream"),
    "attribution_patch edges": (
        lambda m: analysis.attribution_patch(m, TOKENS, OTHERS, score, analysis.EdgeAttributionConfig("edge")),
        TransformerOnlyAttributeError,
        "no use_attn_result.*no attention",
    ),
    "faithfulness": (
        lambda m: analysis.faithfulness(m, TOKENS[:1], OTHERS[:1], score, []),
        TransformerOnlyAttributeError,
        "no use_attn_result.*no attention",
    ),
    "SVDInterpreter": (SVDInterpreter, TransformerOnlyError, "FactoredMatrix"),
    "detect_head": (lambda m: detect_head(m, [[1, 2, 3]], torch.eye(3)), UnknownHookPointError, "no attention"),
    "sanity_check": (evals.sanity_check, TokenError, "cannot read"),
    "induction_loss": (lambda m: evals.induction_loss(m, device="cpu"), TransformerOnlyAttributeError, "no tokenizer"),
    "evaluate": (evals.evaluate, TransformerOnlyAttributeError, "no tokenizer"),
    "ioi_eval": (evals.ioi_eval, TransformerOnlyAttributeError, "no tokenizer"),
    "mmlu_eval": (evals.mmlu_eval, TransformerOnlyAttributeError, "no tokenizer"),
    # TransformerLens's own, which say it before HookedRNN is asked
    "attribution_patch": (lambda m: analysis.attribution_patch(m, TOKENS, OTHERS, score), ValueError, "attn.hook_z"),
    "enumerate_nodes": (lambda m: enumerate_nodes(m, with_gradient(m, TOKENS, score)), ValueError, "attn.hook_z"),
    "enumerate_edges": (lambda m: enumerate_edges(m, with_gradient(m, TOKENS, score)), ValueError, "attn.hook_z"),
    "get_act_patch_direct_path": (
        lambda m: analysis.get_act_patch_direct_path(m, OTHERS, *pairs(m), score, 0, 0),
        ValueError,
        "has no `attn` component",
    ),
    "get_act_patch_direct_path_all_sources": (
        lambda m: analysis.get_act_patch_direct_path_all_sources(m, OTHERS, *pairs(m), score),
        ValueError,
        "has no `attn` component",
    ),
    "attention_head_subspace_affinity": (
        lambda m: analysis.attention_head_subspace_affinity(m, target_role="Q"),
        ValueError,
        "must be a TransformerBridge",
    ),
    "JacobianLens.fit": (
        lambda m: analysis.JacobianLens.fit(m, ["1 2"], corpus="none"),
        TypeError,
        "TransformerBridge",
    ),
    "JacobianLens.validate_model": (
        lambda m: analysis.JacobianLens({0: torch.eye(3)}, n_prompts=1, d_model=3).validate_model(m),
        TypeError,
        "TransformerBridge",
    ),
    "test_prompt": (lambda m: test_prompt("1 2", "3", m), TypeError, "prepend_bos"),
    "move_to_and_update_config": (
        lambda m: move_to_and_update_config(m, "cpu", print_details=False),
        AttributeError,
        "cannot assign to field 'device'",
    ),
}


@refused(
    "direct_logit_attribution",
    "logit_lens",
    "attribution_patch",
    "faithfulness",
    "enumerate_nodes",
    "enumerate_edges",
    "SVDInterpreter.*",
    "detect_head",
    "sanity_check",
    "induction_loss",
    "evaluate",
    "ioi_eval",
    "mmlu_eval",
    "get_act_patch_direct_path",
    "get_act_patch_direct_path_all_sources",
    "attention_head_subspace_affinity",
    "JacobianLens.*",
    "test_prompt",
    "move_to_and_update_config",
)
@pytest.mark.parametrize("tool", TOOLS)
@every_cell
def test_a_tool_refuses_with_one_error_that_says_why(cell: str, tool: str) -> None:
    model = make_model(cell, n_ctx=8)
    call, error, says = TOOLS[tool]
    before = model(TOKENS)
    with pytest.raises(error, match=says) as caught:
        call(model)
    assert issubclass(error, HookedRNNError) == isinstance(caught.value, HookedRNNError)
    assert model.list_hooks(including_permanent=True) == {}
    assert torch.equal(model(TOKENS), before)


@refused("TransformerLensModelWithWeights.*")
def test_what_a_model_lacks_it_does_not_have() -> None:
    model = make_model("lstm")
    for name in ("tokenizer", "ln_final", "accumulated_bias"):
        assert not hasattr(model, name)
    with pytest.raises(TransformerOnlyError, match="no tokenizer"):
        model.to_single_token("12")
    assert not hasattr(model.cfg, "attn_only")
    assert getattr(model.cfg, "d_mlp", None) is None
    assert model.cfg.normalization_type is None
    with pytest.raises(AttributeError, match="has no attribute 'tokeniser'"):
        _ = model.tokeniser
    with pytest.raises(AttributeError, match="has no attribute 'd_hiden'"):
        _ = model.cfg.d_hiden
