"""Models side by side as one HTML page that needs no other file and no network: a column for each model, a row for each criterion."""

import re
from collections.abc import Mapping
from html import escape
from string import Template

from analyses.c9 import Judged, Row
from analyses.claims import VERDICTS
from analyses.comparison import Comparison
from analyses.html import STYLE, figure_html
from analyses.metrics import Absent

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style
  body { max-width: 80rem; }
  table.models { table-layout: fixed; min-width: $width; }
  table.models th:first-child { width: 19rem; }
  table.models thead th { vertical-align: bottom; overflow-wrap: anywhere; }
  table.models tbody th { font-weight: 400; } table.models tbody th b { display: block; }
  table.models td { font-size: .88rem; overflow-wrap: break-word; }
  table.models small { display: block; color: #555; font-weight: 400; font-size: .8rem; }
  table.models summary { font-size: .8rem; color: #555; cursor: pointer; }
  .badge { display: block; font-weight: 700; margin-top: .2rem; } .none { color: #767676; font-weight: 400; }
  tr.overall td, tr.overall th { background: #f4f4f4; } tr.apart td, tr.apart th { border-top: 2px solid #222; }
</style>
</head>
<body>
<h1>$title</h1>
<p>Claim C9 of Rangamani, <cite>Low Rank and Sparse Fourier Structure in Recurrent Networks Trained on Modular Addition</cite>
(ICASSP 2025, arXiv 2503.22059) is that recurrent networks solve modular addition by the same strategy as the one-layer transformer. Here
every model is measured by the same operators and held against <b>$reference</b>, row by row, by criteria that are constants of the
program. A row holds of a pair if both models do it, and does not if one of them does and the other does not; where neither does, it does not
apply. Which frequencies a model has is a matter of chance between seeds, and counts for nothing.</p>
<div class="wide"><table class="models">
<thead><tr><th></th>$header</tr></thead>
<tbody>$overall$rows</tbody>
</table></div>
<p>What this can and cannot say: that two networks show the same structure by the same measures. It does not say that they carry out the
same steps: a recurrent network adds a in one step and b in the next, a transformer both at once, and an MLP does so
without any sequence.</p>
<h2>Figures</h2>
$figures
$notes
</body>
</html>
""")


def render_comparison(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        comparison: what to show.
        pictures: PNG bytes by name.
    """
    reference = comparison.names[comparison.reference]
    notes = [(model.name, note) for model in comparison.models for note in model.notes]
    listed = "".join(f"<li>{escape(name)}: {escape(note)}</li>" for name, note in notes)
    return PAGE.substitute(
        style=STYLE,
        title=escape(f"One strategy? {len(comparison.models)} models of addition modulo {comparison.metrics[0].p}"),
        width=f"{19 + 11 * len(comparison.models)}rem",
        reference=escape(reference),
        header="".join(_head(comparison, i) for i in range(len(comparison.models))),
        overall=_overall(comparison),
        rows="".join(_row(row, comparison.reference) for row in comparison.rows),
        figures="".join(figure_html(name, picture) for name, picture in pictures.items()),
        notes=f"<h2>Notes</h2><ul>{listed}</ul>" if notes else "",
    )


def _head(comparison: Comparison, i: int) -> str:
    model = comparison.models[i]
    reference = " (reference)" if i == comparison.reference else ""
    name = re.sub(r"([/_-])", r"\1<wbr>", escape(model.name))
    return f"<th>{name}<small>{escape(model.kind)}{reference}</small></th>"


def _overall(comparison: Comparison) -> str:
    cells = []
    for i in range(len(comparison.models)):
        if i == comparison.reference:
            cells.append("<td></td>")
            continue
        verdict, text = comparison.overall(i)
        cells.append(f"<td>{_badge(verdict)}<small>{escape(text)}</small></td>")
    head = "<th><b>C9: the same strategy</b><small>holds if every row does; partly if at least half do and both add</small></th>"
    return f'<tr class="overall">{head}{"".join(cells)}</tr>'


def _row(row: Row, reference: int) -> str:
    cells = []
    for i, measured in enumerate(row.measured):
        verdict = "" if i == reference else _badge(row.verdicts[i])
        note = f"<small>{escape(row.notes[i])}</small>" if i in row.notes else ""
        cells.append(f"<td>{escape(measured)}{verdict}{note}</td>")
    criterion = row.criterion
    how = f"<details><summary>how it is judged</summary><small>{escape(criterion.operator)}</small></details>"
    head = f"<th><b>{escape(criterion.name)}</b><small>{escape(criterion.meaning)}</small>{how}</th>"
    apart = "" if criterion.counts else ' class="apart"'
    return f"<tr{apart}>{head}{''.join(cells)}</tr>"


def _badge(verdict: Judged) -> str:
    if isinstance(verdict, Absent):
        return f'<span class="badge none">does not apply: {escape(verdict.reason)}</span>'
    return f'<span class="badge {verdict}">{VERDICTS[verdict]}</span>'
