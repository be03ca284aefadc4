"""Model cards of trained heads, filled from what was recorded. What is not known is left out, and the card says so."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template
from transformers import PreTrainedConfig

from hf_explain.classifiers.fingerprint import FINGERPRINT_DTYPES
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.evaluation.results import Comparison, SanityResult
from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.io.files import RECORD_FILE, write_atomically
from hf_explain.io.paths import base_name, is_hub_id, is_local_path, output_folder, public_name
from hf_explain.metrics import split_name
from hf_explain.publish.card_facts import (
    EVALUATION,
    Measurement,
    OwnResult,
    find_own_result,
    head_weights,
    read_config,
    read_evaluation_file,
    read_json,
    read_measurements,
)
from hf_explain.registry import HEADS
from hf_explain.training.arguments import ExplainerTrainingArguments
from hf_explain.training.record import TrainingRecord


# Of the Hub's tasks: the pipeline answers a picture with classes and scores, and a map for each
_TASK = "image-classification"


# -------------------------------------------------------------------------------------------------------------- a card


def build_model_card(
    model_or_dir,
    *,
    repo_id: str | None = None,
    training_record: str | os.PathLike | Mapping | None = None,
    evaluation: str | os.PathLike | Mapping | Comparison | None = None,
    explainer: str | None = None,
    picture: str | os.PathLike | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    evaluation_dataset: str | None = None,
    data_terms: str | None = None,
    license: str | None = None,
    limitations: str | None = None,
    card_directory: str | os.PathLike | None = None,
    unreleased: bool = False,
) -> ModelCard:
    """
    The model card of a trained head.

    Every field comes from the configuration, the training record, the evaluation or an argument. A field that none of
    them has is left out of the card's data and named under "Not known".

    Args:
        model_or_dir ([`ExplainerPreTrainedModel`], `str` or `os.PathLike`): A head, or the directory it was saved to;
            a `training_record.json` and an `evaluation.json` in that directory are read unless given.
        repo_id (`str`, *optional*): Where it will be on the Hub; the directory's name stands in the snippet if not.
        training_record (`str`, `os.PathLike` or `dict`, *optional*): Written by training.
        evaluation (`str`, `os.PathLike`, `dict` or [`Comparison`], *optional*): `results.json` of an evaluation, or
            what [`SaliencyEvaluator`] returned.
        explainer (`str`, *optional*): The name of this head in an evaluation that compares several; found by the
            fingerprint of its weights when not given.
        picture (`str` or `os.PathLike`, *optional*): An image file beside the card, shown on top.
        dataset (`str`, *optional*): Hub id or name of the training data, where the record has only a local name; a
            name may have the id behind it, `Photographs at 128 px (user/photographs)`.
        dataset_config (`str`, *optional*): Configuration of the training data on the Hub that the command names; the
            record's when not given.
        evaluation_dataset (`str`, *optional*): The same of the evaluation's data.
        data_terms (`str`, *optional*): Terms of the training data, in a sentence.
        license (`str`, *optional*): Licence of the head's weights, a Hub licence identifier.
        limitations (`str`, *optional*): Markdown, added to the limitations that follow from the configuration.
        card_directory (`str` or `os.PathLike`, *optional*): Where the card will lie, if not in the head's directory.
        unreleased (`bool`, *optional*, defaults to `False`): Say that the weights are not on the Hub yet, and the
            command that trains them.

    Returns:
        `huggingface_hub.ModelCard`.

    Raises:
        FileNotFoundError: If a file that was named is missing.
        ValueError: If the configuration is not a head's, a JSON cannot be read, or the evaluation does not say which
            part of it is this head's, or measured other weights.
    """
    config = read_config(model_or_dir)
    directory = Path(model_or_dir) if isinstance(model_or_dir, (str, os.PathLike)) else None
    if directory is not None:
        found = {name: directory / name for name in (RECORD_FILE, EVALUATION) if (directory / name).is_file()}
        training_record = found.get(RECORD_FILE) if training_record is None else training_record
        evaluation = found.get(EVALUATION) if evaluation is None else evaluation
    beside = Path(card_directory) if card_directory is not None else directory
    if picture is not None and beside is not None and not (beside / picture).is_file():
        raise FileNotFoundError(f"`picture` {os.fspath(picture)!r} is not in {str(beside)!r}.")
    training = None
    if training_record is not None:
        training = TrainingRecord.from_json(read_json(training_record, "training_record"))
    comparison, own = None, None
    if evaluation is not None:
        comparison = read_evaluation_file(evaluation, "evaluation")
        own = find_own_result(comparison, explainer, config["model_type"], head_weights(model_or_dir))
    name = repo_id or (directory.resolve().name if directory is not None else config["model_type"])

    unknown: list[str] = []
    classifier = _classifier(config, training, unknown)
    trained = _trained(training, dataset, dataset_config, license, data_terms, unknown)
    tested = _tested(comparison, own, evaluation_dataset, unknown)
    head = HEADS[config["model_type"]]
    data = _card_data(name, config["model_type"], classifier, trained, tested)
    content = _template().render(
        card_data=data.to_yaml(),
        name=name,
        title=head.title(config),
        head=head,
        classifier=classifier,
        layers=list(config.get("feature_layers") or []),
        settings=_own_settings(config),
        picture=None if picture is None else Path(picture).as_posix(),
        limitations=limitations,
        unknown=unknown,
        train_command=_train_command(config, classifier, trained) if unreleased else None,
        **trained,
        **tested.on_the_card(),
    )
    return ModelCard(content)


@cache
def _template() -> Template:
    """Compiled once: that takes longer than all the rest of a card."""
    return Template(resources.files("hf_explain").joinpath("publish", "card_template.md").read_text(encoding="utf-8"))


def write_model_cards(
    directories: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike,
    *,
    evaluations: Sequence[str | os.PathLike] = (),
    user: str | None = None,
    **fields,
) -> list[Path]:
    """
    Cards of many heads, each as `HEAD-CLASSIFIER.md` in one folder.

    HEAD is the head's name in the evaluation that measured its weights, CLASSIFIER the classifier's name. A file
    `pictures/HEAD-CLASSIFIER.jpg` or `.png` in the folder is shown on the card. Nothing is written unless all can be.

    Args:
        directories (`list[str or os.PathLike]`): Saved heads.
        output_dir (`str` or `os.PathLike`): Folder of the cards; made where missing.
        evaluations (`list[str or os.PathLike]`, *optional*): `results.json` files; each head's is the one that
            measured its weights, or the `evaluation.json` in its directory.
        user (`str`, *optional*): Whose repositories the snippets name.
        fields: As for [`build_model_card`], the same for all.

    Returns:
        `list[pathlib.Path]`: The cards, in the order of the heads.

    Raises:
        FileNotFoundError, ValueError: As for [`build_model_card`]; also if no evaluation measured a head, or two heads
            would have one card.
    """
    folder = output_folder(output_dir)
    read = {os.fspath(path): read_evaluation_file(path, "evaluations") for path in evaluations}
    cards: dict[Path, ModelCard] = {}
    for directory in map(Path, directories):
        config = read_config(directory)
        head, evaluation = _name_and_evaluation(directory, config, read)
        classifier = _classifier(config, _record_in(directory), [])["name"]
        classifier = classifier or (evaluation.classifier.get("id") if evaluation else None) or ""
        name = "-".join(filter(None, (head, classifier.split("/")[-1])))
        path = folder / f"{name}.md"
        if path in cards:
            raise ValueError(f"`directories` has two heads for the card {path.name}; write them to different folders.")
        pictures = [Path("pictures", f"{name}.{kind}") for kind in ("jpg", "png")]
        cards[path] = build_model_card(
            directory,
            repo_id=f"{user}/{name}" if user else name,
            evaluation=evaluation,
            explainer=head if evaluation else None,
            picture=next((one for one in pictures if (folder / one).is_file()), None),
            card_directory=folder,
            **fields,
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path, card in cards.items():
        write_atomically(path, str(card).encode())
    return list(cards)


def _name_and_evaluation(
    directory: Path, config: Mapping[str, Any], evaluations: Mapping[str, Comparison]
) -> tuple[str, Comparison | None]:
    """What a head is called, and the evaluation that measured it, if there is one."""
    if not evaluations and (directory / EVALUATION).is_file():
        evaluations = {EVALUATION: read_evaluation_file(directory / EVALUATION, EVALUATION)}
    if not evaluations:
        return "-".join(filter(None, (config["model_type"], config.get("variant")))), None
    weights = head_weights(directory)
    for evaluation in evaluations.values():
        try:
            return find_own_result(evaluation, None, config["model_type"], weights).name, evaluation
        except ValueError:
            continue  # this one measured other heads; the error below is for when all did
    raise ValueError(
        f"None of `evaluations` ({', '.join(evaluations)}) measured the head in {os.fspath(directory)!r}; evaluate "
        "it, or leave it out."
    )


def _record_in(directory: Path) -> TrainingRecord | None:
    path = directory / RECORD_FILE
    return TrainingRecord.from_json(read_json(path, RECORD_FILE)) if path.is_file() else None


# ---------------------------------------------------------------------------------------------------- its single facts


def _classifier(config: Mapping[str, Any], training: TrainingRecord | None, unknown: list[str]) -> dict[str, Any]:
    """What is known of the explained classifier; its `hub_id` is `None` where nobody else can load it."""
    backbone, nested = config.get("backbone"), config.get("backbone_config") or {}
    checksums = config.get("backbone_fingerprint") or {}
    local = not backbone or not is_hub_id(backbone)
    name = _told(training, "classifier") if local else backbone
    if not name and backbone:
        name = base_name(backbone)
    if name and is_local_path(name):
        name = None
    if not name:
        unknown.append("The classifier's name: the head was trained on a model in memory.")
    elif local:
        unknown.append("The classifier's place on the Hub (base_model): the head was trained on a local directory.")
    others = {}  # that nobody else has either
    for role in HEADS[config["model_type"]].config.classifiers[1:]:
        source = config.get(role)
        if not config.get("self_contained") and not (source and is_hub_id(source)):
            others[role] = public_name(source) or role
            unknown.append(f"The {role} classifier's place on the Hub: the head was trained over a local one.")
    revision = None if local else config.get("backbone_revision")
    if not local and revision is None:
        unknown.append("The classifier's revision: it was not recorded.")
    return {
        "name": name,
        "hub_id": None if local else name,
        "revision": revision,
        "kind": nested.get("model_type"),
        "fingerprint": next(((kind, checksums[kind]) for kind in FINGERPRINT_DTYPES if kind in checksums), None),
        "included": bool(config.get("self_contained")),
        "others": others,
        "num_labels": len(config.get("id2label") or {}) or None,
    }


def _hub_dataset(name: str | None) -> str | None:
    """
    The Hub id of a data set, which may stand in brackets behind its name; a bare `name` may be a directory without its
    path.
    """
    found = re.search(r"\(([^()\s]+)\)$|^(\S+)$", name or "")
    hub_id = found and (found[1] or found[2])
    return hub_id if hub_id and "/" in hub_id and is_hub_id(hub_id) else None


def _data_name(value: Any, what: str, unknown: list[str]) -> str | None:
    """A data set's name; one that means nothing to others is named as unknown."""
    if not isinstance(value, str) or not value or is_local_path(value):
        unknown.append(f"The {what}: " + ("only a local path was recorded." if value else "not recorded."))
        return None
    if not _hub_dataset(value):
        unknown.append(f"The {what}: only the local name `{value}` was recorded.")
    return value


def _own_settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fields that belong to the head's method, not to every Transformers config."""
    shared = {entry.name for entry in fields(PreTrainedConfig)} | {entry.name for entry in fields(ExplainerConfig)}
    shared |= {
        "model_type",
        "transformers_version",
        "auto_map",
        "torch_dtype",
        "custom_pipelines",
        "output_attentions",
    }
    own = dict(config)
    for name in HEADS[config["model_type"]].config.classifiers:
        # a classifier beside the explained one is named; what else is filled in of it says nothing more
        shared |= {f"{name}_mean", f"{name}_std"}
        own[name] = public_name(config.get(name))
    return [
        (key, value)
        for key, value in sorted(own.items())
        if key not in shared and not key.startswith("_") and not isinstance(value, Mapping)
    ]


def _told(training: TrainingRecord | None, *names: str) -> Any:
    """What the description of a run says under the first of some names that it has."""
    told = {} if training is None else training.description
    return next((told[name] for name in names if told.get(name) is not None), None)


# Settings that a card names where they are not the command's own
_SELDOM = ("lr_decay", "momentum", "pct_start", "max_grad_norm", "resize_size")


def _is_set(settings: Mapping[str, Any], name: str) -> bool:
    return settings.get(name) not in (None, getattr(ExplainerTrainingArguments, name))


def _distill_options(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of the method that the first steps went by."""
    return (settings.get("method_options") or {}).get(settings.get("distill_method"), {})


def _recipe(training: TrainingRecord | None) -> list[tuple[str, str]]:
    if training is None:
        return []
    settings, machine = training.arguments, training.machine
    facts = {
        "images": training.num_examples,
        "epochs": training.epochs,
        "steps": training.steps,
        "images per step": training.global_batch_size,
        "optimizer": settings.get("optimizer"),
        "schedule": settings.get("lr_scheduler"),
        "learning rate": settings.get("learning_rate"),
        "weight decay": settings.get("weight_decay"),
        **{name.replace("_", " "): settings.get(name) for name in _SELDOM if _is_set(settings, name)},
        "distilled from": settings.get("distill_method"),
        "distilling steps": settings.get("distill_steps"),
        "distilling options": ", ".join(f"{name} {value}" for name, value in _distill_options(settings).items()),
        "augmentation": settings.get("augmentation"),
        "explained class": settings.get("target"),
        "mixed precision": machine.get("mixed_precision"),
        "processes": machine.get("num_processes"),
        "device": machine.get("device"),
        "seed": training.seed,
        "trained parameters": training.trainable_parameters,
        "final loss": training.final_loss,
        "final validation loss": training.final_eval_loss,
        "seconds": training.seconds,
        "versions": ", ".join(f"{name} {version}" for name, version in training.versions.items()),
    }
    shown = {label: f"{value:.4g}" if isinstance(value, float) else str(value) for label, value in facts.items()}
    return [
        (label, text) for label, text in shown.items() if facts[label] not in (None, "") and not is_local_path(text)
    ]


def _trained(
    training: TrainingRecord | None,
    dataset: str | None,
    dataset_config: str | None,
    license: str | None,
    data_terms: str | None,
    unknown: list[str],
) -> dict[str, Any]:
    """What is known of the training, and the licence and terms of its result."""
    dataset = dataset or _data_name(_told(training, "dataset"), "training data", unknown)
    license = license or _told(training, "license")
    if license is None:
        unknown.append("Licence of the weights: none was given.")
    if data_terms is None:
        unknown.append("Terms of the training data: none were given.")
    if training is None:
        unknown.append("How the head was trained: there is no training record.")
    return {
        "dataset": dataset,
        "dataset_config": dataset_config or _told(training, "dataset_config"),
        "dataset_split": _told(training, "train_split", "dataset_split"),
        "recipe": _recipe(training),
        "distill_options": _distill_options(training.arguments if training else {}),
        "license": license,
        "data_terms": data_terms,
    }


# What of the recipe the command takes, by its row on the card
_FLAGS = {
    "steps": "max_steps",
    "images per step": "per_device_batch_size",
    "optimizer": "optimizer",
    "schedule": "lr_scheduler",
    "learning rate": "learning_rate",
    "weight decay": "weight_decay",
    **{name.replace("_", " "): name for name in _SELDOM},
    "distilled from": "distill_method",
    "distilling steps": "distill_steps",
    "augmentation": "augmentation",
    "explained class": "target",
    "mixed precision": "mixed_precision",
    "seed": "seed",
}


def _train_command(config: Mapping[str, Any], classifier: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """The command that trains such a head: what is not its own choice for such a classifier, and what was recorded."""
    preset, options = _preset_and_options(config)
    recipe = dict(trained["recipe"])
    method, asked = recipe.get("distilled from"), trained["distill_options"]
    named = f"--head {config['model_type']}" + (f" --preset {preset}" if preset else "")
    data = [f"--dataset {_hub_dataset(trained['dataset']) or 'DATASET'}"]
    data += [f"--dataset_config {shlex.quote(trained['dataset_config'])}"] if trained["dataset_config"] else []
    lines = [
        f"hf-explain train --classifier {classifier['name'] or 'CLASSIFIER'} {named}",
        f"{' '.join(data)} --output_dir HEAD",
        " ".join(f"--{flag} {recipe[label]}" for label, flag in _FLAGS.items() if label in recipe),
        *(f"--head_option {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in options.items()),
        *(f"--method_option {shlex.quote(f'{method}.{key}={json.dumps(value)}')}" for key, value in asked.items()),
    ]
    return " \\\n    ".join(filter(None, lines))


def _preset_and_options(config: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """
    The preset, if any, that explains most of a head's fields, and the other fields.

    They are compared with those of new heads for classifiers of the same configurations (with random weights, which
    decide no field); where these are not known, with the configuration's defaults.
    """
    head = HEADS[config["model_type"]].model
    own = head.config_class.from_dict(dict(config))
    nested = {name: getattr(own, f"{name}_config") for name in own.classifiers}
    made: dict[str | None, ExplainerConfig] = {}
    if None not in nested.values():
        others: dict[str, Any] = {name: FrozenClassifier.from_config(one) for name, one in nested.items()}
        classifier = others.pop("backbone")
        for name in (None, *head.presets):
            with contextlib.suppress(ValueError):  # what such a classifier refuses did not make this head
                made[name] = head.from_classifier(classifier, preset=name, **others).config
    made = made or {None: head.config_class()}
    wanted = _command_fields(own)
    options = {
        name: {key: value for key, value in wanted.items() if value != _command_fields(one).get(key)}
        for name, one in made.items()
    }
    preset = min(options, key=lambda name: len(options[name]))
    return preset, options[preset]


def _command_fields(config: ExplainerConfig) -> dict[str, Any]:
    """What `--head_option` could set, as a file has it."""
    fields = config.to_dict()
    return json.loads(json.dumps({"feature_layers": fields.get("feature_layers"), **dict(_own_settings(fields))}))


# --------------------------------------------------------------------------------------------------------- its numbers


@dataclass(frozen=True)
class _Tested:
    """What is known of the maps: numbers of the head and of the references, on what, and the sanity checks."""

    measurements: list[Measurement] = field(default_factory=list)
    references: dict[str, dict[str, float]] = field(default_factory=dict)  # name to number by key
    on: str | None = None
    dataset: Mapping[str, Any] = field(default_factory=dict)
    num_images: int | None = None
    sanity: SanityResult | None = None

    def on_the_card(self) -> dict[str, Any]:
        """As the template expects it."""
        verdict = (self.sanity.verdict if self.sanity else None) or ""
        return {
            "results": [_row(one, self.references) for one in self.measurements],
            "headline": [_row(one, self.references) for one in _main_numbers(self.measurements)],
            "references": list(self.references),
            "tested_on": self.on,
            "tested_split": self.dataset.get("split"),
            "num_images": self.num_images,
            "interval": _interval(self.measurements),
            "protocols": _protocols(self.measurements),
            "explained": _explained(self.measurements),
            "sanity": _sanity(self.sanity),
            "failed": verdict.removeprefix("fails: ") if verdict.startswith("fails") else None,
        }


def _tested(
    comparison: Comparison | None, own: OwnResult | None, evaluation_dataset: str | None, unknown: list[str]
) -> _Tested:
    if comparison is None or own is None:
        unknown.append("How faithful its maps are: there is no evaluation.")
        unknown.append("Sanity checks (random weights, random labels): none were recorded.")
        return _Tested(on=evaluation_dataset)
    measurements = read_measurements(comparison, own.result)
    if not measurements:
        unknown.append("How faithful its maps are: the evaluation holds no metric this package knows.")
    on = evaluation_dataset or _data_name(comparison.dataset.get("name"), "data of the evaluation", unknown)
    if own.result.sanity is None:
        unknown.append("Sanity checks (random weights, random labels): none were recorded.")
    references = {
        name: {one.metric: one.value for one in read_measurements(comparison, result)}
        for name, result in own.references.items()
    }
    num_images = own.result.num_images or comparison.num_images
    return _Tested(measurements, references, on, comparison.dataset, num_images, own.result.sanity)


def _card_data(
    name: str, model_type: str, classifier: Mapping[str, Any], trained: Mapping[str, Any], tested: _Tested
) -> ModelCardData:
    """
    The card's front matter, in the identifiers of the Hub's specification and short enough to read on: the number that
    gives each metric its name. All numbers, and how they were measured, are in the text.
    """
    data, trained_on = _hub_dataset(tested.on), _hub_dataset(trained["dataset"])
    results = [
        EvalResult(
            task_type=_TASK,
            task_name="Saliency",
            dataset_type=data,
            dataset_name=str(tested.on).removesuffix(f"({data})").strip() or data,
            dataset_split=tested.dataset.get("split"),
            dataset_revision=tested.dataset.get("revision"),
            metric_type=split_name(one.metric_id)[0],
            metric_name=one.title,
            metric_value=one.value,
        )
        for one in _main_numbers(tested.measurements)
        if data
    ]
    return ModelCardData(
        library_name="hf-explain",
        pipeline_tag=_TASK,
        tags=["saliency", "explainability", model_type],
        model_name=name if results else None,  # of the results; alone it would be a field that the Hub does not know
        base_model=classifier["hub_id"],
        base_model_relation="adapter" if classifier["hub_id"] else None,
        base_model_revision=classifier["revision"],
        datasets=[trained_on] if trained_on else None,
        license=trained["license"],
        eval_results=results or None,
    )


def _main_numbers(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Of each metric the first number: the one that it is named after."""
    return list({one.metric_id: one for one in reversed(measurements)}.values())[::-1]


def _number(value: float) -> str:
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.1g}"


def _row(measured: Measurement, references: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    value = _number(measured.value)
    if measured.interval:
        value += f" [{_number(measured.interval[0])}, {_number(measured.interval[1])}]"
    others = [_number(one[measured.metric]) if measured.metric in one else "" for one in references.values()]
    return {"metric": measured.title, "better": measured.better, "value": value, "references": others}


def _plain(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol without anything that YAML cannot hold or that names a path; a long list takes one line."""
    found: dict[str, Any] = {}
    for key, value in protocol.items():
        if isinstance(value, (list, tuple)):
            found[key] = list(value) if len(value) <= 3 else ", ".join(map(str, value))
        elif isinstance(value, (int, float)) or (isinstance(value, str) and not is_local_path(value)):
            found[key] = value
    return found


def _protocols(results: list[Measurement]) -> list[tuple[str, str]]:
    """Each distinct protocol once, with the metrics that follow it."""
    shared: dict[str, list[str]] = {}
    for result in results:
        plain = _plain(result.protocol)
        plain = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in plain.items()}
        text = "; ".join(f"{key} {value}" for key, value in plain.items()) or "not recorded"
        shared.setdefault(text, []).append(result.title)
    return [(", ".join(metrics), text) for text, metrics in shared.items()]


def _explained(results: list[Measurement]) -> list[str]:
    """What the metrics measure, in the words of their own documentation."""
    texts = []
    for name in dict.fromkeys(str(result.protocol.get("metric")) for result in results):
        readme = resources.files("hf_explain").joinpath("metrics", name, "README.md")
        if re.fullmatch(r"\w+", name) and readme.is_file():
            section = readme.read_text(encoding="utf-8").split("## Metric description")[-1]
            texts.append(section.strip().split("\n\n")[0].replace("\n", " "))
    return texts


def _interval(results: list[Measurement]) -> str | None:
    """What the brackets behind the numbers are."""
    for result in results:
        stated = result.protocol.get("interval")
        if result.interval and isinstance(stated, Mapping) and isinstance(stated.get("confidence"), (int, float)):
            return f"{100 * stated['confidence']:g} % bootstrap intervals over the images"
    return "intervals as recorded" if any(result.interval for result in results) else None


def _sanity(sanity: SanityResult | None) -> list[tuple[str, str]]:
    """The verdict of the sanity checks, then each check with its numbers."""
    if sanity is None:
        return []
    rows = [] if sanity.verdict is None else [("verdict", sanity.verdict)]
    for name, check in sanity.checks.items():
        parts = [
            f"{key.replace('_', ' ')} {_number(value)}"
            for key, value in check.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        passed = check.get("passed")
        verdict = "" if passed is None else "passed: " if passed else "failed: "
        rows.append((name.replace("_", " "), verdict + ", ".join(parts)))
    if sanity.num_images is not None:
        rows.append(("images", str(sanity.num_images)))
    return rows
