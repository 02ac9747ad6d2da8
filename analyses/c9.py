"""C9, "the same strategy as the one-layer transformer's": what would have to hold of two models, row by row.

A row is a part of the strategy. It holds of a pair if both models do it, and does not if one does and the other does
not; where neither does, they have nothing to share, and the row does not apply. So the verdict of a pair is the same in
either order, and two models that have learned nothing do not pass. Which frequencies a model has is a matter of chance
between seeds of one and the same architecture: that row is measured, and counts for nothing.

The constants below are the criteria. They were fixed before any transformer was laid beside the embedded networks. Those of
the paper's own claims are taken from :mod:`analyses.claims`, so that a claim means the same here as in the report.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from analyses.ablation import Ablation
from analyses.claims import (
    C1_ACCURACY,
    C2_ENERGY,
    C3_FREQUENCIES,
    C3_SHARED,
    C4_PURITY,
    C5_EXPLAINED,
    C5_SPARSE,
    C7_ALL_REMOVED,
    C7_CONTROL,
    C7_ONE_REMOVED,
    VERDICTS,
    Verdict,
    judge_removal,
)
from analyses.key_frequencies import LOGITS
from analyses.metrics import ENDS, LAST_STATE, Absent, Metrics
from analyses.stitching import CONTROLS, SwapTest

NEURONS = {"holds": 0.80, "partly": 0.50}
"""Least share of neurons of whose variance one frequency explains more than 85% (Nanda et al. 2023: 84.6% of them)."""
LOGITS_EXPLAINED = {"holds": 0.927, "partly": 0.70}
"""Least share of the logits' variance on cos(w(a+b-c)): the least that Chughtai et al. 2023 have of any network."""
LOGITS_FORM = 0.85
"""Least share of the logits' variance that a form explains to be called theirs: an exact logit of the one form is explained to 81.1%
by the other."""
RESTRICTED = {"holds": 0.05, "partly": 0.5}
"""Most restricted loss, in units of log p, the loss of a guess."""
EXCLUDED = {"holds": 1.0, "partly": 0.5}
"""Least excluded loss, in the same units."""
SYMMETRICITY = 0.66
"""Gradient symmetricity above which a network is a pizza by it: midway between the pizza (0.99) and the clock (0.33) of Zhong et al. 2023."""
IRRELEVANCE = 0.51
"""Distance irrelevance below which a network is a pizza by it: midway between their pizza (0.17) and clock (0.85)."""
EXCHANGED = {"holds": 0.90, "partly": 0.60}
"""Least cosine between the gradients of one number's two paths, for the two operands to be used alike."""
SURVIVES = {"holds": 0.85, "partly": 0.50}
"""Least share of a common frequency's amplitude that survives the swap, in both directions."""
SWAP_CONTROL = 3.0
"""Most accuracy of a swap's control, in units of 1/p, for the swap to mean anything."""
OVERALL_PARTLY = 0.5
"""Least share of the rows that hold, of those that apply, for C9 to hold partly of a pair."""

Judged = Verdict | Absent
"""What may be said of one model, or of a pair; Absent where nothing can."""
NEITHER = Absent("neither model does it")


@dataclass(frozen=True)
class Pair:
    """A model beside the reference."""

    reference: Metrics
    other: Metrics
    swaps: Sequence[SwapTest] = ()
    """The swap test in both directions, where it was made."""


@dataclass(frozen=True)
class Criterion:
    """One row."""

    name: str
    meaning: str
    """What it means for C9."""
    operator: str
    """How it is measured and judged, with the numbers."""
    shown: Callable[[Metrics], str]
    """What was measured of one model."""
    judge: Callable[[Pair], Judged]
    counts: bool = True
    """Whether it is a part of the strategy."""


@dataclass(frozen=True)
class Row:
    """A criterion on several models."""

    criterion: Criterion
    measured: list[str]
    """Of each model."""
    verdicts: dict[int, Judged]
    """Of each model but the reference, by its place among the models."""
    notes: dict[int, str] = field(default_factory=dict)
    """What else there is to say of the pair, where there is."""


def judge_rows(
    models: Sequence[Metrics], reference: int, swaps: Mapping[int, Sequence[SwapTest]] | None = None
) -> list[Row]:
    """Every row, of every pair of a model and the reference.

    Args:
        models: what was measured of each.
        reference: which of them the others are held against.
        swaps: by the other model's place, the swap test in both directions, where it was made.
    """
    pairs = {
        i: Pair(models[reference], other, (swaps or {}).get(i, ())) for i, other in enumerate(models) if i != reference
    }
    rows = []
    for criterion in CRITERIA:
        verdicts = {i: criterion.judge(pair) for i, pair in pairs.items()}
        notes = {i: text for i, pair in pairs.items() if (text := NOTES.get(criterion.name, lambda _: "")(pair))}
        rows.append(Row(criterion, [criterion.shown(m) for m in models], verdicts, notes))
    return rows


def overall(rows: Sequence[Row], model: int) -> tuple[Judged, str]:
    """C9 of a model and the reference: the verdict, and how many rows say what.

    It holds if every row that counts and applies does. It holds partly if at least half of them do and both models add. Otherwise it
    does not.
    """
    found = [(row.criterion, row.verdicts[model]) for row in rows if row.criterion.counts]
    applying = [verdict for _, verdict in found if not isinstance(verdict, Absent)]
    numbers = {verdict: applying.count(verdict) for verdict in VERDICTS}
    text = (
        f"{numbers['holds']} rows hold, {numbers['partly']} partly, {numbers['no']} not, of {len(applying)} that apply"
    )
    if not applying:
        return Absent("no row applies"), text
    if numbers["holds"] == len(applying):
        return "holds", text
    adds = next(verdict for criterion, verdict in found if criterion is CRITERIA[0])
    return "partly" if adds != "no" and numbers["holds"] >= OVERALL_PARTLY * len(applying) else "no", text


def both(level: Callable[[Metrics], Judged]) -> Callable[[Pair], Judged]:
    """The verdict of a part that each model has or lacks: the lesser of the two, but "no" if one has it and the other does not."""

    def judge(pair: Pair) -> Judged:
        levels = [level(pair.reference), level(pair.other)]
        for found in levels:
            if isinstance(found, Absent):
                return found
        if set(levels) == {"no"}:
            return NEITHER
        return next(verdict for verdict in ("no", "partly", "holds") if verdict in levels)

    return judge


def same(form: Callable[[Metrics], str | Absent]) -> Callable[[Pair], Judged]:
    """The verdict of a part that may be done in several ways: that both do it in the same."""

    def judge(pair: Pair) -> Judged:
        forms = [form(pair.reference), form(pair.other)]
        absent = [found for found in forms if isinstance(found, Absent)]
        if absent:
            return absent[0] if len(absent) == 2 or absent[0].reason != NO_FORM else "no"
        return "holds" if forms[0] == forms[1] else "no"

    return judge


NO_FORM = "neither form"


def at_least(value: float, thresholds: Mapping[str, float]) -> Verdict:
    """By thresholds that are to be reached."""
    return "holds" if value >= thresholds["holds"] else "partly" if value >= thresholds["partly"] else "no"


def adds(m: Metrics) -> Judged:
    return at_least(m.best_accuracy_known, C1_ACCURACY)


def few_frequencies(m: Metrics) -> Judged:
    n, (least, most) = len(m.key.frequencies), C3_FREQUENCIES
    if least <= n <= most:
        return "holds"
    return "partly" if 0 < n <= C5_SPARSE * len(m.key.spectrum.shares) else "no"


def circles(m: Metrics) -> Judged:
    return "no" if few_frequencies(m) == "no" else at_least(m.explained, C5_EXPLAINED)


def shared_throughout(m: Metrics) -> Judged:
    return at_least(min(throughout(m).values()), C3_SHARED) if m.key.frequencies else "no"


def throughout(m: Metrics) -> dict[str, float]:
    """Share of the K key frequencies that are among the K strongest elsewhere in the model."""
    n = len(m.key.frequencies)
    return {
        name: len(m.spectra[name].strongest(n) & set(m.key.frequencies)) / n if n else 0.0
        for name in (LAST_STATE, "W_U", LOGITS)
    }


def low_rank(m: Metrics) -> Judged:
    held = [value for name in ENDS if not isinstance(value := m.held(name), Absent) and value >= C2_ENERGY]
    return ("no", "partly", "holds")[len(held)]


def pure(m: Metrics) -> Judged:
    return at_least(min(m.purity[name] for name in ENDS), C4_PURITY) if m.key.frequencies else "no"


def clustered(m: Metrics) -> Judged:
    return at_least(m.neurons.share_above, NEURONS)


def logits_explained(m: Metrics) -> Judged:
    return "no" if isinstance(m.clock, Absent) else at_least(m.clock.explained, LOGITS_EXPLAINED)


def removal_at(site: str) -> Callable[[Metrics], Judged]:
    """C7 at one site."""

    def level(m: Metrics) -> Judged:
        if isinstance(m.removal, Absent):
            return m.removal if m.key.frequencies else "no"
        return judge_removal({site: m.removal[site]}).holds

    return level


def restricted(m: Metrics) -> Judged:
    if isinstance(m.losses, Absent):
        return "no"
    return at_least(-m.losses.restricted.all / math.log(m.p), {name: -most for name, most in RESTRICTED.items()})


def excluded(m: Metrics) -> Judged:
    return "no" if isinstance(m.losses, Absent) else at_least(m.losses.excluded.all / math.log(m.p), EXCLUDED)


def logits_form(m: Metrics) -> str | Absent:
    if isinstance(m.clock, Absent) or isinstance(m.pizza, Absent):
        return Absent(NO_FORM)
    shares = {"clock": m.clock.explained, "pizza": m.pizza.explained}
    best = max(shares, key=lambda form: shares[form])
    return best if shares[best] >= LOGITS_FORM else Absent(NO_FORM)


def gradients_form(m: Metrics) -> str | Absent:
    if adds(m) == "no":
        return Absent(NO_FORM)  # noise has the symmetricity of a clock
    return m.symmetry if isinstance(m.symmetry, Absent) else _form(m.symmetry.symmetricity > SYMMETRICITY)


def distance_form(m: Metrics) -> str | Absent:
    if adds(m) == "no":
        return Absent(NO_FORM)  # noise has the irrelevance of a clock
    value = m.distance_irrelevance
    return (
        "clock" if isinstance(value, Absent) else _form(value < IRRELEVANCE)
    )  # constant correct logits: an exact clock


def exchangeable(m: Metrics) -> Judged:
    if adds(m) == "no":
        return "no"
    return m.symmetry if isinstance(m.symmetry, Absent) else at_least(m.symmetry.exchanged, EXCHANGED)


def swapped(pair: Pair) -> Judged:
    """By the frequencies that are key to both: that what one holds of them the other reads, in both directions."""
    if not pair.swaps:
        return Absent("not asked for")
    if adds(pair.reference) == "no" or adds(pair.other) == "no":
        return Absent("a model does not add")
    shared = common(pair)
    if not shared:
        return Absent("no common key frequency")
    most = max(trial.others[name].accuracy for swap in pair.swaps for trial in swap.trials for name in CONTROLS)
    if most > SWAP_CONTROL / pair.reference.p:
        return Absent(f"a control reaches {most:.1%}")
    return at_least(min(survival(pair).values()), SURVIVES)


def survival(pair: Pair) -> dict[int, float]:
    """By common frequency: the lesser of what survives of it in the two directions, medians over the splits."""
    return {
        k: min(swap.range(lambda trial, k=k: trial.survives(k) or 0.0).median for swap in pair.swaps)
        for k in common(pair)
    }


def common(pair: Pair) -> list[int]:
    """The frequencies that are key to both."""
    return sorted(set(pair.reference.key.frequencies) & set(pair.other.key.frequencies))


def same_frequencies(pair: Pair) -> Judged:
    sets = [set(pair.reference.key.frequencies), set(pair.other.key.frequencies)]
    if not all(sets):
        return Absent("a model has no key frequency")
    if sets[0] == sets[1]:
        return "holds"
    return "partly" if sets[0] & sets[1] else "no"


def chance_of_common(n_all: int, n_first: int, n_second: int, n_common: int) -> float:
    """Probability that random sets of so many of n_all frequencies have at least n_common in common (hypergeometric)."""
    ways = [
        math.comb(n_first, i) * math.comb(n_all - n_first, n_second - i)
        for i in range(n_common, min(n_first, n_second) + 1)
    ]
    return sum(ways) / math.comb(n_all, n_second)


def _form(pizza: bool) -> str:
    return "pizza" if pizza else "clock"


def _percents(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1%}" for name, value in values.items())


def _removal(site: str) -> Callable[[Metrics], str]:
    return lambda m: m.removal.reason if isinstance(m.removal, Absent) else _curve(m.removal[site])


def _curve(ablation: Ablation) -> str:
    last, others = max(ablation.key), ablation.random
    text = f"{ablation.key[1].mean:.1%} without one, {ablation.key[last].mean:.1%} without {last}"
    return text + (f"; {others[max(others)].mean:.1%} without {max(others)} others" if others else "")


def _energy(m: Metrics) -> str:
    shares = {name: value for name in ENDS if not isinstance(value := m.held(name), Absent)}
    return _percents(shares) if shares else "no key frequency"


def _loss(which: str) -> Callable[[Metrics], str]:
    return lambda m: m.losses.reason if isinstance(m.losses, Absent) else f"{getattr(m.losses, which).all:.3g} nats"


def _frequencies(m: Metrics) -> str:
    return " ".join(map(str, m.key.by_share)) or "none"


def _forms(m: Metrics) -> str:
    if isinstance(m.clock, Absent) or isinstance(m.pizza, Absent):
        return "no key frequency"
    return f"clock {m.clock.explained:.1%}, pizza {m.pizza.explained:.1%}"


def _accuracy(m: Metrics) -> str:
    held_out = m.held_out_accuracy
    return f"{m.accuracy:.2%} of all pairs" + (
        "" if isinstance(held_out, Absent) else f", {held_out:.2%} of those held out"
    )


def _symmetry(which: str) -> Callable[[Metrics], str]:
    return lambda m: "none" if isinstance(m.symmetry, Absent) else f"{getattr(m.symmetry, which):.2f}"


def _frequencies_note(pair: Pair) -> str:
    ours, theirs = pair.reference.key.frequencies, pair.other.key.frequencies
    if not ours or not theirs:
        return ""
    n, shared = len(pair.reference.key.spectrum.shares), common(pair)
    chance = chance_of_common(n, len(ours), len(theirs), len(shared))
    if not shared:
        return f"none in common, as random sets have with probability {1 - chance_of_common(n, len(ours), len(theirs), 1):.1%}"
    which = " ".join(map(str, shared))
    return f"{len(shared)} in common ({which}); random sets have as many with probability {chance:.1%}"


def _swap_note(pair: Pair) -> str:
    if not pair.swaps:
        return ""
    accuracies = " and ".join(f"{swap.range(lambda trial: trial.swapped.accuracy).median:.1%}" for swap in pair.swaps)
    survives = ", ".join(f"{k}: {share:.0%}" for k, share in survival(pair).items())
    return f"accuracy {accuracies} (to the model, and back)" + (f"; survives of {survives}" if survives else "")


WHERE = {"W_E": "the embedding", "hidden": "the last state", "W_U": "the unembedding"}

CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "adds",
        "Before anything else, both must have learned addition and not the training pairs alone.",
        f"accuracy on held-out pairs, on all where the split is not known; holds from {C1_ACCURACY['holds']:.0%}, partly from "
        f"{C1_ACCURACY['partly']:.0%}",
        _accuracy,
        both(adds),
    ),
    Criterion(
        "few key frequencies",
        "The transformer's algorithm runs on a handful of frequencies of its own choice, so the other's must too.",
        f"share of the embedding's power above twice the uniform share; holds with {C3_FREQUENCIES[0]} to {C3_FREQUENCIES[1]}, partly "
        f"with at most {C5_SPARSE:.0%} of all",
        lambda m: f"{len(m.key.frequencies)} with {m.key.spectrum.share_of(m.key.frequencies):.1%} of the power",
        both(few_frequencies),
    ),
    Criterion(
        "circles in the embedding",
        "Each number enters both as a point on a circle for each of these frequencies.",
        f"R^2 of W_E on the key frequencies' cosines and sines; holds from {C5_EXPLAINED['holds']:.0%}, partly from "
        f"{C5_EXPLAINED['partly']:.0%}",
        lambda m: f"{m.explained:.1%}",
        both(circles),
    ),
    Criterion(
        "the same throughout",
        "In both, one set of frequencies runs from the input to the output.",
        "share of the K key frequencies among the K strongest of the last state, of W_U and of the logits, the least; holds from "
        f"{C3_SHARED['holds']:.0%}, partly from {C3_SHARED['partly']:.0%}",
        lambda m: _percents(throughout(m)) if m.key.frequencies else "no key frequency",
        both(shared_throughout),
    ),
    Criterion(
        "low rank",
        "Both keep two directions for each frequency in the embedding and the unembedding, and next to nothing else.",
        f"energy of the first 2K singular components; holds from {C2_ENERGY:.1%} of W_E and of W_U, partly of one",
        _energy,
        both(low_rank),
    ),
    Criterion(
        "singular vectors of one frequency",
        "In both, these directions are each a single frequency's and no mixture.",
        f"mean purity of the first 2K singular vectors of W_E and of W_U, the lesser; holds from {C4_PURITY['holds']:.0%}, partly from "
        f"{C4_PURITY['partly']:.0%}",
        lambda m: _percents(m.purity) if m.key.frequencies else "no key frequency",
        both(pure),
    ),
    Criterion(
        "neurons of one frequency",
        "Both multiply frequency by frequency, each with neurons of its own.",
        f"share of neurons of whose variance one frequency explains more than 85%; holds from {NEURONS['holds']:.0%}, partly from "
        f"{NEURONS['partly']:.0%}",
        lambda m: f"{m.neurons.share_above:.1%} of {len(m.neurons.best)} at {m.neuron_hook}",
        both(clustered),
    ),
    Criterion(
        "logits of the sum",
        "Both answer by cosines that peak at c = a + b.",
        f"share of the logits' variance on cos(w(a+b-c)) at the key frequencies; holds from {LOGITS_EXPLAINED['holds']:.1%}, partly from "
        f"{LOGITS_EXPLAINED['partly']:.0%}",
        lambda m: "no key frequency" if isinstance(m.clock, Absent) else f"{m.clock.explained:.1%}",
        both(logits_explained),
    ),
    *(
        Criterion(
            f"removal from {site if site != 'hidden' else 'the last state'}",
            f"Both depend on the key frequencies of {WHERE[site]} together, on none alone, and on no others.",
            f"mean accuracy; holds with at least {C7_ONE_REMOVED:.0%} without one, at most {C7_ALL_REMOVED:.0%} without all, at least "
            f"{C7_CONTROL:.0%} without as many others; partly: a drop of half",
            _removal(site),
            both(removal_at(site)),
        )
        for site in WHERE
    ),
    Criterion(
        "restricted loss",
        "In both, the key frequencies of the sum are enough for the answer.",
        f"loss of the logits' mean and family sum at the key frequencies, all pairs; holds up to {RESTRICTED['holds']} log p, partly up "
        f"to {RESTRICTED['partly']} log p",
        _loss("restricted"),
        both(restricted),
    ),
    Criterion(
        "excluded loss",
        "In neither is there a second mechanism beside them.",
        f"loss of the logits without that family, all pairs; holds from {EXCLUDED['holds']:g} log p, partly from "
        f"{EXCLUDED['partly']} log p",
        _loss("excluded"),
        both(excluded),
    ),
    Criterion(
        "logits of one form",
        "Both have the clock's logits, or both the pizza's, whose size depends on a - b.",
        f"the form that explains more of the logits' variance, if at least {LOGITS_FORM:.0%}",
        _forms,
        same(logits_form),
    ),
    Criterion(
        "gradients of one form",
        "By the gradients at the two operands too, both are clocks or both pizzas.",
        f"gradient symmetricity; a pizza's above {SYMMETRICITY}",
        _symmetry("symmetricity"),
        same(gradients_form),
    ),
    Criterion(
        "distance of one form",
        "By how the correct logit depends on a - b too, both are clocks or both pizzas.",
        f"distance irrelevance; a pizza's below {IRRELEVANCE}",
        lambda m: "none: constant" if isinstance(m.distance_irrelevance, Absent) else f"{m.distance_irrelevance:.2f}",
        same(distance_form),
    ),
    Criterion(
        "operands alike",
        "Both use a as they use b; a recurrent network has cause not to, as a enters a step before b.",
        f"cosine between the gradients of one number's two paths; holds from {EXCHANGED['holds']}, partly from {EXCHANGED['partly']}",
        _symmetry("exchanged"),
        both(exchangeable),
    ),
    Criterion(
        "swap test",
        "What one holds of a common frequency in its last state is, up to a linear map, what the other reads.",
        f"of each key frequency of both, the share of its amplitude that survives, in both directions; holds from {SURVIVES['holds']:.0%} of "
        f"each, partly from {SURVIVES['partly']:.0%}, with every control at most {SWAP_CONTROL:g}/p",
        lambda m: f"at {m.place.hook_name}",
        swapped,
    ),
    Criterion(
        "which frequencies",
        "Nothing: seeds of one architecture differ in them, and a strategy does not say which.",
        "the same key frequencies (partly: some); beside it the chance that random sets have as many in common",
        _frequencies,
        same_frequencies,
        counts=False,
    ),
)
"""The rows, in the order of the tables."""

NOTES: dict[str, Callable[[Pair], str]] = {"which frequencies": _frequencies_note, "swap test": _swap_note}
"""What is said of a pair beside its verdict."""
