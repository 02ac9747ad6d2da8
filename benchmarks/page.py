"""docs/benchmarks.md, from the results that are kept beside this file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

BESIDE_OTHERS = [
    "Where each is ahead, of HookedRNN, torch hooks and nnsight, on the notes of the last column of *beside others*. HookedRNN is ahead in capturing the",
    "hidden states as one tensor, at all three sizes: its loop has put them into one, which the cache holds, while the others stack what they kept a second time.",
    "Left as a list, torch hooks and nnsight are ahead at T = 32, HookedRNN at T = 2 and, narrowly, at T = 256. Torch hooks and nnsight are ahead in",
    "editing one step of a long sequence, by about 30% of HookedRNN's time at T = 32 and T = 256: they write one [batch, d] state at one call, while a",
    "hook of HookedRNN is called at every step, with all steps so far in a tensor of its own. At T = 2 edits are about level.",
    "Other work ran beside this benchmark: where a row's least and largest are far apart (above all at T = 2, where the ratios over a side's own plain",
    "forward differed from run to run by more than the hooks cost), the median is a rough figure.",
]
"""Held against the results by tests/test_beside_others.py."""


def page() -> str:
    """A table for each file of results."""
    return "\n".join([*_head(), *(line for path in sorted(RESULTS.glob("*.json")) for line in _section(path))])


def _head() -> list[str]:
    return [
        "# Benchmarks",
        "",
        "Each row times two things in turn, A B A B ..., in one process, and states the ratio of their seconds round by round: median, least",
        "and largest. A ratio below one is faster than what it is compared with. The goal is what the project set itself for the median.",
        "Float32, on a shared machine with two processor cores and no GPU.",
        "",
        "- *training step*: full batch, p = 113, 40% of the pairs, d_model 128, d_hidden 256. `nn.RNN`: the same step through nn.Embedding, nn.RNN,",
        "  nn.Linear and AdamW. *Three products*: of the unembedding alone, as new tensors: logits, gradient by W_U, gradient by the states. Each side",
        "  runs twice a round and its second run is timed, as in a row of steps. `adamw` is that very step. `fast` adds the orthogonal gradient, which one",
        "  thread computes; where that takes it past the goal of 1.5 times the three products, the table says so. On two threads the medians differ by some",
        "  hundredths from run to run, and by more with other work beside them.",
        "- *hooked forward*: no_grad, batch 4,096, d_hidden 256, over the plain forward of the same model.",
        "- *gradient by prefixes*: loss and gradient of 40% of all sequences, d_model 128, d_hidden 256, over the plain forward and `backward()`.",
        "  Each side runs twice a round here too.",
        "- *a subset removed*: accuracy and loss on all 12,769 pairs of `mod-add-113` without one of all subsets of its strongest key frequencies, over the",
        "  plain forward of those pairs: seconds of the whole lattice, what it computes beforehand included, over the number of subsets.",
        "- *from seed to 99%*: 60% of the pairs, the same pairs and initial weights on both sides, evaluated after every 25 steps; `nn.RNN` with AdamW at",
        "  learning rate 1e-3, weight decay 1, betas 0.9 and 0.98, at most 5,000 steps. Other work ran beside it: both sides' seconds are too long.",
        "- *long sequences*: batch 64, d_hidden 256, one layer, no_grad unless a row says backward, over the plain pass of the same model. *Device given*:",
        "  moved once, after the last step. *Edit one step*: a hook on `hook_hidden` that writes where `hook.step` is 100; *at its own point*: on",
        "  `steps.100.hook_hidden`. *Peak memory*: by the allocator's own count (its seconds are the profiler's). A capture adds nothing to the peak:",
        "  the plain pass stacks the states for the unembedding, and that tensor is what the cache holds at the end. The control copies each step.",
        "  *Growth*: read it beside the plain pass's, which grows a little over 2 per doubling itself; that costs are linear is held by counts of",
        "  elements in tests/hooked_rnn/test_long_sequences.py.",
        "- *beside others*: one layer, d_model 128, d_hidden 256, no_grad. *HookedRNN*: `run_with_cache` of `hook_hidden`, and `run_with_hooks` with a hook that",
        "  doubles it at the middle step. The others do the same on a loop of `nn.RNNCell` with the same weights. *torch hooks*: `register_forward_hook` on the",
        "  cell, with a counter of calls. *nnsight*: `tracer.iter` over the cell's calls. *Capture*: one tensor [batch, pos, d], which the others have to",
        "  stack; *a list*: not stacked. Before anything is timed, captured states and edited logits have to agree to 1e-5 of the largest. nnsight is",
        "  installed for this alone: `pip install -c constraints.txt -e '.[benchmarks]'`, then `python -m benchmarks beside_others`.",
        "",
        *BESIDE_OTHERS,
        "",
        "This page is written by `python -m benchmarks.page` from `benchmarks/results/`.",
    ]


def _section(path: Path) -> Iterator[str]:
    record = json.loads(path.read_text(encoding="utf-8"))
    made_with = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    threads = record["results"][0]["threads"]
    yield from ("", f"## {path.stem.replace('-', ' ')}, {threads} thread{'s' * (threads > 1)}", "")
    yield from (f"`{record['command']}`, with {made_with}.", "")
    yield "| | ratio | goal | met | seconds | of the other | rounds | |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    yield from map(_row, record["results"])


def _row(result: dict[str, Any]) -> str:
    low, middle, high = (f"{result[f'ratio_{which}']:.3f}" for which in ("min", "median", "max"))
    goal = "" if result["goal"] is None else f"{result['goal']:g}"
    met = "" if result["goal"] is None else "yes" if result["ratio_median"] <= result["goal"] else "no"
    seconds, other = (f"{result[key]:.4f}" for key in ("seconds_median", "baseline_seconds_median"))
    cells = (
        result["name"],
        f"{middle} ({low} to {high})",
        goal,
        met,
        seconds,
        other,
        str(result["rounds"]),
        result["note"],
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page() + "\n", encoding="utf-8")
