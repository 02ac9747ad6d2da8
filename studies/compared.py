"""C9 over seeds: runs that differ in the model alone, the embedded models, and the grokking paper's transformer, side by side.

    hooked-rnn train --model rnn ... --seed 0 --out runs/rnn-0                        (and so on; the command is TRAINED)
    python -m studies.compared --measure seed-0 runs/rnn-0 runs/mlp-0 runs/transformer-0      # studies/compared/seed-0.json
    python -m studies.compared --write-page                                                   # docs/compared.md

What the rows mean and where their criteria come from: docs/comparing.md.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from analyses.comparison_report import make_comparison

FOLDER = Path(__file__).with_name("compared")
PAGE = Path(__file__).parent.parent / "docs" / "compared.md"
TRAINED = "hooked-rnn train --model MODEL --recipe fast --orthogonal-steps 400 --steps 800 --threads 1 --seed SEED"
"""What made the runs of the comparisons by seed."""
BY_SEED = "seed-"
"""How their names begin."""
TITLES = {
    "embedded": "The embedded models",
    "paper": "The embedded networks and the transformer of Nanda et al. 2023, in its own format",
}
SWAP_SPLITS = 1
FREQUENCIES = "which frequencies"
VERDICTS = ("holds", "partly", "no", None)


def measure(name: str, models: Sequence[str]) -> None:
    """Compare models, and keep under a name what the page shows of it."""
    torch.set_num_threads(1)
    found = make_comparison(models, swap_splits=SWAP_SPLITS).to_dict()
    kept = {
        "command": f"hooked-rnn compare {' '.join(Path(model).name for model in models)} --swap {SWAP_SPLITS}",
        "versions": found["versions"],
        "reference": found["reference"],
        "models": {model: about["kind"] for model, about in found["models"].items()},
        "rows": [{key: row[key] for key in ("name", "counts", "measured", "verdicts")} for row in found["rows"]],
        "C9": found["C9"],
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def comparisons() -> dict[str, dict[str, Any]]:
    """By name, what is kept."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def page() -> str:
    """docs/compared.md."""
    kept = comparisons()
    by_seed = {name: found for name, found in kept.items() if name.startswith(BY_SEED)}
    lines = [*_HEAD, *_over_seeds(list(by_seed.values())), "", *_what_they_say(list(by_seed.values()))]
    for name, title in TITLES.items():
        lines += ["", f"## {title}", "", *_table(kept[name])]
    for name, found in by_seed.items():
        lines += ["", f"## {name.replace('-', ' ').capitalize()} of each model", "", *_table(found)]
    return "\n".join(lines)


_HEAD = [
    "# C9 over seeds and architectures",
    "",
    "What [`hooked-rnn compare`](comparing.md), which explains the rows and their criteria, says of this project's models. This page is written by",
    "`python -m studies.compared --write-page` from `studies/compared/`, whose files `python -m studies.compared --measure NAME MODEL ...` measured.",
    "",
    "## Runs that differ in the model alone",
    "",
]


def _over_seeds(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The verdicts of each kind of model beside the transformer of its seed, counted."""
    kinds = [[name for name in one["models"] if name != one["reference"]] for one in found]
    names = [name.rsplit("-", 1)[0] for name in kinds[0]]
    yield f"`{TRAINED}` with MODEL rnn, mlp and transformer: the same pairs, steps, learning rates and seeds, {len(found)} of them. The verdicts of"
    yield "each network beside the transformer of its own seed, by how many seeds have which; a dash is a row that does not apply."
    yield ""
    yield f"| row | {' | '.join(names)} |"
    yield "| --- |" + " --- |" * len(names)
    for i, row in enumerate(found[0]["rows"]):
        cells = [
            _counted([one["rows"][i]["verdicts"][of[column]]["holds"] for one, of in zip(found, kinds, strict=True)])
            for column in range(len(names))
        ]
        yield f"| {row['name']}{'' if row['counts'] else ' (counts for nothing)'} | {' | '.join(cells)} |"
    cells = [
        _counted([one["C9"][of[column]]["holds"] for one, of in zip(found, kinds, strict=True)])
        for column in range(len(names))
    ]
    yield f"| **C9** | {' | '.join(cells)} |"


def _what_they_say(found: Sequence[dict[str, Any]]) -> list[str]:
    """Of all pairs of a network and the transformer of its seed."""
    verdicts = {
        row["name"]: [one["rows"][i]["verdicts"][name] for one in found for name in one["C9"]]
        for i, row in enumerate(found[0]["rows"])
    }
    overall = [one["C9"][name]["holds"] for one in found for name in one["C9"]]

    def rows(having: Callable[[set[str | None]], bool]) -> str:
        named = [name for name, said in verdicts.items() if having({one["holds"] for one in said})]
        return ", ".join(f"*{name}*" for name in named if name != FREQUENCIES) or "none"

    swaps = [one for one in verdicts["swap test"] if one["holds"]]
    common = [f"{name}: {one['rows'][-1]['verdicts'][name]['note']}" for one in found for name in one["C9"]]
    return [
        f"- C9 is judged of {len(overall)} pairs: {_counted(overall)}. In every pair these rows hold: {rows(lambda said: said == {'holds'})}. In none: "
        f"{rows(lambda said: 'holds' not in said)}.",
        f"- Of {len(verdicts['swap test'])} pairs {len(swaps)} have a key frequency in common and controls that fail, as they should; the swap test holds in "
        f"{sum(one['holds'] == 'holds' for one in swaps)} of these.",
        f"- Runs on the same pairs have more key frequencies in common than chance says, in some seeds: {'; '.join(common)}. So "
        "which frequencies a model has is not all chance: the pairs have a part in it, or the weights drawn by the same seed; three seeds cannot tell.",
        "- All of this is of 800 steps. The embedded networks, trained for longer, have less in their weights that nothing uses (*low rank*, *singular vectors*).",
    ]


def _counted(verdicts: Sequence[str | None]) -> str:
    counts = Counter(verdicts)
    return ", ".join(f"{counts[verdict]} {verdict or '-'}" for verdict in VERDICTS if counts[verdict])


def _table(found: dict[str, Any]) -> Iterator[str]:
    """One comparison: what was measured of each model, and the verdict beside the reference."""
    names, reference = list(found["models"]), found["reference"]
    made_with = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield f"`{found['command']}` (seed 0 of every draw; {made_with}). Held against {reference}."
    yield ""
    yield f"| row | {' | '.join(names)} |"
    yield "| --- |" + " --- |" * len(names)
    yield f"| | {' | '.join(found['models'].values())} |"
    for row in found["rows"]:
        cells = [row["measured"][name] + _said(row["verdicts"].get(name)) for name in names]
        yield f"| {row['name']} | {' | '.join(cells)} |"
    yield f"| **C9** | {' | '.join(_said(found['C9'].get(name)).removeprefix(': ') for name in names)} |"


def _said(verdict: dict[str, Any] | None) -> str:
    """A verdict in a cell, with its note."""
    if verdict is None:
        return ""
    text = f"**{verdict['holds']}**" if verdict["holds"] else f"- ({verdict['why_null']})"
    return f": {text}" + (f", {verdict['note']}" if verdict["note"] else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="+", metavar="NAME MODEL", default=[])
    parser.add_argument("--write-page", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], arguments.measure[1:])
    if arguments.write_page:
        PAGE.write_text(page() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
