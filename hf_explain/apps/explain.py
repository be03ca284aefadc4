"""`hf-explain explain`: images in, pictures of where the classifier looked out."""

from __future__ import annotations

import glob
import io
import itertools
import json
import math
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from hf_explain.apps.arguments import ExplainCommand
from hf_explain.apps.command_line import parse_value
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.io.explanations import Explanations
from hf_explain.io.files import write_atomically
from hf_explain.io.images import load_rgb
from hf_explain.io.labels import short_label
from hf_explain.io.pictures import LEAST_ROOM, explanation_sheet, save_image
from hf_explain.io.processes import choose_device
from hf_explain.pipeline import SaliencyPipeline, load_pipeline, pictures_below
from hf_explain.registry import METHODS, AutoModelForSaliency, default_method, resolve_method


_LEAST_CELL = 320  # pixels of a panel
_FOLDER = "explained"  # where the pictures of several images go unless told


@dataclass(frozen=True)
class _Explainer:
    """A trained head, or a method on a classifier; `name` is `None` where nobody named it."""

    name: str | None
    pipe: SaliencyPipeline
    method: str | None
    options: Mapping[str, Any]


def run(arguments: ExplainCommand) -> list[dict[str, Any]]:
    """
    Explain every image and write its picture.

    Args:
        arguments ([`ExplainCommand`]): Which images, by what, to where.

    Returns:
        `list[dict]`: What `--json` prints, an entry for each image.

    Raises:
        ValueError: If an option cannot work, or an image cannot be read.
        OSError: If something does not exist or cannot be written.
    """
    sources = _images(arguments.images)
    asked = _parse_methods(arguments.method)
    paths = _paths(sources, arguments.output)
    explainers = _load(arguments, asked)
    if not (folder := next(iter(paths.values())).parent).is_dir():
        folder.mkdir()  # of several; that of one was seen to exist
    opened: deque[tuple[str, Image.Image]] = deque()
    found: list[dict[str, Any]] = []

    def images() -> Iterator[Image.Image]:
        """Every image that can be read, once for all explainers."""
        for source in sources:
            try:
                image = load_rgb(source)
            except (ValueError, TypeError, OSError) as error:
                if arguments.on_error == "raise":
                    raise
                print(f"{source}: skipped: {error}", file=sys.stderr)
                found.append({"image": source, "error": str(error)})
                continue
            opened.append((source, image))
            yield image

    results = [
        one.pipe(
            stream,
            target=[_class(word) for word in arguments.target] or None,
            top_k=arguments.top_k,
            method=one.method,
            signed=arguments.signed,
            against=None if arguments.against is None else _class(arguments.against),
            batch_size=arguments.batch_size,
            dtype=arguments.dtype,
            **one.options,
        )
        for one, stream in zip(explainers, itertools.tee(images(), len(explainers)))
    ]
    several = len(sources) > 1
    for explained in tqdm(zip(*results), total=len(sources), disable=not (several and arguments.progress)):
        source, image = opened.popleft()
        names = [one.name or result[0]["method"] for one, result in zip(explainers, explained)]
        save_image(_sheet(image, names, explained, arguments), paths[source])
        maps = _save_maps(paths[source], names, explained, arguments)
        found.append(_describe(source, paths[source], names, explained, maps))
        if not arguments.json:
            said = ", ".join(f"{one['label']} {one['score']:.2f}" for one in explained[0])
            print(f"{source}: {said} -> {paths[source]}")
    stated = (one.pipe.stated_precision(one.method).get("precision") for one in explainers)
    for line in dict.fromkeys("precision: {dtype} ({reason})".format(**one) for one in stated if one):
        print(line, file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return found


# ------------------------------------------------------------------------------------------------------ what is asked


def _class(word: str) -> int | str:
    """A class by its index, or else by its name, whatever else that could be."""
    value = parse_value(word)
    return value if type(value) is int else word


def _images(words: Iterable[str]) -> list[str]:
    """Every image that paths, URLs, folders and patterns name, each once."""
    found: dict[str, None] = {}
    for word in words:
        if os.path.isdir(word):
            found |= dict.fromkeys(pictures_below(word))
        elif "://" in word or os.path.exists(word) or not glob.has_magic(word):
            found[word] = None
        else:
            known = Image.registered_extensions()
            matching = [one for one in sorted(glob.glob(word, recursive=True)) if Path(one).suffix.lower() in known]
            if not matching:
                raise FileNotFoundError(f"`images` {word!r} is a pattern that no picture matches.")
            found |= dict.fromkeys(matching)
    return list(found)


def _parse_methods(words: Sequence[str]) -> dict[str, str | None]:
    """`["ttame=DIR", "gradcam"]` as `{"ttame": "DIR", "gradcam": None}`."""
    found: dict[str, str | None] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals:
            resolve_method(name)
        elif not name or not source or name in METHODS:
            reason = (
                "has the name of a training-free method: rename the head" if name in METHODS else "is not NAME=DIR"
            )
            raise ValueError(f"`method` {word!r} {reason}; a trained head is given as ttame=heads/ttame.")
        if name in found:
            raise ValueError(f"`method` names {name!r} twice.")
        found[name] = source or None
    return found


def _paths(sources: Sequence[str], output: str | None) -> dict[str, Path]:
    """Where the picture of each image goes; two never to one file."""
    known = Image.registered_extensions()
    given = None if output is None else Path(output)
    stems = _distinct(_stem(source) for source in sources)
    if len(sources) == 1:
        if given is None or given.is_dir():
            path = Path(f"{stems[0]}-explained.png") if given is None else given / f"{stems[0]}.png"
        else:
            path = given
        if path.suffix.lower() not in known:
            raise ValueError(
                f"`output` {output!r} names no image format; write a name that ends in .png, or a folder."
            )
        if not path.parent.is_dir():
            raise FileNotFoundError(f"`output` {output!r} lies in {str(path.parent)!r}, which does not exist.")
        return {sources[0]: path}
    folder = given or Path(_FOLDER)
    if folder.suffix.lower() in known and not folder.is_dir():
        raise ValueError(f"--output {output!r} is one picture for {len(sources)} images; give a folder.")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"`output` {str(folder)!r} is a file; {len(sources)} images need a folder.")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"`output` {output!r} lies in {str(folder.parent)!r}, which does not exist.")
    return {source: folder / f"{stem}.png" for source, stem in zip(sources, stems)}


def _stem(source: str) -> str:
    if "://" in source:
        source = unquote(urlsplit(source).path).rstrip("/") or urlsplit(source).netloc
    return _plain(Path(source).stem) or "image"


def _plain(text: str) -> str:
    """As a part of a file name; file systems take 255 bytes."""
    return re.sub(r"[^\w+. -]+", "-", text).strip("-. ")[:60]


def _distinct(names: Iterable[str]) -> list[str]:
    """The names, a later one of two that are the same with a number."""
    found: dict[str, None] = {}
    for name in names:
        numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        found[next(one for one in numbered if one.casefold() not in found)] = None
    return list(found)


# ---------------------------------------------------------------------------------------------------------- explainers


def _load(arguments: ExplainCommand, asked: Mapping[str, str | None]) -> list[_Explainer]:
    """All of them on one classifier, which is in memory once."""
    model = arguments.model or next(filter(None, asked.values()), None)
    if model is None:
        raise ValueError("`model` is missing: give --model, a classifier or a head, or --method NAME=DIR, a head.")
    device, trusted = choose_device(arguments.device), arguments.trust_remote_code
    pipe = load_pipeline(
        model, revision=arguments.revision, device=device, trust_remote_code=trusted, **arguments.classes
    )
    explainers = []
    for name, source in asked.items():
        own = pipe
        if source is not None and source == model and isinstance(pipe.head, ExplainerPreTrainedModel):
            pass  # loaded already
        elif source is not None:
            head = AutoModelForSaliency.from_pretrained(source, classifier=pipe.classifier, trust_remote_code=trusted)
            own = load_pipeline(head, device=device)
        explainers.append(_Explainer(name, own, name if source is None else None, {}))
    explainers = explainers or [_Explainer(None, pipe, None, {})]
    options = {name: dict(values) for name, values in arguments.method_options.items()}
    layer = None if arguments.layer is None else parse_value(arguments.layer)
    named = [one.name or one.method or _default(one.pipe) for one in explainers]
    for name in options:
        if name not in named:
            raise ValueError(f"`method_option` names {name!r}, which is not shown: {', '.join(filter(None, named))}.")
    if layer is not None and not any(one.method or one.pipe.head is None for one in explainers):
        raise ValueError(
            "`layer` is an option of training-free methods; a trained head reads the layers it was made for."
        )
    chosen = []
    for one, name in zip(explainers, named):
        takes_layer = layer is not None and (one.method is not None or one.pipe.head is None)
        values = {"layer": layer} if takes_layer else {}
        chosen.append(_Explainer(one.name, one.pipe, one.method, {**values, **options.get(name, {})}))
    return chosen


def _default(pipe: SaliencyPipeline) -> str:
    """The explainer where nobody names one."""
    return default_method(pipe.classifier)[0] if pipe.head is None else pipe.head.config.model_type


# ------------------------------------------------------------------------------------------------------- what is drawn


def _sheet(
    image: Image.Image, names: Sequence[str], explained: Sequence[Explanations], arguments: ExplainCommand
) -> Image.Image:
    """One method: its classes side by side. Several: side by side, a row for each class."""
    if len(names) == 1:
        shown, columns = [list(explained[0])], list(names) * len(explained[0])
    else:
        shown, columns = [list(row) for row in zip(*explained)], list(names)
    # as wide as asked for, also where the image is narrow
    room = max(LEAST_ROOM, min(1.0, image.width / image.height)) * (1 + len(columns))
    return explanation_sheet(
        image,
        [[one["saliency_map"] for one in row] for row in shown],
        columns,
        [[one.caption for one in row] for row in shown],
        crop=explained[0][0].crop if arguments.frame else None,
        cell_size=max(_LEAST_CELL, math.ceil(arguments.width / room)),
        legend=bool(arguments.legend),
        colormap=arguments.colormap,
        alpha=arguments.opacity,
        grayscale=arguments.grayscale,
        signed=arguments.signed,
    )


def _save_maps(
    path: Path, names: Sequence[str], explained: Sequence[Explanations], arguments: ExplainCommand
) -> list[list[dict[str, str]]]:
    """Every map as `STEM-METHOD-CLASS`, beside the picture, in the formats asked for."""
    stems = iter(
        _distinct(
            f"{path.stem}-{_plain(name)}-{_plain(short_label(one['label'])).replace(' ', '-')}"
            for name, result in zip(names, explained)
            for one in result
        )
    )
    written: list[list[dict[str, str]]] = []
    for result in explained:
        written.append([])
        for one, stem in zip(result, stems):
            values = one["saliency_map"]
            files = {kind: str(path.with_name(f"{stem}.{kind}")) for kind in arguments.save_map}
            written[-1].append(files)
            if "npy" in files:
                np.save(buffer := io.BytesIO(), values)
                write_atomically(Path(files["npy"]), buffer.getvalue())
            if "png" in files:
                scaled = (values + 1) / 2 if one.signed else values
                save_image(Image.fromarray((scaled * 65535).round().astype(np.uint16)), files["png"])
    return written


def _describe(
    source: str,
    path: Path,
    names: Sequence[str],
    explained: Sequence[Explanations],
    maps: Sequence[Sequence[Mapping[str, str]]],
) -> dict[str, Any]:
    known = ("method", "method_options", "label", "score")
    return {
        "image": source,
        "picture": str(path),
        "crop": explained[0][0].crop,
        "explanations": [
            {"name": name, **{key: one[key] for key in known}, "maps": dict(files)}
            for name, result, written in zip(names, explained, maps)
            for one, files in zip(result, written)
        ],
    }
