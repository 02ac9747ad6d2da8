"""The paper's claims, and when each may be said to hold of a model.

The claims are those of Rangamani, "Low Rank and Sparse Fourier Structure in Recurrent Networks Trained on
Modular Addition" (ICASSP 2025, arXiv 2503.22059), as its abstract and summaries of it give them. The
constants below are the criteria. They were fixed before the embedded weights were trained, and a model
that misses one is reported as missing it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from analyses.ablation import Ablation
from analyses.attribution import Fit, SingularAttribution
from analyses.measure import Measurements
from analyses.spectra import KeyFrequencies, Spectrum

NONE = "no key frequency"
"""What was measured where there is nothing to measure."""

Verdict = Literal["holds", "partly", "no"]
VERDICTS: dict[Verdict, str] = {"holds": "holds", "partly": "holds partly", "no": "does not hold"}
"""The verdicts in words."""

C1_ACCURACY = {"holds": 0.99, "partly": 0.90}
"""C1: accuracy on the pairs that were not trained on (on all pairs, where the split is not known)."""

C2_ENERGY = 0.854
"""C2: energy in the first 2K singular components (K key frequencies, two for each): the published lower bound."""

C3_FREQUENCIES = (3, 9)
"""C3: how many key frequencies still are "six dominant" ones."""
C3_SHARED = {"holds": 1.0, "partly": 0.5}
"""C3: least share of the key frequencies that are among the K strongest of the hidden state, and of the output."""

C4_PURITY = {"holds": 0.90, "partly": 0.60}
"""C4: mean purity (energy-weighted) of the first 2K singular vectors."""

C5_EXPLAINED = {"holds": 0.85, "partly": 0.50}
"""C5: share of W_E's variance that the key frequencies' cosines and sines explain."""
C5_SPARSE = 0.25
"""C5: most of all p//2 frequencies that "a sparse set" may be."""

C6_RELATIVE = 1e-2
"""C6: relative error of every key frequency's fit, the upper end of the published range (partly: its square, for half)."""

C7_ONE_REMOVED = 0.85
"""C7: least mean accuracy with one key frequency removed, for "hardly matters"."""
C7_ALL_REMOVED = 0.06
"""C7: most accuracy with all key frequencies removed, for "drastically"."""
C7_CONTROL = 0.85
"""C7: least mean accuracy with as many random other frequencies removed as the curve has at its end."""
C7_PARTLY_DROP = 0.50
"""C7: least drop from one removed to all removed, for "partly"."""


@dataclass(frozen=True)
class Claim:
    """One claim, what was published, what was measured, and whether it holds."""

    id: str
    claim: str
    published: str
    measured: str
    definition: str
    holds: Verdict
    by_part: dict[str, Verdict]
    """The verdict matrix by matrix (or site by site), where the claim is about several."""


def judge_generalisation(accuracy: float, split: str) -> Claim:
    """C1, from the accuracy on held-out pairs; ``split`` says which pairs those are."""
    return Claim(
        "C1",
        "A single-layer vanilla RNN learns addition modulo p and generalises",
        "generalises (p = 113)",
        f"{accuracy:.2%} accuracy on {split}",
        f"accuracy on pairs not trained on; holds from {C1_ACCURACY['holds']:.0%}, partly from {C1_ACCURACY['partly']:.0%}",
        _by_thresholds(accuracy, C1_ACCURACY),
        {},
    )


def judge_low_rank(energy: Mapping[str, float], untrained: Mapping[str, float], components: int) -> Claim:
    """C2, from the energy held by the first 2K singular components of each matrix."""
    by_part: dict[str, Verdict] = {
        name: "holds" if components and held >= C2_ENERGY else "no" for name, held in energy.items()
    }
    return Claim(
        "C2",
        "Low rank: the significant singular components hold most of the weights' energy",
        "85.4% to 95.5% (which matrices is not said)",
        ", ".join(f"{name} {held:.1%} (untrained {untrained[name]:.0%})" for name, held in energy.items())
        if components
        else NONE,
        f"energy of the first 2K = {components} singular components (K key frequencies); holds from {C2_ENERGY:.1%}",
        _overall(by_part.values()),
        by_part,
    )


def judge_sparsity(key: KeyFrequencies, hidden: Spectrum, output: Spectrum) -> Claim:
    """C3, from the key frequencies of the input and the spectra of hidden state and output."""
    n, (least, most) = len(key.frequencies), C3_FREQUENCIES
    shared = {
        site: len(spectrum.strongest(n) & set(key.frequencies)) / n if n else 0.0
        for site, spectrum in (("hidden", hidden), ("W_U", output))
    }
    few: Verdict = "holds" if least <= n <= most else "no"
    by_part: dict[str, Verdict] = {"number": few} | {site: _by_thresholds(s, C3_SHARED) for site, s in shared.items()}
    return Claim(
        "C3",
        "Sparse in the Fourier basis: six dominant frequencies, shared by inputs, hidden states and outputs",
        "6 frequencies",
        f"{n} key frequencies {key.frequencies} with {key.spectrum.share_of(key.frequencies):.1%} of the input's power "
        f"({hidden.share_of(key.frequencies):.1%} of the hidden state's, {output.share_of(key.frequencies):.1%} of W_U's); "
        + ", ".join(f"{share:.0%} of them among the {n} strongest of {site}" for site, share in shared.items())
        if n
        else NONE,
        f"key: share of the power of {key.of or 'the input'} above {key.threshold:.2%}, twice the uniform share; holds with {least} to {most} "
        f"of them, all among the K strongest elsewhere (partly: half of them)",
        _overall(by_part.values()),
        by_part,
    )


def judge_attribution(attributions: Mapping[str, SingularAttribution]) -> Claim:
    """C4, from the purity of singular vectors on the token or answer axis."""
    by_part = {name: _by_thresholds(a.mean_purity, C4_PURITY) for name, a in attributions.items()}
    return Claim(
        "C4",
        "Singular vectors and model components can be attributed to single frequencies",
        "yes (no figure)",
        ", ".join(f"{name} {a.mean_purity:.1%}" for name, a in attributions.items() if len(a.energy)) or NONE,
        "share of each of the first 2K singular vectors' power at its strongest frequency, mean weighted by energy; "
        f"holds from {C4_PURITY['holds']:.0%}, partly from {C4_PURITY['partly']:.0%}",
        _overall(by_part.values()),
        by_part,
    )


def judge_embedding(explained: float, n_key: int, n_frequencies: int) -> Claim:
    """C5, from the share of W_E that the key frequencies' circles explain."""
    sparse = 0 < n_key <= C5_SPARSE * n_frequencies
    return Claim(
        "C5",
        "Each token is embedded as cos(w_k a), sin(w_k a) for a sparse set of frequencies",
        "yes (no figure)",
        f"{explained:.1%} of W_E's variance, with {n_key} of {n_frequencies} frequencies",
        f"R^2 of W_E's columns on the key frequencies' cosines and sines; holds from {C5_EXPLAINED['holds']:.0%}, partly from "
        f"{C5_EXPLAINED['partly']:.0%}, with at most {C5_SPARSE:.0%} of all frequencies",
        _by_thresholds(explained, C5_EXPLAINED) if sparse else "no",
        {},
    )


def judge_fit(fits: Mapping[int, Fit]) -> Claim:
    """C6, from the fit of each key frequency's projections of the last hidden state."""
    by_part: dict[str, Verdict] = {
        str(k): "holds" if fit.relative <= C6_RELATIVE else "partly" if fit.squared <= C6_RELATIVE else "no"
        for k, fit in fits.items()
    }
    verdicts = list(by_part.values())
    verdict = _overall(verdicts)
    if "holds" not in verdicts and 2 * verdicts.count("partly") < len(verdicts):
        verdict = "no"
    return Claim(
        "C6",
        "Fourier multiplication: projections of the last hidden state fit cos and sin of w_k(a+b)",
        "relative errors 1e-3 to 1e-2",
        ", ".join(f"k={k}: {fit.relative:.3f} (squared {fit.squared:.4f})" for k, fit in fits.items()) or NONE,
        "norm of the residual over the norm of the last hidden state's projections onto W_U cos and W_U sin, not centred; "
        f"holds if it is at most {C6_RELATIVE} for every key frequency, partly if for some, or its square for half of them",
        verdict,
        by_part,
    )


def judge_removal(ablations: Mapping[str, Ablation], pairs: str = "all pairs") -> Claim:
    """C7, from the accuracy with key frequencies removed, and with random others; ``pairs`` says on which pairs."""
    by_part = {site: _judge_curve(ablation) for site, ablation in ablations.items()}
    return Claim(
        "C7",
        "Removing one frequency hardly matters; removing more degrades accuracy drastically",
        "yes (no figure)",
        "; ".join(f"{site}: {_curve(ablation)}" for site, ablation in ablations.items()) or "no site to remove from",
        f"mean accuracy on {pairs}; holds with at least {C7_ONE_REMOVED:.0%} without one key frequency, at most "
        f"{C7_ALL_REMOVED:.0%} without all, and at least {C7_CONTROL:.0%} without as many random other ones; partly: a drop of "
        f"{C7_PARTLY_DROP:.0%} from one to all",
        _overall(by_part.values()),
        by_part,
    )


def _judge_curve(ablation: Ablation) -> Verdict:
    if not ablation.key:
        return "no"
    last = max(ablation.key)
    one, every = ablation.key[1].mean, ablation.key[last].mean
    control = ablation.random[max(ablation.random)].mean if ablation.random else 0.0
    if one >= C7_ONE_REMOVED and every <= C7_ALL_REMOVED and control >= C7_CONTROL:
        return "holds"
    return "partly" if one - every >= C7_PARTLY_DROP else "no"


def _curve(ablation: Ablation) -> str:
    means = ", ".join(f"{n}: {spread.mean:.1%}" for n, spread in ablation.key.items())
    if not means:
        return NONE
    last, others, power = max(ablation.key), ablation.random, ablation.equal_power
    controls = [f"{max(others)} others: {others[max(others)].mean:.1%}"] if others else []
    controls += [f"the power of {n} in random directions: {power[n].mean:.1%}" for n in sorted({1, last} & set(power))]
    return f"{means} ({', '.join(controls)})" if controls else means


def _by_thresholds(value: float, thresholds: Mapping[str, float]) -> Verdict:
    if value >= thresholds["holds"]:
        return "holds"
    return "partly" if value >= thresholds["partly"] else "no"


def _overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Holds if every part does; no if none does, even partly."""
    found = set(verdicts)
    if found == {"holds"}:
        return "holds"
    return "partly" if found & {"holds", "partly"} else "no"


def judge(m: Measurements) -> list[Claim]:
    """All claims, C1 to C7, from what was measured on one model."""
    held_out = m.held_out_accuracy
    return [
        judge_generalisation(
            m.accuracy if held_out is None else held_out, "all pairs" if held_out is None else "held-out pairs"
        ),
        judge_low_rank(m.energy, m.untrained_energy, m.components),
        judge_sparsity(m.key, m.hidden_spectrum, m.output_spectrum),
        judge_attribution(m.attributions),
        judge_embedding(m.explained, len(m.key.frequencies), len(m.key.spectrum.shares)),
        judge_fit(m.fits),
        judge_removal(
            m.ablations,
            "all pairs" if m.drawn is None else f"all pairs (without frequencies of W_E: on {m.drawn:,} drawn ones)",
        ),
    ]
