"""The quickstart's page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from string import Template
from typing import Any

from hf_explain.io.html import number, page, picture_source, table


def render_page(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """
    The page that shows the numbers of `results.json` beside the pictures.

    Args:
        results (`Mapping[str, Any]`): What `results.json` holds.
        pictures (`Mapping[str, bytes]`): PNG files by name; they are put into the page.

    Returns:
        `str`: HTML.
    """
    bias, accuracy = results["bias"], results["bias"]["accuracy"]
    fields = {
        "label": html.escape(bias["biased_label"]),
        "parameters": str(results["head"]["num_parameters"]),
        "rate": f"{100 * bias['training_rate']:g}",
        "accuracy": number(results["classifier"]["accuracy_without_tag"]),
        "area": number(results["classifier"]["object_area"]),
        "images": html.escape(results["protocol"]["images"]),
        "table": _main_table(results["explainers"]),
        "checks": "".join(
            f'<li class="{"good" if passed else "bad"}">{"✓" if passed else "✗"} {html.escape(sentence)}</li>'
            for sentence, passed in results["checks"].items()
        ),
        "accuracies": table(["images", "accuracy (%)"], [[name, number(value)] for name, value in accuracy.items()]),
        "fooled": str(bias["num_fooled"]),
        "fooled_maps": table(
            ["most salient pixels on (%)", "the tag", "the object"],
            [
                [name, number(row["tag_overlap"]), number(row["object_overlap"])]
                for name, row in bias["fooled_maps"].items()
            ],
        )
        if bias["fooled_maps"]
        else "",
        "seconds": number(sum(results["seconds"].values()), 0),
        "stages": html.escape(", ".join(f"{stage} {seconds:g} s" for stage, seconds in results["seconds"].items())),
        "everything": html.escape(json.dumps(results, indent=2)),
    }
    for name, content in pictures.items():
        fields["picture_" + name.removesuffix(".png")] = picture_source(content)
    return page("hf-explain quickstart", _BODY.substitute(fields))


def _main_table(explainers: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["", "AUC-D", "overlap", "energy", *(f"AD {v}" for v in (100, 50, 15)), *(f"IC {v}" for v in (100, 50, 15))]
    rows = []
    for name, row in explainers.items():
        low, high = (number(end) for end in row["auc_d_interval"])
        values = [row["object_overlap"], row["object_energy"]]
        values += [row[key][v] for key in ("AD", "IC") for v in ("100", "50", "15")]
        rows.append([name, f"{number(row['auc_d'])} <small>[{low}, {high}]</small>", *map(number, values)])
    return table(head, rows)


_BODY = Template("""<h1>Where does this classifier look?</h1>
<p>A small ResNet was trained on pictures drawn for this page: one textured shape among look-alike clutter. Then an
L-CAM-Img head ($parameters parameters, with the removal term in its loss) was trained on the frozen classifier, saved,
and loaded with <code>pipeline("saliency")</code>. Because the pictures were drawn, the true place of every object is
known, pixel by pixel.</p>
<figure><img src="$picture_saliency" alt="Grid of validation images with the maps of four explainers laid over them">
<figcaption>Validation images and what each explainer says the classifier looked at. Bright: salient. Centre and random
look at nothing; they are the controls.</figcaption></figure>

<h2>Is it true?</h2>
<p>Measured on $images. The classifier gets $accuracy % of them right. <b>AUC-D</b>: how much longer the prediction
survives when the least salient pixels go black first rather than the most salient. <b>Overlap</b>: of the n most
salient pixels, the share on the object, n being the object's own size ($area % of the image on average).
<b>Energy</b>: share of the map's sum on the object. <b>AD</b>/<b>IC</b>: average drop and increase in confidence with
100, 50 and 15 % of the pixels kept; a low AD is good, a high IC is good.</p>
$table
<ul>$checks</ul>
<div class="pair">
<figure><img src="$picture_auc_d" alt="Bar chart of AUC-D for each explainer"></figure>
<figure><img src="$picture_overlap" alt="Bar chart of overlap with the object for each explainer"></figure>
<figure><img src="$picture_removed_first" alt="Curves: most salient pixels removed first"></figure>
<figure><img src="$picture_removed_last" alt="Curves: most salient pixels removed last"></figure>
</div>

<h2>A bias that was planted, and found</h2>
<p>In training, $rate % of the class “$label” showed a striped tag in a corner. What that did:</p>
$accuracies
<figure><img src="$picture_bias" alt="Grid of images with the tag and the maps of four explainers"></figure>
<p>$fooled validation images of other classes that show the tag were called “$label”. A faithful map of that answer
lies on the tag, not on the object:</p>
$fooled_maps

<h2>Use it</h2>
<pre><code>from transformers import pipeline
import hf_explain

pipe = pipeline("saliency", model="head")   # in this folder
pipe("picture.png")[0]["saliency"].save("map.png")</code></pre>
<p>Where it looks when it errs, and whether the planted bias is found by somebody who does not know of it:</p>
<pre><code>hf-explain errors --model head --dataset data -o errors</code></pre>

<h2>How it was made</h2>
<p>$seconds s in all: $stages. Everything below is also in <code>results.json</code>.</p>
<details><summary>Numbers, protocol, seed, versions</summary><pre>$everything</pre></details>
""")
