"""The report as one HTML page that needs no other file and no network."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from analyses.claims import VERDICTS, Claim
from analyses.sections import Picture, Section, Table

STYLE = """\
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
  h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
  table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; vertical-align: top; padding: .5rem .6rem; border-bottom: 1px solid #ddd; }
  thead th { border-bottom: 2px solid #222; }
  table.claims td { font-size: .88rem; } table.facts th { width: 10rem; font-weight: 600; }
  td.verdict { font-weight: 700; white-space: nowrap; }
  td.verdict small { font-weight: 400; display: block; }
  .holds { color: #00755a; } .partly { color: #a86500; } .no { color: #b13a00; }
  .wide { overflow-x: auto; }
  figure { margin: 1.8rem 0; } img { max-width: 100%; height: auto; }
  @media (max-width: 700px) { figure { overflow-x: auto; } figure img { max-width: none; width: 46rem; } }
  figcaption, caption { font-size: .88rem; color: #555; text-align: left; }
  caption { padding-bottom: .4rem; } table.results { margin: 1.8rem 0; width: auto; }
  table.results td, table.results th { font-size: .88rem; padding: .25rem .8rem .25rem 0; font-variant-numeric: tabular-nums; }
  nav { margin: 1.5rem 0; } nav a { margin-right: 1.2rem; display: inline-block; } p.left-out { color: #555; }
"""
"""What all pages look like."""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<h1>$title</h1>
<p>The claims of Rangamani, <cite>Low Rank and Sparse Fourier Structure in Recurrent Networks Trained on Modular
Addition</cite> (ICASSP 2025, arXiv 2503.22059), measured on one network by hooked_rnn, and what its Fourier toolbox finds. The criteria are constants
of the program, fixed before its embedded weights were trained. Throughout w = 2&pi;k/p.</p>
<table class="facts"><tbody>$facts</tbody></table>
<nav>$contents</nav>
<h2 id="claims">Claims</h2>
<div class="wide"><table class="claims">
<thead><tr><th></th><th>claim</th><th>published</th><th>measured</th><th>definition used</th><th>verdict</th></tr></thead>
<tbody>$claims</tbody>
</table></div>
$sections
<h2 id="activations">Hidden activations</h2>
<p>The most active units of the hidden state, token by token, for some pairs: the darker the blue, the larger the
activation (white is none, red is negative). Choose a unit, and the pairs to show.</p>
$view
</body>
</html>
""")


def render_page(
    model: str,
    facts: Mapping[str, str],
    claims: Sequence[Claim],
    sections: Sequence[Section],
    drawn: Mapping[str, bytes],
    view: str,
) -> str:
    """The page.

    Args:
        model: the model's name, for the title.
        facts: rows of the first table.
        claims: rows of the second.
        sections: tables and pictures.
        drawn: PNG bytes by the picture's name.
        view: HTML of the interactive view, scripts inline.
    """
    titles = {"claims": "Claims", **{_id(s.title): s.title for s in sections}, "activations": "Hidden activations"}
    return PAGE.substitute(
        style=STYLE,
        title=escape(f"Fourier structure of {model}"),
        facts="".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items()),
        contents="".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in titles.items()),
        claims="".join(_claim_row(claim) for claim in claims),
        sections="".join(_section(section, drawn) for section in sections),
        view=view,
    )


def _section(section: Section, drawn: Mapping[str, bytes]) -> str:
    parts = "".join(
        figure_html(part.name, drawn[part.name], part.caption) if isinstance(part, Picture) else _table(part)
        for part in section.parts
    )
    left_out = "".join(f'<p class="left-out">{escape(line)}</p>' for line in section.left_out)
    return f'<h2 id="{_id(section.title)}">{escape(section.title)}</h2>\n{parts}{left_out}'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>"
    return f'<div class="wide"><table class="results">{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _id(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower())


def _claim_row(claim: Claim) -> str:
    parts = "".join(f'<small class="{v}">{escape(part)}: {VERDICTS[v]}</small>' for part, v in claim.by_part.items())
    texts = (claim.id, claim.claim, claim.published, claim.measured, claim.definition)
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    return f'<tr>{cells}<td class="verdict {claim.holds}">{VERDICTS[claim.holds]}{parts}</td></tr>'


def figure_html(name: str, picture: bytes, caption: str = "") -> str:
    """A picture, inline, and its caption where it has one."""
    encoded = base64.b64encode(picture).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{encoded}">{below}</figure>'
