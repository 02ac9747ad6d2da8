"""One subset of the lattice of removals beside the plain forward pass: the embedded model, all pairs, no_grad."""

from collections.abc import Iterator

import torch

from analyses.adder import Adder
from analyses.spectra import key_frequencies, weight_spectrum
from analyses.subsets import removal_lattice
from benchmarks.harness import Comparison, seconds_of
from hooked_rnn import HookedRNN, ModularAddition

MODEL = "mod-add-113"
GOALS = {"W_E": 1.1, "W_U": 0.5, "logits": 0.5}
FREQUENCIES = 6
ROUNDS = 9


def comparisons(threads: int) -> Iterator[Comparison]:
    """Seconds of a lattice over its number of subsets: what is computed beforehand is shared out among them."""
    model = HookedRNN.from_pretrained(MODEL).eval()
    adder = Adder(model, ModularAddition(113))
    tokens = adder.tokens
    strongest = key_frequencies(weight_spectrum(adder.W_E @ model.blocks[0].W_ih, adder.p)).by_share[:FREQUENCIES]
    n = 1 << len(strongest)
    for site, goal in GOALS.items():

        def lattice(site: str = site) -> object:
            return removal_lattice(adder, strongest, site, control=False)

        with torch.no_grad():
            pairs = [(seconds_of(lattice) / n, seconds_of(lambda: model(tokens))) for _ in range(ROUNDS + 2)][2:]
        note = f"accuracy and loss of {n} subsets of {len(strongest)} frequencies on {len(tokens):,} pairs"
        yield Comparison.of(f"a subset removed at {site}, over the plain forward", pairs, threads, goal, note)
