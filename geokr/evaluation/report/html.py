"""Pages of HTML that open without a network: what all of them share."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import DictLoader, Environment

Links = Sequence[tuple[str, str]]
"""File and title of the pages that belong together, in order."""
BASE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'
{%- if scripts %}; script-src 'unsafe-inline'{% endif %}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: {{ width }}em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { padding: .3em .8em; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
img { max-width: 100% }
figure { margin: 1em 0 }
figcaption, .note { color: #555; font-size: .9em }
nav a { margin-right: 1.2em } nav b { margin-right: 1.2em }
.cards { display: flex; flex-wrap: wrap; gap: 1.2em }
.card { width: 15.6em; font-size: .8em; line-height: 1.35; overflow-wrap: anywhere }
.card img { height: 7.4em; width: 7.4em; image-rendering: pixelated; object-fit: contain; background: #f4f4f4 }
.bar { display: flex; height: .9em; margin: .3em 0; border: 1px solid #999 }
.key { display: inline-block; width: .9em; height: .9em; border: 1px solid #999; margin: 0 .3em -.1em .7em }
.scroll { overflow-x: auto } .number td + td { text-align: right }
</style>
{{ head }}
</head>
<body>
{% if links %}<nav>{% for file, name in links %}
{% if name == title %}<b>{{ name }}</b>{% else %}<a href="{{ file }}">{{ name }}</a>{% endif %}{% endfor %}</nav>
{% endif %}
<h1>{{ title }}</h1>
{% block body %}{% endblock %}
</body>
</html>
"""
PARTS = """{% macro show(picture) %}
<figure><img alt="{{ picture.caption }}" src="{{ picture.source }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endmacro %}
{% macro keys(colours) %}
<p class="note">{% for name, colour in colours.items() %}
<span><i class="key" style="background: {{ colour }}"></i>{{ name }}</span>{% endfor %}</p>
{% endmacro %}
{% macro bar(shares, colours) %}
<div class="bar">{% for name, share in shares.items() %}
<i style="width: {{ "%.1f" | format(100 * share) }}%; background: {{ colours[name] }}"
title="{{ name }} {{ "%.1f" | format(100 * share) }} %"></i>{% endfor %}</div>
{% endmacro %}
"""


@dataclass(frozen=True, slots=True)
class Picture:
    caption: str
    source: str
    """The picture itself, as a data: address."""


def embed(content: bytes, kind: str) -> str:
    """A picture as a data: address. kind: png or jpeg."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def embed_png(caption: str, png: bytes) -> Picture:
    return Picture(caption, embed(png, "png"))


def render_page(template: str, title: str, links: Links = (), *, width: int = 60, head: Any = "", **values: Any) -> str:
    """Render a page, which asks for nothing outside its file and its folder.

    template: Jinja2, which extends `base`, fills its block `body`, and may import from `parts`. All values are escaped.
    head: markupsafe.Markup with scripts; without it, the page refuses to run any. width: of the text, em.
    """
    loader = DictLoader({"base": BASE, "parts": PARTS})
    environment = Environment(autoescape=True, trim_blocks=True, loader=loader)
    page = environment.from_string(template)
    return page.render(title=title, links=links, width=width, head=head, scripts=bool(head), **values)
