"""`hf-explain methods`: what explains a classifier, and what is known of each."""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import Any

from hf_explain.apps.arguments import MethodsCommand
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.registry import HEADS, METHOD_ENTRIES, default_method, load_model, methods_for, resolve_method


_PASSES = (
    "Passes: images through the classifier for one explanation, by the method's own settings; tail: the part behind\n"
    "the explained layer once more. Backward passes are not counted."
)


def run(arguments: MethodsCommand) -> list[dict[str, Any]]:
    """
    List methods, or say more of some.

    Args:
        arguments ([`MethodsCommand`]): Which ones, or for which classifier, and how they are listed.

    Returns:
        `list[dict]`: What `--json` prints: `name`, `title`, `summary`, `passes`, `architectures`, `paper`, `control`
        and `options`, of the heads `trained` instead.

    Raises:
        ValueError: If there is no such method; or as loading the classifier.
        OSError: As loading the classifier.
    """
    for name in arguments.names:
        resolve_method(name)
    chosen, default = arguments.names or list(METHOD_ENTRIES), None
    if arguments.model is not None:
        model = load_model(arguments.model, revision=arguments.revision, trust_remote_code=arguments.trust_remote_code)
        classifier = model if isinstance(model, FrozenClassifier) else model.backbone
        assert classifier is not None  # a head is loaded with its own
        defined = methods_for(classifier)
        for name in arguments.names:
            if name not in defined:
                only = METHOD_ENTRIES[name].architectures
                raise ValueError(f"{name!r} is not defined for {arguments.model!r}, but for {only} only.")
        chosen, default = [name for name in chosen if name in defined], default_method(classifier)
    found = [_describe(name) for name in chosen]
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return found
    if arguments.names:
        print("\n\n".join(_details(entry) for entry in found))
    else:
        width = max(len(entry["name"]) for entry in found) + 2
        for entry in found:
            source = (entry["paper"] or "control" * entry["control"]).split(" (")[0]
            facts = [f"passes: {entry['passes']}", entry["architectures"], source]
            print(f"{entry['name']:<{width}}{' · '.join(filter(None, facts))}")
            print(textwrap.fill(_sentence(entry), 118, initial_indent=" " * width, subsequent_indent=" " * width))
        heads = ", ".join(f"{name} ({head.name})" for name, head in HEADS.items())
        print(f"\nTrained heads, for hf-explain train: {heads}.\n{_PASSES}")
        print("More of one, its options and its paper: hf-explain methods NAME.")
    if default is not None:
        options = "".join(f", {name}={value}" for name, value in default[1].items())
        print(f"The default for {arguments.model}: {default[0]}{options}.")
    return found


def _describe(name: str) -> dict[str, Any]:
    entry = METHOD_ENTRIES[name]
    parameters = inspect.signature(entry.function).parameters.values()
    known = ("name", "title", "summary", "passes", "architectures", "paper", "control")
    return {
        **{key: name if key == "name" else getattr(entry, key) for key in known},
        "options": {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY},
    }


def _sentence(entry: dict[str, Any]) -> str:
    return f"{entry['title']}: {entry['summary']}."


def _details(entry: dict[str, Any]) -> str:
    options = ", ".join(f"{name}={value!r}" for name, value in entry["options"].items())
    facts = {
        "passes": entry["passes"],
        "for": entry["architectures"],
        "paper": entry["paper"],
        "options": f"{options} (--method_option {entry['name']}.{next(iter(entry['options']))}=...)",
    }
    lines = [entry["name"], textwrap.fill(_sentence(entry), 116, initial_indent="  ", subsequent_indent="  ")]
    return "\n".join([*lines, *(f"  {key}: {value}" for key, value in facts.items() if value)])
