"""What the page of the demo shows, without the page: explainers, classes to choose and to search, maps, files."""

from __future__ import annotations

import inspect
import os
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hf_explain.apps.demo_link import View
from hf_explain.apps.demo_removal import Removal, remove
from hf_explain.io.images import load_rgb
from hf_explain.io.labels import short_label
from hf_explain.io.paths import base_name, public_name
from hf_explain.io.pictures import OPACITY, overlay, save_image
from hf_explain.io.processes import choose_device
from hf_explain.pipeline import SaliencyPipeline, load_pipeline
from hf_explain.registry import METHOD_ENTRIES, AutoModelForSaliency, default_method, methods_for
from hf_explain.tensors.options import DTYPES
from hf_explain.tensors.scalars import check_choice


PHOTOGRAPHS = [Path(__file__).with_name("photographs") / f"{name}.jpg" for name in ("coffee", "cat", "rocket")]
MAX_COMPARED = 3
TOP_K = 5
MAX_PIXELS = 24 * 10**6  # a photograph of 6000 by 4000; one of 132 megapixels took 1.7 GB
MAX_SIDE = 1600  # larger pictures are shrunk: the classifier sees far fewer pixels, and maps are drawn at this size
_MATCHES = 12  # classes a search lists
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow's others are rare, and some start programs
_REMEMBERED = 12  # maps kept per visitor, so that a slider or a second explainer does not compute the first again


@dataclass(frozen=True)
class Choice:
    """One entry of the list of explainers: a trained head, or a training-free method on a classifier."""

    name: str
    pipe: SaliencyPipeline
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method
    is_default: bool = False  # for this classifier

    @property
    def kind(self) -> str:
        """What it is, as a key of [`~hf_explain.io.colors.KINDS`]."""
        if self.method is None:
            return "trained head"
        return "control" if METHOD_ENTRIES[self.method].control else "training-free method"

    @property
    def about(self) -> str:
        """How it works, in a sentence."""
        if self.method is None:
            return "a head that was trained to explain this classifier, in one pass"
        return METHOD_ENTRIES[self.method].summary

    @property
    def takes_percentile(self) -> bool:
        """Whether it is a head whose map depends on a percentile (SCAN)."""
        if self.method is not None or self.pipe.head is None:
            return False
        return "percentile" in inspect.signature(self.pipe.head.forward_head).parameters


@dataclass
class Explained:
    """
    One map: who made it, of which class, with the classifier's probability, at the size of the picture; and what
    removing its pixels does to that probability, once that is measured of `seen`, the arguments of
    [`~hf_explain.apps.demo_removal.remove`].
    """

    choice: Choice
    label: str
    score: float
    saliency: Image.Image
    image: Image.Image
    seen: tuple[Any, ...]
    removal: Removal | None = None

    @property
    def is_unmeasured(self) -> bool:
        """Whether removing pixels would say something that is not known yet; a regression has no probability."""
        config = self.choice.pipe.classifier.config
        return self.removal is None and getattr(config, "problem_type", None) != "regression"

    @property
    def explainer(self) -> str:
        return self.choice.name

    @property
    def caption(self) -> str:
        return f"{short_label(self.label)} {self.score:.1%}"


@dataclass
class Visit:
    """What one visitor has on the page."""

    image: Image.Image | None = None
    target: int | None = None  # here, as events of the page overtake one another and carry what it showed back then
    scores: dict[int, list[float]] = field(default_factory=dict)  # by the id of the classifier
    maps: dict[tuple, Explained] = field(default_factory=dict)
    shown: list[Explained] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # of what was drawn, the latest last
    problem: str | None = None  # with a picture that the page has yet to take away
    view: View = field(default_factory=View)  # whose class is one that a link asks for, until there is a picture
    uploads: set[str] = field(default_factory=set)  # files that are this visitor's
    away: bool = False  # whether the page is closed


# ------------------------------------------------------------------------------------------------------------- classes


def class_choices(
    id2label: Mapping[int, str],
    scores: Sequence[float] | None = None,
    query: str = "",
    limit: int | None = None,
    keep: int | None = None,
) -> list[tuple[str, int]]:
    """
    Classes to choose from: the most probable ones, or those that a search finds.

    Args:
        id2label (`Mapping[int, str]`): Every class.
        scores (`Sequence[float]`, *optional*): The classifier's probability of every class.
        query (`str`, *optional*): Words that must all be in the label, in any case and order, or a class index. Labels
            in which the query starts a word come first, then the more probable.
        limit (`int`, *optional*): How many at most; 5 without a query and 12 with one.
        keep (`int`, *optional*): A class that is listed whatever the query, because it is the chosen one.

    Returns:
        `list[tuple[str, int]]`: `(caption, class index)`; the caption has the probability where there is one.
    """
    query = " ".join(query.split()).casefold()
    limit = limit or (_MATCHES if query else TOP_K)
    found = list(id2label)
    if query:
        found = [
            index
            for index, label in id2label.items()
            if all(word in label.casefold() for word in query.split()) or query == str(index)
        ]

    def order(index: int):
        label = id2label[index].casefold()
        starts = query == str(index) or re.search(rf"(?<!\w){re.escape(query)}", label) is not None
        return not starts, -scores[index] if scores is not None else 0.0, index

    found = sorted(found, key=order)[:limit]
    if keep is not None and keep in id2label and keep not in found:
        found.append(keep)
    if scores is None:
        return [(id2label[index], index) for index in found]
    return [(f"{id2label[index]} ({scores[index]:.1%})", index) for index in found]


# ---------------------------------------------------------------------------------------------------------- explainers


class Demo:
    """
    The page's model: loads explainers, scores classes, makes maps. It knows nothing of the page itself.

    Args:
        models (`str`, `os.PathLike` or a list of them): Trained heads and plain classifiers, as directories or Hub
            ids, all of the same classes. Heads of one classifier share it in memory.
        classifier (`str` or `os.PathLike`, *optional*): Used instead of the classifier that the heads name.
        device (`str`, *optional*): Torch device; the accelerator where there is one, or else the CPU.
        dtype (`str`, *optional*, defaults to `"float32"`): As for [`SaliencyPipeline`].
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code of the repositories may run.
        candidate_labels, hypothesis_template (*optional*): Classes of a model that matches images with texts, as for
            [`SaliencyPipeline`].

    Raises:
        ValueError: If there is no model, the models' classes differ, or one cannot be used.
        OSError: If one does not exist or cannot be downloaded.
    """

    def __init__(
        self,
        models: str | os.PathLike | Sequence[str | os.PathLike],
        classifier: str | os.PathLike | None = None,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str | None = None,
    ):
        self.dtype = check_choice(dtype, "dtype", DTYPES)
        names = as_names(models)
        self._lock = threading.Lock()  # one explanation at a time: several would need so many times the memory
        pipes = {name: _load(name, classifier, choose_device(device), trust_remote_code) for name in names}
        known: dict[tuple, Any] = {}
        for pipe in pipes.values():
            if pipe.head is None and (candidate_labels is not None or hypothesis_template is not None):
                pipe.classifier = pipe.classifier.for_texts(candidate_labels, hypothesis_template)
            key = _identity(pipe.classifier)
            shared = known.setdefault(key, pipe.classifier)
            if pipe.head is not None and shared is not pipe.classifier:
                pipe.head.attach(shared)
                pipe.classifier = shared
        first_name, first = next(iter(pipes.items()))
        self.id2label = first.classifier.id2label
        for name, pipe in pipes.items():
            if pipe.classifier.id2label != self.id2label:
                raise ValueError(
                    f"`models` {name!r} and {first_name!r} have different classes, so one class cannot be explained "
                    "with both; start one demo for each."
                )
        self.explainers = _list_explainers(pipes)
        heads = [name for name, explainer in self.explainers.items() if explainer.method is None]
        plain = [name for name, explainer in self.explainers.items() if explainer.is_default]
        # and beside it another kind of method where there is no head, and what chance does
        chance = [name for name, explainer in self.explainers.items() if explainer.method == "random"]
        free = [name for name, one in self.explainers.items() if one.method in ("gradcam", "input_x_gradient")]
        own = heads + plain if heads else [*plain, *(name for name in free if name not in plain)][: MAX_COMPARED - 1]
        self.default = [*own, *chance][:MAX_COMPARED]
        self.title = " and ".join(dict.fromkeys(_tail(pipe.classifier.name_or_path) for pipe in pipes.values()))

    def open(self, source: Any) -> Image.Image:
        """
        Open a picture, shrunk to 1,600 pixels on its longer side where it is larger.

        Raises:
            ValueError: If a file is in no format of the web, or has more than 24 million pixels by its header.
            ValueError, FileNotFoundError, TypeError: As [`~hf_explain.io.images.load_rgb`]; the message names the file
                without its directory, which is the server's business.
        """
        if isinstance(source, (str, os.PathLike)) and os.path.isfile(source):
            _check_header(source)
        try:
            image = load_rgb(source).copy()  # shrunk in place
        except (ValueError, OSError) as error:
            path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
            raise type(error)(str(error).replace(path, Path(path).name) if path else str(error)) from error
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        return image

    def check(self, chosen: Sequence[str] | None) -> list[Choice]:
        """
        The chosen explainers.

        Raises:
            ValueError: If there are none, more than three, or one does not exist.
        """
        if not isinstance(chosen, (list, tuple)) or not all(isinstance(name, str) for name in chosen):
            chosen = ()
        chosen = list(dict.fromkeys(chosen))
        if not chosen:
            raise ValueError("No explainer is chosen; choose one, or two or three to compare them.")
        if len(chosen) > MAX_COMPARED:
            raise ValueError(f"{len(chosen)} explainers are chosen; at most {MAX_COMPARED} fit side by side.")
        for name in chosen:
            if name not in self.explainers:
                raise ValueError(f"There is no explainer {name[:100]!r}; there are {', '.join(self.explainers)}.")
        return [self.explainers[name] for name in chosen]

    def scores(self, visit: Visit, explainer: Choice) -> list[float]:
        """The classifier's probability of every class, computed once per picture and classifier."""
        pipe = explainer.pipe
        key = id(pipe.classifier)
        if key not in visit.scores:
            with self._lock, torch.no_grad():
                pixel_values = pipe.preprocess(visit.image)["pixel_values"].to(pipe.device)
                visit.scores[key] = pipe.scores(pipe.classifier(pixel_values)[0].cpu()).tolist()
        return visit.scores[key]

    def explain(
        self, visit: Visit, chosen: Sequence[str] | None, target: int | None = None, percentile: float | None = None
    ) -> list[Explained]:
        """
        Explain the visitor's picture.

        Args:
            visit ([`Visit`]): With its picture; remembers the maps.
            chosen (`Sequence[str]`): One to three names of `explainers`.
            target (`int`, *optional*): The class; the most probable one when not given.
            percentile (`float`, *optional*): For heads that take one.

        Returns:
            `list[Explained]`, as chosen.

        Raises:
            ValueError: If no picture is there, or nothing that exists is chosen.
        """
        explainers = self.check(chosen)
        if visit.image is None:
            raise ValueError("There is no picture yet; upload one or pick an example.")
        if target is None:
            scores = self.scores(visit, explainers[0])
            target = max(range(len(scores)), key=scores.__getitem__)
        shown = []
        for explainer in explainers:
            options = dict(explainer.options)
            if explainer.takes_percentile and percentile is not None:
                options["percentile"] = float(percentile)
            key = (explainer.name, target, *options.values())
            if key not in visit.maps:
                with self._lock:
                    found = self._explain(explainer, visit.image, target, options)
                while len(visit.maps) >= _REMEMBERED:
                    visit.maps.pop(next(iter(visit.maps)))
                visit.maps[key] = found
            shown.append(visit.maps[key])
        visit.shown = shown
        return shown

    def _explain(self, choice: Choice, image: Image.Image, target: int, options: Mapping[str, Any]) -> Explained:
        pipe = choice.pipe
        inputs = pipe.preprocess(image, target=target)
        outputs = pipe.forward(dict(inputs), method=choice.method, dtype=self.dtype, **options)
        # at the classifier's own resolution, where pixels are removed
        seen = pipe, inputs["pixel_values"], outputs["saliency"][0], outputs["logits"][0], target
        result = pipe.postprocess(outputs)[0]
        return Explained(choice, result["label"], result["score"], result["saliency"], image, seen)

    def measure(self, visit: Visit) -> None:
        """Remove pixels by the maps that are shown, but for those of a regression, which gives no probabilities."""
        for one in visit.shown:
            with self._lock:
                if one.is_unmeasured:
                    one.removal = remove(*one.seen)


def download_files(
    directory: str | os.PathLike, image: Image.Image, explained: Explained, alpha: float = OPACITY
) -> tuple[str, str]:
    """
    Write what a visitor takes home.

    Args:
        directory (`str` or `os.PathLike`): An existing folder.
        image (`PIL.Image.Image`): The picture.
        explained ([`Explained`]): The map of it.
        alpha (`float`, *optional*, defaults to 0.8): Opacity of the overlay.

    Returns:
        `tuple[str, str]`: Paths of the map (greyscale PNG, white where most salient) and of the overlay (PNG), named
        after the class and the explainer.
    """
    stem = re.sub(r"[^a-z0-9+]+", "-", f"{short_label(explained.label)}-{explained.explainer}".casefold()).strip("-")
    stem = stem[:100] or "class"  # file systems take 255 bytes
    map_path, overlay_path = Path(directory, f"{stem}-map.png"), Path(directory, f"{stem}-overlay.png")
    save_image(explained.saliency, map_path)
    save_image(overlay(image, explained.saliency, alpha=alpha), overlay_path)
    return str(map_path), str(overlay_path)


def example_files(examples: Sequence[str | os.PathLike] | None = None) -> list[str]:
    """
    Pictures to try, where one has none at hand.

    Args:
        examples (`Sequence[str or os.PathLike]`, *optional*): Own picture files, and folders of them. When not given,
            the photographs that come with the package; `SOURCES.md` beside them says whose they are.

    Returns:
        `list[str]`: Paths.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder holds no picture.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in ("PNG", "JPEG", "WEBP")}
    paths: list[str] = []
    for entry in map(Path, examples or PHOTOGRAPHS):
        found = [entry] if entry.is_file() else []
        if entry.is_dir():
            found = sorted(path for path in entry.iterdir() if path.suffix.lower() in suffixes)
        if not found:
            raise FileNotFoundError(
                f"`examples` {str(entry)!r} is neither a picture nor a folder with PNG, JPEG or WebP files."
            )
        paths += map(str, found)
    return paths


# ------------------------------------------------------------------------------------------------------------- loading


def _check_header(path: str | os.PathLike) -> None:
    """Refuse a picture before it is unpacked: a file of some kilobytes can hold gigabytes."""
    name = Path(path).name
    too_large = f"more than the limit of {MAX_PIXELS // 10**6} megapixels; make it smaller."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()  # without which not all plugins are known
            formats = [name for name in FORMATS if name in Image.OPEN]
            with Image.open(path, formats=formats) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise ValueError(f"The image {name!r} has {too_large}") from None
    except Exception as error:  # decoders raise whatever they like
        raise ValueError(f"The image {name!r} cannot be read: it must be one of {', '.join(FORMATS)}.") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"The image {name!r} has {width}x{height} pixels, {too_large}")


def as_names(models) -> list[str]:
    models = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    names = list(dict.fromkeys(os.fspath(name) for name in models))
    if not names:
        raise ValueError("`models` is empty; give at least one head or classifier.")
    return names


def _load(
    name: str, classifier: str | os.PathLike | None, device: torch.device, trust_remote_code: bool = False
) -> SaliencyPipeline:
    if classifier is None:
        return load_pipeline(name, device=device, trust_remote_code=trust_remote_code)
    head = AutoModelForSaliency.from_pretrained(name, classifier=classifier, trust_remote_code=trust_remote_code)
    return load_pipeline(head, device=device)


def _identity(classifier) -> tuple:
    """The same for two loads of one classifier; different for everything that is not known to be the same."""
    commit = getattr(classifier.config, "_commit_hash", None)
    name = classifier.name_or_path
    return (name, commit, classifier.texts) if name and (commit or os.path.isdir(name)) else (id(classifier),)


def _list_explainers(pipes: Mapping[str, SaliencyPipeline]) -> dict[str, Choice]:
    tails = [_tail(name) for name in pipes]
    explainers = {}
    for name, pipe in pipes.items():
        if pipe.head is not None:
            shown = _tail(name) if tails.count(_tail(name)) == 1 else name
            explainers[shown] = Choice(shown, pipe)
    classifiers: dict[int, tuple[str, SaliencyPipeline]] = {}
    for name, pipe in pipes.items():
        classifiers.setdefault(id(pipe.classifier), (name, pipe))
    for name, pipe in classifiers.values():
        owner = f" ({_tail(pipe.classifier.name_or_path or name)})" if len(classifiers) > 1 else ""
        default, options = default_method(pipe.classifier)
        for method in methods_for(pipe.classifier):
            chosen = method == default
            explainers[method + owner] = Choice(method + owner, pipe, method, options if chosen else {}, chosen)
    return explainers


def _tail(name: str) -> str:
    return base_name(public_name(name) or name)
