"""The report's sections: tables and pictures, each with a caption that names its operator and its threshold.

The page and the terminal show the same sections; a picture is drawn when it is asked for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from analyses import plots
from analyses.ablation import Spread
from analyses.candidates import COUNTS, Candidates
from analyses.claims import Claim
from analyses.clock_pizza import TRIPLES
from analyses.key_frequencies import RULES
from analyses.measure import Measurements
from analyses.neurons import Neurons
from analyses.restricted import Losses
from analyses.subsets import Lattice
from analyses.toolbox import Toolbox


@dataclass(frozen=True)
class Table:
    """Rows of text under a head."""

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Picture:
    """A figure that is drawn when it is asked for."""

    name: str
    """Of its file, without the ending."""
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """What belongs together."""

    title: str
    parts: list[Table | Picture]
    left_out: tuple[str, ...] = ()
    """A line for each thing that this model does not have."""


Claims = Mapping[str, Claim]
History = Sequence[Mapping[str, Any]]


def finding(m: Measurements, box: Toolbox, claims: Claims) -> Section:
    """Key frequencies by every rule; spectra of weights, activations and logits."""
    rows = [
        (
            rule,
            found.of,
            ", ".join(f"{name} = {value:g}" for name, value in found.settings.items()),
            f"{found.threshold:.2%}",
            _listed(found.by_share),
        )
        for rule, found in box.rules.items()
    ]
    parts: list[Table | Picture] = [
        Table(
            "Key frequencies by every rule, the strongest first (key_frequencies.find). " + _rules_in_words(box.rules),
            ("rule", "looks at", "its arguments", "share above which", "key frequencies"),
            rows,
        ),
        Picture(
            "frequencies",
            f"C3. Share of the power of all frequencies 1 to p//2 (spectra.weight_spectrum, grid_spectrum). Key: more than "
            f"{m.key.threshold:.2%} of the power of {m.key.of}, twice the uniform share; the colours are theirs in every figure.",
            lambda: plots.frequencies_figure(claims["C3"], m.key, m.hidden_spectrum, m.output_spectrum),
        ),
        Picture(
            "key_rules",
            "What each rule looks at and its threshold, the dotted line. Of neurons: share of all neurons that the frequency explains "
            "more of than the rule asks; of logits: share of their variance on cos w(a+b-c).",
            lambda: plots.rules_figure(box.rules, m.key),
        ),
        Picture(
            "weights",
            "1-D spectra of every weight with an axis of numbers, directly or by composition, without biases (spectra.weight_spectra); no threshold.",
            lambda: plots.weights_figure(box.weights, m.key),
        ),
        Picture(
            "families",
            "2-D spectra over all pairs (spectra.family_spectrum): share of the variance at each frequency of a and of b; "
            "on the diagonal sum and difference, off it products of two frequencies. No threshold.",
            lambda: plots.families_figure(box.families, m.key),
        ),
    ]
    return Section("Finding: which frequencies", parts, _reasons(box, "rules", "spectra"))


def attributing(m: Measurements, box: Toolbox, claims: Claims) -> Section:
    """Low rank, circles, singular pairs, neurons, and the table of candidates."""
    parts: list[Table | Picture] = [
        Picture(
            "circles",
            "C5. The numbers in the plane of the embedding in which a frequency turns: W_E on its cosine and sine axis (attribution.circle); "
            "grey, the circle of the mean radius.",
            lambda: plots.circles_figure(claims["C5"], m.circles, m.key),
        ),
        Picture(
            "low_rank",
            f"C2. Sum of the first n squared singular values over all (low_rank.cumulative_energy); criterion: the first 2K = {m.components} hold 85.4%.",
            lambda: plots.low_rank_figure(claims["C2"], m.cumulative_energy, m.components),
        ),
        Picture(
            "singular_pairs",
            "C4. Each singular vector on the axis of numbers goes to its strongest frequency, two of one frequency are a pair "
            "(singular_pairs.weight_pairs). Purity of a pair: mean squared cosine of its principal angles to the frequency's plane; "
            "criterion: 90%, of the mean weighted by energy, of all but W_hh W_U.",
            lambda: plots.singular_pairs_figure(claims["C4"], box.pairs, m.key),
        ),
        Picture(
            "energy",
            "Power of each frequency in a weight over all of its power, the constant included (SingularPairs.energy_by_frequency).",
            lambda: plots.energy_figure(box.pairs, m.key),
        ),
    ]
    if box.neurons is not None:
        parts += [_neurons_picture(box.neurons, box), _neurons_table(box.neurons)]
    if box.candidates is not None:
        parts.append(_candidates_table(box.candidates))
    return Section(
        "Attributing: what belongs to a frequency", parts, _reasons(box, "singular pairs", "neurons", "candidates")
    )


def _neurons_picture(neurons: Neurons, box: Toolbox) -> Picture:
    return Picture(
        "neurons",
        f"Neurons at {box.neurons_at}, by the frequency that explains most of their variance over all pairs, with the families "
        f"{', '.join(neurons.families)} (neurons.cluster_neurons); threshold {neurons.threshold:.0%}. Phases f of r cos(wx + f), x = a, b. "
        "Sharing: cosine between what two frequencies explain, as vectors over the neurons.",
        lambda: plots.neurons_figure(neurons, box.key),
    )


def _neurons_table(neurons: Neurons) -> Table:
    columns = ("frequency", "neurons", "mean variance explained", f"above {neurons.threshold:.0%}")
    rows = [(str(c.frequency), str(len(c.neurons)), f"{c.mean_explained:.1%}", str(c.above)) for c in neurons.clusters]
    shown = [row for row in rows if int(row[3]) > 0]
    rest = len(rows) - len(shown)
    left = f"; {rest} frequenc{'y has' if rest == 1 else 'ies have'} neurons but none above" if rest else ""
    caption = f"Neurons by frequency (Neurons.clusters of neurons.cluster_neurons); {neurons.share_above:.1%} of all are above {neurons.threshold:.0%} (Nanda et al. 2023: 84.6%){left}."
    return Table(caption, columns, shown)


def _candidates_table(found: Candidates) -> Table:
    cells: dict[str, list[str]] = {}
    for row in found.rows:
        mark = "*" if row.in_range() else ""
        cells.setdefault(row.matrix, []).append(f"{row.holds['energy']:.1%}{mark} ({row.components})")
    return Table(
        "What the published 85.4% to 95.5% of the energy can be about: share of the squared singular values in the significant components, "
        "by every rule for how many are (candidates.candidates; number in brackets; * in the published range).",
        ("matrix", *COUNTS),
        [(name, *held) for name, held in cells.items()],
    )


def circuit(m: Measurements, box: Toolbox, claims: Claims) -> Section:
    """C6: the circuit step by step, the hidden fit, and the logits by both closed forms."""
    parts: list[Table | Picture] = []
    if box.circuit is not None:
        read = box.circuit
        parts.append(
            Picture(
                "circuit",
                "C6. Share of each activation's variance over all pairs, centred, in the families of the key frequencies; relative error: norm of what the "
                "closed form (the families that Fourier multiplication has there) leaves over the norm of the activation; right: the same within the "
                "directions that a frequency is written to (circuit.read_circuit). No threshold.",
                lambda: plots.circuit_figure(read, m.key),
            )
        )
    parts.append(
        Picture(
            "hidden_fit",
            "C6. The last hidden state of all pairs on W_U cos(w c), and its fit by cos and sin of w(a+b) (attribution.hidden_fit): norm of the "
            "residual over the norm of the projections, not centred. Criterion: at most 0.01.",
            lambda: plots.hidden_fit_figure(claims["C6"], m.fits, m.key),
        )
    )
    parts.append(_fits_table(m, box))
    return Section("The circuit, step by step", parts, _reasons(box, "circuit"))


def _fits_table(m: Measurements, box: Toolbox) -> Table:
    read = box.circuit
    rows = []
    for k in m.key.by_share:
        phases = (
            ("", "", "")
            if read is None
            else _phases(read.phases[k].overlap, read.phases[k].agreement, read.phases[k].concentration)
        )
        logits = (f"{box.clock.shares[k]:.1%}", f"{box.pizza.shares[k]:.1%}")
        rows.append((str(k), f"{m.fits[k].relative:.4f}", f"{m.fits[k].squared:.6f}", *phases, *logits))
    rows.append(("all", "", "", "", "", "", f"{box.clock.explained:.2%}", f"{box.pizza.explained:.2%}"))
    return Table(
        "Frequency by frequency: the hidden fit (attribution.hidden_fit); how a's wave and b's meet in the units (circuit.phases); "
        "share of the logits' variance on cos(w(a+b-c)), the clock's form (Nanda et al. 2023: 95%; Chughtai et al. 2023: 92.7% to 98.1%), and on "
        "|cos(w(a-b)/2)| cos(w(a+b-c)), the pizza's (circuit.logit_fit).",
        (
            "k",
            "relative error",
            "squared",
            "same units",
            "phases agree",
            "difference fixed",
            "logits: clock",
            "logits: pizza",
        ),
        rows,
    )


def _phases(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" for value in values)


def removing(m: Measurements, box: Toolbox, claims: Claims) -> Section:
    """C7, removal at every place, restricted and excluded loss."""
    parts: list[Table | Picture] = [
        Picture(
            "removal",
            "C7. Accuracy without every subset of the key frequencies (W_E and W_U: FourierBasis.remove over the numbers; last hidden state: family "
            "sum over the pairs, ablation.frequency_hook), and the matched controls. Criterion: 85% without one, at most 6% without all.",
            lambda: plots.removal_figure(claims["C7"], m.ablations),
        )
    ]
    if box.removals is not None:
        parts.append(_removals_table(box))
    parts.append(
        Picture(
            "losses",
            "Restricted and excluded loss in four variants (restricted.progress_measures): sum and polynomial, the logits projected on functions of the "
            "pair; trace, on cos w(a+b-c); activation, sum at the neurons. Nothing here has a threshold.",
            lambda: plots.losses_figure(box.losses, box.p),
        )
    )
    if box.losses:
        parts.append(_losses_table(box))
    return Section(
        "Removing frequencies",
        parts,
        (*m.left_out.values(), *_reasons(box, "removal at every site", "restricted loss")),
    )


def _removals_table(box: Toolbox) -> Table:
    assert box.removals is not None
    rows = [
        (
            removal.site, removal.mode, _spread(removal.one), f"{removal.accuracy:.1%}", f"{removal.loss:.2e}",
            "" if removal.control is None else _spread(removal.control),
        )
        for removal in box.removals.removals
    ]  # fmt: skip
    found = box.removals.leave_out
    clean = (
        ""
        if found is None
        else f" Fitted on half of the pairs, it takes {found.removed:.1%} of the family's power from the other half and {found.collateral:.2%} of all "
        f"else, by {found.rank} directions."
    )
    return Table(
        "Key frequencies removed at every place (removal_sites.removal_sites), accuracy as mean (least to most). Weights: weight_removal; hidden and "
        "logits: family sum, over all pairs; by subspace: subspace.fit_subspace, fitted on half of the pairs and applied to the others. "
        f"What takes their place: zero; the mean; the part of another pair (resample). Over all pairs the mean is zero.{clean}",
        ("removed from", "in its place", "without one", "without all", "loss without all", "without as many others"),
        rows,
    )


def _losses_table(box: Toolbox) -> Table:
    def three(losses: Losses) -> tuple[str, ...]:
        return tuple("" if value is None else f"{value:.2e}" for value in (losses.train, losses.test, losses.all))

    heads = tuple(f"{kind}, {part}" for kind in ("restricted", "excluded") for part in ("train", "test", "all"))
    rows = [("the model itself", *three(box.losses[0].plain), "", "", "")]
    rows += [(x.variant, *three(x.restricted), *three(x.excluded)) for x in box.losses]
    return Table(
        "Mean cross entropy in nats with the key frequencies alone and without them (restricted.progress_measures), on the pairs trained on, "
        "the others, and all. The model's own stand under restricted.",
        ("variant", *heads),
        rows,
    )


def subsets(m: Measurements, box: Toolbox, claims: Claims) -> Section:
    """All subsets, and Shapley values."""
    parts: list[Table | Picture] = [
        Picture(
            "subsets",
            "Accuracy on all pairs without every subset of the key frequencies (the six strongest, where there are more), removed from W_E, W_U and, as family "
            "sum, the logits, which is the last hidden state's wherever W_U reads it (subsets.removal_lattice). Control: as many "
            "random frequencies that are no key frequencies.",
            lambda: plots.subsets_figure(box.lattices, m.key),
        )
    ]
    if box.lattices:
        parts.append(_shapley_table(box.lattices))
    return Section("All subsets", parts, _reasons(box, *(part for part in box.left_out if part.startswith("subsets"))))


def _shapley_table(lattices: dict[str, Lattice]) -> Table:
    frequencies = next(iter(lattices.values())).frequencies
    columns = ("k", *(f"{site}: {value}" for site in lattices for value in ("accuracy", "loss")))
    values = {(site, value): found.shapley(value) for site, found in lattices.items() for value in ("accuracy", "loss")}

    def text(value: str, x: float) -> str:
        return f"{x:+.1%}" if value == "accuracy" else f"{x:+.2f}"

    rows = [(str(k), *(text(value, found[k]) for (_, value), found in values.items())) for k in frequencies]
    rows.append(("sum", *(text(value, sum(found.values())) for (_, value), found in values.items())))
    controls = []
    for found in lattices.values():
        for value in ("accuracy", "loss"):
            controls.append("" if found.control is None else text(value, sum(found.control.shapley(value).values())))
    rows.append(("sum, control", *controls))
    return Table(
        "Shapley value of each frequency (Lattice.shapley): what removing it does to accuracy and loss (nats), averaged over all orders of removal. "
        "They sum to what removing all of them does.",
        columns,
        rows,
    )


def clock_or_pizza(m: Measurements, box: Toolbox, claims: Claims) -> Section:
    """The measures of Zhong et al."""
    measures = box.clock_or_pizza
    parts: list[Table | Picture] = [
        Picture(
            "clock_or_pizza",
            f"Left: share of the logits' variance on cos w(a+b-c), the clock's form, and on |cos w(a-b)/2| cos w(a+b-c), the pizza's (circuit.logit_fit). Right: the measures of Zhong et al. 2023 "
            f"(clock_pizza.clock_or_pizza; gradients at {TRIPLES:,} triples, seed 0). No threshold.",
            lambda: plots.clock_or_pizza_figure(box.clock, box.pizza, measures, m.key),
        )
    ]
    if measures is not None:
        irrelevance = measures.distance_irrelevance
        rows = [
            ("gradient symmetricity", f"{measures.symmetry.symmetricity:.3f}", "clock 0.33, pizza 0.99"),
            ("with the operands exchanged", f"{measures.symmetry.exchanged:.3f}", "1 where the operands commute"),
            (
                "first operand's gradient over the second's",
                f"{measures.symmetry.ratio:.3f}",
                "1 where the operands commute",
            ),
            ("distance irrelevance", "none" if irrelevance is None else f"{irrelevance:.3f}", "clock 0.85, pizza 0.17"),
            ("circularity", f"{measures.circularity:.4f}", ""),
        ]
        parts.append(
            Table(
                "The measures of clock_pizza.clock_or_pizza; definitions, and care in reading them, in docs/circuit.md.",
                ("measure", "measured", "in the original"),
                rows,
            )
        )
    return Section("Clock or pizza", parts, _reasons(box, "clock or pizza"))


def training(history: History) -> Section:
    """Accuracy and loss over the steps; nothing where there is no history."""
    picture = Picture(
        "training",
        "Accuracy and mean cross entropy (nats) over the optimizer's steps, as train wrote them down.",
        lambda: plots.training_figure(history),
    )
    return Section("Training", [picture] if history else [])


def sections(m: Measurements, box: Toolbox, claims: Sequence[Claim], history: History) -> list[Section]:
    """All of them that have something to show, in the order of the page."""
    by_id = {claim.id: claim for claim in claims}
    make = (finding, attributing, circuit, removing, subsets, clock_or_pizza)
    return [*(section(m, box, by_id) for section in make), *([training(history)] if history else [])]


def pictures(found: Iterable[Section]) -> list[Picture]:
    """Their pictures."""
    return [part for section in found for part in section.parts if isinstance(part, Picture)]


def _rules_in_words(rules: Iterable[str]) -> str:
    return " ".join(f"{rule}: {RULES[rule].text}." for rule in rules)


def _listed(frequencies: list[int]) -> str:
    return ", ".join(map(str, frequencies)) or "none"


def _spread(spread: Spread) -> str:
    if f"{spread.min:.1%}" == f"{spread.max:.1%}":
        return f"{spread.mean:.1%}"
    return f"{spread.mean:.1%} ({spread.min:.1%} to {spread.max:.1%})"


def _reasons(box: Toolbox, *parts: str) -> tuple[str, ...]:
    """A line for each of the parts that this model does not have; one that speaks of no key frequency only says it once."""
    return tuple(dict.fromkeys(f"Left out: {part}: {box.left_out[part]}." for part in parts if part in box.left_out))
