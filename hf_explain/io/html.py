"""Pages that need nothing beside them: one HTML file with its style and its pictures inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from string import Template

from PIL import Image


def page(title: str, body: str) -> str:
    """
    A page in the package's style: readable on a phone, light or dark by the reader's setting, without scripts.

    Args:
        title (`str`): Of the browser's window; text.
        body (`str`): HTML.

    Returns:
        `str`: HTML.
    """
    return _PAGE.substitute(title=html.escape(title), body=body)


def picture_source(picture: bytes | Image.Image) -> str:
    """The `src` of an `img` that holds a picture: a PNG file's bytes, or a picture to encode."""
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
        picture = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def number(value: float | None, precision: int = 1) -> str:
    """A number as the page shows it; a dash where there is none."""
    return "–" if value is None else f"{value:.{precision}f}".replace("-", "\N{MINUS SIGN}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already; the first of a row is its name."""
    lines = ["<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr>"]
    for name, *cells in rows:
        lines.append(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #202124; --paper: #ffffff; --line: #d5d7db; --soft: #5f6368; --good: #00704e;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #17181a; --line: #45484d; --soft: #a8adb3; --good: #58c9a0; --bad: #ff8f85; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 48rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; }
figure { margin: 1rem 0; } figcaption, small { color: var(--soft); font-size: .85rem; }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
ul { padding-left: 0; list-style: none; } .good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; border: 1px solid var(--line); border-radius: .4rem; padding: .7rem; }
</style>
</head>
<body>
$body</body>
</html>
""")
