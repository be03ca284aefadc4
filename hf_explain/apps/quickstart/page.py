"""The quickstart's page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from string import Template
from typing import Any

from hf_explain.apps.quickstart.measure import MEASURES, ranked, sentence
from hf_explain.io.colors import KINDS
from hf_explain.io.html import number, page, picture_source, table


_CLASSES = {"ahead": "good", "level": "", "behind": "bad"}
_MARKS = {"ahead": "✓", "level": "≈", "behind": "✗"}


def render_page(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """
    The page that shows the numbers of `results.json` beside the pictures.

    Args:
        results (`Mapping[str, Any]`): What `results.json` holds.
        pictures (`Mapping[str, bytes]`): PNG files by name; they are put into the page.

    Returns:
        `str`: HTML.
    """
    bias, protocol = results["bias"], results["protocol"]
    fields = {
        "label": html.escape(bias["biased_label"]),
        "classifier_parameters": f"{results['classifier']['num_parameters']:,}",
        "parameters": f"{results['head']['num_parameters']:,}",
        "seen": ", ".join(protocol["removal_seen"]),
        "rate": f"{100 * bias['training_rate']:g}",
        "accuracy": number(results["classifier"]["accuracy_without_tag"]),
        "area": number(results["classifier"]["object_area"]),
        "images": html.escape(protocol["images"]),
        "tested": str(protocol["auc_d"]["num_examples"]),
        "table": _main_table(results["explainers"]),
        "fills": _fills_table(results["explainers"]),
        "verdicts": "".join(
            f'<li class="{_CLASSES[one["verdict"]]}">{_MARKS[one["verdict"]]} {html.escape(sentence(one))}</li>'
            for one in results["verdicts"]
        ),
        "accuracies": table(
            ["pictures", "right answers (%)"], [[name, number(value)] for name, value in bias["accuracy"].items()]
        ),
        "fooled": str(bias["num_fooled"]),
        "fooled_maps": table(
            ["most important pixels on (%)", "the tag", "the object"],
            [
                [
                    _named(name, results["explainers"][name]["kind"]),
                    number(row["tag_overlap"]),
                    number(row["object_overlap"]),
                ]
                for name, row in bias["fooled_maps"].items()
            ],
        )
        if bias["fooled_maps"]
        else "",
        "own": html.escape(results["next"]["own"]),
        "study": html.escape(results["next"]["study"]),
        "seconds": number(sum(results["seconds"].values()), 0),
        "stages": html.escape(", ".join(f"{stage} {seconds:g} s" for stage, seconds in results["seconds"].items())),
        "everything": html.escape(json.dumps(results, indent=2)),
    }
    for name, content in pictures.items():
        fields["picture_" + name.removesuffix(".png")] = picture_source(content)
    return page("hf-explain quickstart", _BODY.substitute(fields))


def _named(name: str, kind: str) -> str:
    """An explainer with a dot in the colour that its kind has in every chart, and the kind in words."""
    return f'<span style="color:{KINDS[kind][0]}">●</span> {name} <small>{kind}</small>'


def _main_table(explainers: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name in ranked(explainers, "object_overlap"):
        row = explainers[name]
        cells = [_named(name, row["kind"])]
        for key in MEASURES:
            low, high = (number(end) for end in row[f"{key}_interval"])
            cells.append(f"{number(row[key])} <small>[{low}, {high}]</small>")
        rows.append(cells)
    return table(["higher is better", "on the object (%)", "removal, seen fills", "removal, unseen fill"], rows)


def _fills_table(explainers: Mapping[str, Mapping[str, Any]]) -> str:
    fills = list(next(iter(explainers.values()))["fills"])
    rows = [
        [_named(name, row["kind"]), *(number(row["fills"][fill]) for fill in fills)]
        for name, row in ((name, explainers[name]) for name in ranked(explainers, "object_overlap"))
    ]
    return table(["removal test by fill", *fills], rows)


_BODY = Template("""<h1>Where does this classifier look?</h1>
<p>A small ResNet ($classifier_parameters parameters) learned to tell six small things of a garden apart, on pictures
drawn for this page. Then an <b>explainer head</b> was trained on it: T-TAME with the preset <code>ranking</code>,
$parameters parameters. The classifier stays as it was; in the same pass in which it answers, the head paints where the
answer comes from. And since the pictures were drawn, the true place of every object is known, pixel by pixel: maps can
be checked, not only admired.</p>
<figure><img src="$picture_saliency" alt="A picture of each class with the maps of T-TAME, Grad-CAM and random">
<figcaption>The first picture of each class that the classifier gets right, and its answer. Bright: what the explainer
says was looked at. Grad-CAM needs no training, and is what <code>pipeline("saliency")</code> takes for a ResNet when
no method is named. Random looks at nothing: a control.</figcaption></figure>

<h2>Is it true?</h2>
<p>Two tests on $images; the classifier gets $accuracy % of them right. In brackets: 95 % intervals.</p>
<p><b>On the object.</b> An object covers $area % of its picture on average. Take as many of a map's most important
pixels as the object has: how many lie on it? Nobody can train for this one: the outlines are never shown.<br>
<b>Removal</b> (AUC-D, the first $tested pictures). Take away the least important pixels first, then the most important
first: how much longer does the answer hold? 0 says that a map knows nothing. The head was trained by removing pixels
itself. Here they become something <i>seen</i> ($seen: the head knows these) or <i>unseen</i> (another picture): a lead
with the unseen one proves more.</p>
$table
<ul>$verdicts</ul>
<div class="pair">
<figure><img src="$picture_overlap" alt="Bar chart: share of the most important pixels on the object"></figure>
<figure><img src="$picture_removal" alt="Bar chart: removal test with the unseen fill"></figure>
<figure><img src="$picture_removed_first" alt="Curves: most important pixels removed first"></figure>
<figure><img src="$picture_removed_last" alt="Curves: most important pixels removed last"></figure>
</div>

<h2>A bias that was planted, and found</h2>
<p>In training, $rate % of the pictures of the class “$label” carried a photographer's tag in a corner, and no others
did. What the classifier made of it, on new pictures:</p>
$accuracies
<figure><img src="$picture_bias" alt="Pictures with the tag and without, and the maps of each explainer"></figure>
<p>$fooled new pictures of other classes were called “$label” because they carry the tag. A map that tells the truth
about such an answer lies on the tag, not on the object:</p>
$fooled_maps

<h2>Now yours</h2>
<p>The same for a classifier and pictures of yours (Hub ids or folders): train a head, then see it beside Grad-CAM.</p>
<pre><code>$own</code></pre>
<p>The head of this page, from Python:</p>
<pre><code>from transformers import pipeline
import hf_explain

pipe = pipeline("saliency", model="head")   # in this folder
pipe("picture.png")[0]["saliency"].save("map.png")</code></pre>
<p>What this classifier gets wrong, and whether the planted bias is found by somebody who does not know of it:</p>
<pre><code>$study</code></pre>

<h2>How it was made</h2>
<p>$seconds s in all: $stages. Everything below is also in <code>results.json</code>.</p>
<details><summary>Every fill by itself; numbers, protocol, seed, versions</summary>
$fills
<pre>$everything</pre></details>
""")
