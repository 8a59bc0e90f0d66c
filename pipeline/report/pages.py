"""The templates of the report's pages."""

START = """{% extends "base" %}{% from "parts" import show, keys, bar %}
{% macro tile(card, colours) %}
<div class="card"><b>{{ card.title }}</b><br>
{% for caption, source in card.pictures %}
<img alt="{{ caption }}" title="{{ caption }}" src="{{ source }}">
{% endfor %}
{% for what, shares in card.shares.items() %}
{% if card.shares | length > 1 %}<div>{{ what }}:</div>{% endif %}{{ bar(shares, colours) }}
{% for name, share in (shares.items() | list)[:3] %}
{{ name }} {{ "%.0f" | format(100 * share) }} %{{ ", " if not loop.last }}
{% endfor %}{% endfor %}
<div class="note">{{ card.facts | join("; ") }}</div></div>
{% endmacro %}
{% block body %}
"""
END = """
{% endblock %}
"""
INDEX = """
<p>Scenes of <code>{{ dataset }}</code>: circles and outlines. Their tiles: squares.
{% if shown %}{{ "{:,}".format(shown) }} tiles are on the map, drawn evenly from all.{% endif %}
Move with the mouse, zoom with its wheel; a click on a circle opens the scene.</p>
<p><label>Colour by <select id="mode">{% for mode, name in modes.items() %}
<option value="{{ mode }}"{{ " selected" if mode == "status" }}>{{ name }}</option>{% endfor %}</select></label>
<label>Go to <select id="place"><option value="">all scenes</option>{% for name in boxes %}
<option>{{ name }}</option>{% endfor %}</select></label></p>
{% for mode, colours in keys_of.items() %}<div class="keys" id="keys-{{ mode }}"{{ " hidden" if mode != "status" }}>
{{ keys(colours) }}</div>{% endfor %}
{{ map }}
<p class="note">Land: Natural Earth, 1 : 110 million, too coarse to check a place by.</p>
<script type="application/json" id="boxes">{{ boxes | tojson }}</script>
<script>
const boxes = JSON.parse(document.getElementById("boxes").textContent)
const find = name => Bokeh.documents[0].get_model_by_name(name)
let start = null
document.getElementById("mode").onchange = event => {
  for (const name of ["tiles", "scenes"]) find(name).glyph.fill_color = {field: event.target.value}
  for (const key of document.querySelectorAll(".keys")) key.hidden = key.id != "keys-" + event.target.value
}
document.getElementById("place").onchange = event => {
  const {x_range, y_range, inner_width, inner_height} = find("map")
  start ??= [x_range.start, y_range.start, x_range.end, y_range.end]
  const [west, south, east, north] = boxes[event.target.value] ?? start
  const across = Math.max(east - west, (north - south) * inner_width / inner_height) * 0.55
  const up = across * inner_height / inner_width
  x_range.setv({start: (west + east) / 2 - across, end: (west + east) / 2 + across})
  y_range.setv({start: (south + north) / 2 - up, end: (south + north) / 2 + up})
}
</script>
<h2>In total</h2>
<table>{% for name, text in lines %}<tr><td>{{ name }}</td><td>{{ text }}</td></tr>{% endfor %}</table>
"""
SCENES = """
{% if refused %}<h2>Refused</h2>
<table><tr><th>scene</th><th>stage</th><th>why</th></tr>{% for entry in refused %}
<tr><td>{{ entry.scene }}</td><td>{{ entry.stage }}</td><td>{{ entry.reason }}: {{ entry.detail }}</td></tr>
{% endfor %}</table>{% if more_refused %}<p class="note">{{ "{:,}".format(more_refused) }} more are in
quarantine.jsonl.</p>{% endif %}{% endif %}
<h2>{{ "All scenes" if rows | length == scenes else "Scenes" }}</h2>
{% if rows | length < scenes %}<p class="note">{{ "{:,}".format(rows | length) }} of {{ "{:,}".format(scenes) }}, drawn
evenly; scenes.parquet has all.</p>{% endif %}
<div class="scroll"><table class="number"><tr><th>scene</th><th>acquired</th><th>GSD, m</th>
{% for status in statuses %}<th>{{ status | replace("_", " ") }}</th>{% endfor %}
<th>accepted, %</th><th>in the index</th></tr>
{% for number, name, attributes, counts, accepted, listed in rows %}
<tr{{ ' id="scene-%d"' | format(number) | safe if number not in with_card }}>
<td>{% if number in with_card %}<a href="#scene-{{ number }}">{{ name }}</a>{% else %}{{ name }}{% endif %}</td>
<td style="white-space: nowrap">{{ (attributes.acquired or "")[:10] }}</td><td>{{ "%g" | format(attributes.gsd) }}</td>
{% for status in statuses %}<td>{{ counts[status] or 0 }}</td>{% endfor %}
<td>{{ "%.0f" | format(100 * accepted) }}</td><td>{{ listed }}</td></tr>
{% endfor %}</table></div>
{% if cards | length < scenes %}<p class="note">Below are {{ cards | length }} of {{ "{:,}".format(scenes) }} scenes:
those of which the smallest share was accepted, and others drawn evenly.</p>{% endif %}
{% for card in cards %}
<section id="scene-{{ card.number }}"><h2>{{ card.name }}</h2>
<div class="cards"><figure><img alt="accepted tiles of {{ card.name }}" src="{{ card.picture }}">
<figcaption>{{ card.every }}, {{ card.caption }}; a rejected tile has the colour of its reason.
{{ keys(colours) }}</figcaption></figure>
<div><table>{% for name, text in card.facts.items() %}<tr><td>{{ name }}</td><td>{{ text }}</td></tr>{% endfor %}
{% for status, count in card.counts.items() %}
<tr><td>{{ status | replace("_", " ") }}</td><td>{{ count }} tiles</td></tr>{% endfor %}
<tr><td>in the index</td><td>{{ card.listed }} tiles</td></tr>
{% for text in card.refused %}<tr><td>refused</td><td>{{ text }}</td></tr>{% endfor %}</table></div></div></section>
{% endfor %}
"""
TILES = """
<p><a href="#accepted">Accepted</a>{% for status, count in counts.items() %} ·
<a href="#{{ status }}">{{ status | replace("_", " ") }} ({{ "{:,}".format(count) }})</a>{% endfor %}</p>
<h2 id="accepted">Accepted</h2>
<p>Each tile as it is stored, beside the map under it ({{ label_set }}), and the map's shares, which are its label. Do
they fit what you see? If a class is wrong everywhere, look at the legend; if the shapes are right and lie beside their
place, at the geolocation; if single places are wrong, the map may be older than the image.</p>
{% if false_colours %}<p class="note">Shown in false colours: {{ false_colours | join("; ") }}. With near infrared as
red, plants are red.</p>{% endif %}
{% if coarse %}<p class="note">Where cells of the map are wider than half a tile, its picture has the colour of the
largest class alone; the bar has all shares.</p>{% endif %}
{{ keys(colours) }}
<div class="cards">{% for card in accepted %}{{ tile(card, colours) }}{% endfor %}</div>
{% for status, cards in rejected.items() %}
<h2 id="{{ status }}">{{ status | replace("_", " ") }}: {{ "{:,}".format(counts[status]) }} tiles</h2>
<div class="cards">{% for card in cards %}{{ tile(card, {}) }}{% endfor %}</div>
{% endfor %}
{% if counts %}<p class="note">Rejected tiles are not stored: those above were made again from their scenes.
They are shown without a change of contrast, as the rules judge them, by the mean of all bands; grey where there are no
data. The thresholds are the settings build.tiles.rules.</p>{% endif %}
{% for name, fault in faults.items() %}
<p>The rejected tiles of {{ name }} cannot be shown, since its image cannot be read now: {{ fault }}</p>{% endfor %}
"""
LABELS = """
<p>All {{ "{:,}".format(rows) }} tiles in the index, with labels of {{ label_set -}}
{% if label_sets | length > 1 %}; agreement is that with {{ label_sets | reject("equalto", label_set) | join(", ") }}
{%- endif %}.</p>
{% for picture in pictures %}{{ show(picture) }}{% endfor %}
"""
RUN = """
<table>{% for name, text in lines %}<tr><td>{{ name }}</td><td>{{ text }}</td></tr>{% endfor %}</table>
{% for picture in pictures %}{{ show(picture) }}{% endfor %}
<h2 id="disagree">Where the network and the map disagree most</h2>
<p>Of {{ "{:,}".format(predicted) }} tiles drawn evenly from the index, those whose predicted shares are farthest from
the map's: what has changed since the map was made, cloud, or a wrong place. The network may also be wrong: nothing here
is validated. It learnt from the tiles of the split train, so it tends to agree with the map there.</p>
{{ keys(colours) }}
<div class="cards">{% for card in worst %}{{ tile(card, colours) }}{% endfor %}</div>
<h2 id="neighbours">What looks alike to the encoder</h2>
<p>A tile, and those with the most similar features (cosine, after their mean is subtracted) elsewhere: of the same
{{ "{:,}".format(predicted) }} tiles, without those that overlap it.</p>
{% for query, cards in neighbours %}
<div class="scroll"><div class="cards" style="flex-wrap: nowrap">{{ tile(query, colours) }}
<b style="font-size: 2em; align-self: center">→</b>
{% for card in cards %}<div style="flex: none">{{ tile(card, colours) }}</div>{% endfor %}</div></div><hr>
{% endfor %}
"""
PAGES = {
    "index.html": START + INDEX + END,
    "scenes.html": START + SCENES + END,
    "tiles.html": START + TILES + END,
    "labels.html": START + LABELS + END,
    "run.html": START + RUN + END,
}
"""File -> template, see `render_page`."""
