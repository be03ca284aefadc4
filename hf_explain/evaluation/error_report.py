"""The study of a classifier's mistakes as files: everything as JSON, tables as Markdown, a page with pictures."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_explain.evaluation.error_study import GROUPS, OFF_OBJECT, ErrorStudy, maps_of_both
from hf_explain.io.files import write_atomically, write_json_file
from hf_explain.io.html import page, picture_source, table
from hf_explain.io.image_processor import to_picture
from hf_explain.io.labels import short_label
from hf_explain.io.pictures import colorize, overlay, saliency_grid
from hf_explain.tensors.maps import resize_maps


_MEANINGS = {
    "same_region": "The classifier looks at the same thing for both classes and gives it the other name: related "
    "classes, or a doubtful label.",
    "ambiguous": "The two maps share some of their region.",
    "different_regions": "The true class is seen somewhere else: several objects, or a cue beside the object.",
    "no_map": "One of the two maps is constant and points nowhere.",
}
_SHORT = {"same_region": "same", "ambiguous": "ambiguous", "different_regions": "different", "no_map": "no map"}
_LIST = 50  # rows of a table on the page; the JSON has all
_CAUTION = (
    "A place at the border is a reason to look at the pictures, not a proof: the sky above parachutes is there, too. "
    "With a column of object masks (mask_column) the object itself is measured."
)


def write_report(study: ErrorStudy, folder: Path, pictures: int = 4) -> None:
    """
    Write `errors.json`, `errors.md` and `index.html`, each whole or not at all.

    Args:
        study ([`ErrorStudy`]): What was found.
        folder (`Path`): Where to; it exists.
        pictures (`int`, *optional*, defaults to 4): Mistakes shown of each group, those of the most confident answers,
            and images shown of each biased class; 0 for none.

    Raises:
        ValueError: If an image cannot be read again.
        OSError: If a file cannot be written.
    """
    drawn = _draw(study, pictures) if pictures else {}
    write_atomically(folder / "errors.md", _markdown(study.result).encode())
    write_atomically(folder / "index.html", _page(study, drawn).encode())
    write_json_file(folder / "errors.json", study.result)


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """What was found, a sentence each."""
    count, overlap, groups = result["num_errors"], result["overlap"], result["groups"]
    lines = [
        f"{count} of {result['num_images']} images are classified wrongly ({_percent(result['accuracy'])} right)."
    ]
    if count:
        parts = [f"{groups[group]} {group.replace('_', ' ')}" for group in GROUPS if groups[group]]
        lines.append(f"Maps of the predicted and the true class: {', '.join(parts)}.")
    if overlap["mean"] is not None:
        sentence = f"Mean overlap {_percent(overlap['mean'])}; random regions {_percent(overlap['random_regions'])}"
        if overlap["different_images"] is not None:
            sentence += f", maps of two different mistakes {_percent(overlap['different_images'])}"
        lines.append(sentence + ".")
    biases = result["class_biases"]
    where = "off the object" if biases["measure"] == "object" else "at the border"
    biased = [entry for entry in biases["classes"] if entry["biased"]]
    tested = sum(entry["tested"] for entry in biases["classes"])
    for entry in biased:
        at = "off the object" if entry["place"] == OFF_OBJECT else f"at the border, in the {entry['place']},"
        lines.append(
            f"The classifier looks {at} for class {entry['name']!r}: {_percent(entry['share'])} of its region lies "
            f"there, {_percent(entry['share_others'])} of the other classes' (p {entry['p_value']:.4f}, corrected)."
        )
    if not tested:
        lines.append(f"Too few images to tell whether the classifier looks {where} for some class.")
    elif not biased:
        lines.append(f"No biased class: none of {tested} tested has its maps {where} far more than the others.")
    return lines


# ------------------------------------------------------------------------------------------------------------ pictures


def _draw(study: ErrorStudy, pictures: int) -> dict[str, Any]:
    """Picture by group, and by `(class, kind)` of the biased ones."""
    result = study.result
    chosen = {}
    for group in GROUPS:
        members = [error for error in result["errors"] if error["group"] == group]
        members.sort(key=lambda error: -error["confidence"])
        chosen[group] = members[:pictures]
    shown = {label: images[:pictures] for label, images in study.evidence.items()}
    wanted = {error["image"] for members in chosen.values() for error in members}
    wanted |= {image for images in shown.values() for image in images}
    panels = _panels(study, wanted)
    drawn: dict[Any, Any] = {}
    for group, members in chosen.items():
        if members:
            drawn[group] = saliency_grid(
                [panels[error["image"]] for error in members],
                columns=["image", "predicted class", "true class"],
                captions=[_captions(error) for error in members],
                row_labels=[
                    f"{short_label(error['label_name'])}, called {short_label(error['prediction_name'])}"
                    for error in members
                ],
                cell_size=230,
                text_size=19,
            )
    for label, images in shown.items():
        rows = [[panels[image][0] for image in images], [panels[image][1] for image in images]]
        drawn[label, "evidence"] = saliency_grid(
            rows,
            captions=[[f"image {image}" for image in images], [None] * len(images)],
            row_labels=["images of that answer", "where the classifier looked for it"],
            cell_size=172,
            text_size=17,
        )
        own, others = study.mean_regions[label]
        highest = torch.maximum(own.amax(), others.amax()).clamp(min=1e-12)
        drawn[label, "mean"] = saliency_grid(
            [[colorize((maps / highest).clamp(0, 1).float()) for maps in (own, others)]],
            columns=["this class", "all others"],
            cell_size=256,
            text_size=19,
        )
    return drawn


def _panels(study: ErrorStudy, wanted: set[int]) -> dict[int, list]:
    """Of each image: the picture, the map of the classifier's answer, and that of the true class for a mistake."""
    explainer, reader = study.explainer, study.reader
    panels: dict[int, list] = {}
    classifier = explainer.classifier
    if not wanted:
        return panels  # a stream would be read to its end for nothing
    for _, rows in reader.shards(1, wanted.__contains__):
        for index, row in rows:
            example = reader.read(index, row)
            picture = to_picture(example.pixel_values, classifier.image_mean, classifier.image_std)
            pixel_values = example.pixel_values[None].to(device=classifier.device, dtype=classifier.dtype)
            label = torch.tensor([example.label], device=classifier.device)
            own, true, _, _ = maps_of_both(explainer, pixel_values, label, torch.tensor([index]))
            maps = resize_maps(torch.cat([own, true]).float(), pixel_values.shape[-2:]).clamp(0, 1).cpu()
            panels[index] = [picture, *(overlay(picture, one, grayscale=True) for one in maps)]
        if len(panels) == len(wanted):
            break
    return panels


def _captions(error: Mapping[str, Any]) -> list[str]:
    common = "no map" if error["overlap"] is None else f"{_percent(error['overlap'])} in common"
    return [
        f"{error['image']}: {common}",
        f"{short_label(error['prediction_name'])} {error['confidence']:.2f}",
        f"{short_label(error['label_name'])} {error['confidence_label']:.2f}",
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


# -------------------------------------------------------------------------------------------------------------- tables


def _pair_rows(pairs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    groups = [group for group in GROUPS if group != "no_map" or any(pair[group] for pair in pairs)]
    head = ["true", "predicted", "errors", "share same region", *(_SHORT[group] for group in groups)]
    rows = [
        [
            short_label(pair["label_name"]),
            short_label(pair["prediction_name"]),
            str(pair["count"]),
            _percent(pair["share_same_region"]),
            *(str(pair[group]) for group in groups),
            _percent(pair["mean_overlap"]),
        ]
        for pair in pairs
    ]
    return [*head, "overlap"], rows


def _class_rows(biases: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    with_energy = biases["measure"] == "object"
    head = ["class", "biased", "images", "place", "share there", "other classes", "excess", "p"]
    rows = []
    for entry in biases["classes"]:
        p_value = "too few images" if entry["p_value"] is None else f"{entry['p_value']:.4f}"
        shares = [_percent(entry[key]) for key in ("share", "share_others", "excess")]
        biased = "yes" if entry["biased"] else "no"
        row = [short_label(entry["name"]), biased, str(entry["num_images"]), entry["place"], *shares, p_value]
        rows.append([*row, _percent(entry["energy_on_object"])] if with_energy else row)
    return head + ["energy on object"] * with_energy, rows


def _bias_sentence(biases: Mapping[str, Any]) -> str:
    return (
        f"For each class, the {biases['statistic']}. Maps are {biases['maps']}. The difference to the other classes "
        "is tested by reassigning the images to the classes at random; p is the share of reassignments in which any "
        f"class shows as much anywhere. Biased: {biases['rule']}."
    )


def _markdown(result: Mapping[str, Any]) -> str:
    def rows(head: list[str], body: list[list[str]]) -> str:
        lines = [head, ["---"] * len(head), *([cell.replace("|", "/") for cell in row] for row in body)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    lines = [f"# Errors of {result['explainer']['classifier']}\n\n"]
    lines += [f"- {line}\n" for line in summary_lines(result)]
    if result["pairs"]:
        lines.append("\n## Mistakes by class\n\n" + rows(*_pair_rows(result["pairs"])))
    lines.append("\n## Where the maps of each class lie\n\n" + _bias_sentence(result["class_biases"]) + "\n\n")
    if result["class_biases"]["measure"] == "border":
        lines.append(_CAUTION + "\n\n")
    lines.append(rows(*_class_rows(result["class_biases"])))
    lines.append("\n## Protocol\n\n```json\n" + json.dumps(_protocol(result), indent=2) + "\n```\n")
    return "".join(lines)


def _protocol(result: Mapping[str, Any]) -> dict[str, Any]:
    test = result["class_biases"].get("test")
    names = ("protocol", "explainer", "dataset", "columns", "versions", "device")
    return {name: result[name] for name in names} | {"test": test}


# ---------------------------------------------------------------------------------------------------------------- page


def _page(study: ErrorStudy, drawn: Mapping[Any, Any]) -> str:
    result, biases = study.result, study.result["class_biases"]
    escape, title = html.escape, f"Where does “{result['explainer']['classifier']}” look when it errs?"
    parts = [f"<h1>{escape(title)}</h1>"]
    parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in summary_lines(result)) + "</ul>")
    protocol = result["protocol"]
    if result["num_errors"]:
        parts.append("<h2>Mistakes</h2>")
        parts.append(
            f"<p>The region of a map is {escape(protocol['region'])}. Two regions are compared by "
            f"{escape(protocol['overlap'])}. Maps by {escape(result['explainer']['explainer'])}; the pictures show "
            "the mistakes with the most confident answers.</p>"
        )
    for group in GROUPS:
        count = result["groups"][group]
        if not count:
            continue
        rule = protocol["groups"][group]
        parts.append(f"<h3>{group.replace('_', ' ').capitalize()}: {count}</h3>")
        parts.append(f"<p>{escape(_MEANINGS[group])} <small>({escape(rule)})</small></p>")
        if group in drawn:
            parts.append(_figure(drawn[group], f"Mistakes of the group {group.replace('_', ' ')} with their two maps"))
    if result["pairs"]:
        parts.append("<h2>Mistakes by class</h2>" + _html_table(*_pair_rows(result["pairs"][:_LIST])))
        parts.append(_rest(len(result["pairs"])))
    parts.append(f"<h2>Biased classes: {len(biases['biased'])}</h2><p>{escape(_bias_sentence(biases))}</p>")
    if biases["measure"] == "border":
        parts.append(f"<p>{escape(_CAUTION)}</p>")
    for entry in biases["biased"]:
        label, name = entry["label"], escape(short_label(entry["name"]))
        parts.append(f"<h3>“{name}”</h3>")
        if (label, "evidence") in drawn:
            parts.append(
                _figure(
                    drawn[label, "evidence"],
                    f"Images called {name} and their maps",
                    f"Images the classifier calls “{name}”, the clearest cases, and the maps of that answer.",
                )
            )
            parts.append(
                _figure(
                    drawn[label, "mean"],
                    f"Mean region of {name} and of the other classes",
                    "How often each part of the image belongs to the region; same scale for both.",
                )
            )
    parts.append(_html_table(*_class_rows({**biases, "classes": biases["classes"][:_LIST]})))
    parts.append(_rest(len(biases["classes"])))
    everything = {key: value for key, value in result.items() if key not in ("errors", "pairs", "class_biases")}
    parts.append("<h2>How it was made</h2><p>Everything, mistake by mistake, is in <code>errors.json</code>.</p>")
    parts.append(
        "<details><summary>Numbers, protocol, seed, versions</summary>"
        f"<pre>{escape(json.dumps(everything, indent=2))}</pre></details>"
    )
    return page(title, "\n".join(part for part in parts if part) + "\n")


def _figure(picture, description: str, caption: str = "") -> str:
    below = f"\n<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img src="{picture_source(picture)}" alt="{description}">{below}</figure>'


def _html_table(head: list[str], rows: list[list[str]]) -> str:
    return table(head, [[html.escape(cell) for cell in row] for row in rows])


def _rest(count: int) -> str:
    return f"<p><small>{_LIST} of {count} shown.</small></p>" if count > _LIST else ""
