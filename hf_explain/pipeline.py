"""`pipeline("saliency")`: a picture in, a map of where the classifier looked out, on the original image."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import Pipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.precision import Precision
from hf_explain.classifiers.targets import is_several, resolve_target
from hf_explain.classifiers.zero_shot import DEFAULT_TEMPLATE, check_labels, check_template
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel, check_output
from hf_explain.io.datasets import leave_encoded
from hf_explain.io.downloads import whole_downloads
from hf_explain.io.explanations import Explanation, Explanations
from hf_explain.io.image_processor import (
    check_image_processor,
    load_image_processor,
    to_picture,
    to_pixel_values,
)
from hf_explain.io.images import is_image_cell, load_rgb
from hf_explain.io.transformers_names import _BaseAutoModelClass, dynamic_module_utils
from hf_explain.methods.common import class_probabilities
from hf_explain.registry import (
    HEADS,
    METHOD_ENTRIES,
    check_method_options,
    default_method,
    load_model,
    method_allows_bfloat16,
    resolve_method,
)
from hf_explain.tensors.checks import checks_together, refuse
from hf_explain.tensors.maps import CropGeometry, min_max, positive_part, signed_maps, uncrop
from hf_explain.tensors.options import DTYPES
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.scalars import check_choice, check_count


_Texts = tuple[tuple[str, ...], str]  # candidate labels and template


class SaliencyPipeline(Pipeline):
    """
    Where an image classifier looked.

    Works with a trained head (`LCamForSaliency`, ...) and with any plain image classifier, which is explained by a
    training-free method. A model that matches images with texts, such as CLIP, is a classifier whose classes are the
    texts asked for; one that is not of Transformers comes as a [`FrozenClassifier`] with an image processor.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import hf_explain

    >>> pipe = pipeline("saliency", model="me/lcam-resnet-50")
    >>> pipe("tench.jpg", top_k=2)
    [{"label": "tench", "score": 0.93, "saliency": <PIL "L">, "saliency_map": <float32 (H, W) in [0, 1]>}, ...]
    ```
    """

    _load_image_processor = None  # a missing one becomes `None`; then the classifier's own is used
    _load_processor = False  # type: ignore[assignment]  # `None` in the base class, where it means "if there is one"
    _load_feature_extractor = False  # type: ignore[assignment]  # likewise
    _load_tokenizer = False  # type: ignore[assignment]  # likewise

    def __init__(self, *args, **kwargs):
        if isinstance(failed := kwargs.get("model"), _NotLoaded):
            raise failed.error
        if not args and kwargs.get("model") is None:
            raise ValueError(
                "`model` is missing: give a trained head or an image classifier, as in "
                "pipeline('saliency', model='microsoft/resnet-50')."
            )
        super().__init__(*args, **kwargs)
        if isinstance(self.model, ExplainerPreTrainedModel):
            if self.model.backbone is None:
                raise ValueError(
                    "The head has no classifier; load it with from_pretrained or call attach(classifier)."
                )
            self.head: ExplainerPreTrainedModel | None = self.model
            self.classifier: FrozenClassifier = self.model.backbone
        elif isinstance(self.model, FrozenClassifier):
            self.head, self.classifier = None, self.model
        else:
            self.head = None
            self.classifier = FrozenClassifier(
                self.model, image_processor=self.image_processor, tokenizer=self.tokenizer
            )
        if self.image_processor is None:
            self.image_processor = self.classifier.image_processor
        if self.image_processor is None and self.classifier.name_or_path:
            # Transformers passes over every error; what the Hub has of it lies in the cache by now
            commit = getattr(self.classifier.config, "_commit_hash", None)
            self.image_processor = load_image_processor(self.classifier.name_or_path, commit, local_files_only=True)
        if self.image_processor is None:
            raise ValueError(
                f"{self.classifier.name_or_path or self.classifier.model_class!r} has no image processor "
                "beside it (preprocessor_config.json); pass pipeline(..., image_processor=...)."
            )
        check_image_processor(self.image_processor)  # `pipeline()` loads it by itself
        self.precision = Precision()
        if "candidate_labels" in self._preprocess_params and self.head is None:
            template = self._preprocess_params.get("hypothesis_template")
            self.classifier = self.classifier.for_texts(self._preprocess_params["candidate_labels"], template)

    # ------------------------------------------------------------------ parameters

    def _sanitize_parameters(
        self,
        target=None,
        top_k: int | None = None,
        method: str | None = None,
        signed: bool | None = None,
        against: int | str | None = None,
        on_error: str | None = None,
        timeout: float | None = None,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str | None = None,
        dtype: str | None = None,
        **options,
    ):
        preprocess: dict[str, Any] = {}
        forward: dict[str, Any] = {}
        if target is not None:
            preprocess["target"] = target
        if timeout is not None:
            preprocess["timeout"] = timeout
        if candidate_labels is not None:
            preprocess["candidate_labels"] = check_labels(candidate_labels)
        if hypothesis_template is not None:
            preprocess["hypothesis_template"] = check_template(hypothesis_template)
        if on_error is not None:
            preprocess["on_error"] = check_choice(on_error, "on_error", ("raise", "return"))
        if top_k is not None:
            forward["top_k"] = check_count(top_k, "top_k")
        if method is not None:
            resolve_method(method)
            forward["method"] = method
        if dtype is not None:
            forward["dtype"] = check_choice(dtype, "dtype", DTYPES)
        if signed is not None:
            forward["signed"] = bool(signed)
        if against is not None:
            forward["against"] = against
        forward.update(options)
        return preprocess, forward, {}

    def __call__(self, inputs, target=None, **kwargs):  # type: ignore[override]  # names its own parameters
        """
        Explain one image or many.

        Args:
            inputs (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor`, a list of them,
                a generator, a `datasets` column or a `datasets` dataset): Images: paths, http(s) URLs, the content of
                a file, pictures in any mode, or arrays as for [`~hf_explain.io.images.load_rgb`]. Also dictionaries
                `{"image": ..., "target": ...}`, for streams in which every image has its own target. A directory
                stands for the list of all pictures below it, sorted by their paths.
            target (`int`, `str` or a list of them, *optional*): The explained class, by index or label name. For one
                image, a list asks for several classes; for a list of images, a list gives one entry per image (which
                may itself be a list). The classifier's own `top_k` classes when not given. Of a model that matches
                images with texts, without `candidate_labels`, any text, as it is; the texts asked for of an image are
                its classes then.
            top_k (`int`, *optional*, defaults to 1): How many of the classifier's top classes to explain, where no
                target is given.
            method (`str`, *optional*): A training-free method of `hf_explain.registry.METHODS`. When not given, the
                trained head, or for a plain classifier the default method of its architecture
                ([`~hf_explain.registry.default_method`]).
            signed (`bool`, *optional*, defaults to `False`): Maps in [-1, 1]: above 0 what speaks for the class, below
                what speaks against it; each is scaled by its largest magnitude. For methods whose maps have a sign.
            against (`int` or `str`, *optional*): A second class, by index or label name: the map is that of the
                difference of the two classes' scores, what speaks for the one rather than for the other. For methods
                that are linear in the score.
            on_error (`str`, *optional*, defaults to `"raise"`): `"return"` puts `[{"error": message}]` in the place of
                an image that cannot be read and goes on with the others.
            timeout (`float`, *optional*): Seconds a URL may take altogether; 60 when not given.
            candidate_labels (list of `str`, *optional*): The classes of a model that matches images with texts, as for
                Transformers' `pipeline("zero-shot-image-classification")`, which gives them the same scores.
            hypothesis_template (`str`, *optional*, defaults to `"This is a photo of {}."`): What such a model reads of
                each of them; a text in `target` alone is put into it only where it is given.
            dtype (`str`, *optional*, defaults to `"float32"`): Precision of the classifier's passes, for explainers
                whose maps were measured to be as good in bfloat16; maps are float32 whatever it is. `"auto"` is
                `"bfloat16"` where the device has it and the first batch gets the same answers; `precision` of the
                pipeline says what was taken and why.
                (To load the weights themselves in another precision, and so with every explainer: the `dtype` of
                Transformers' `pipeline()`.)
            batch_size (`int`, *optional*, defaults to 1): Images per forward pass.
            num_workers (`int`, *optional*): Processes that load images.
            kwargs: Options of the method (`layer=...`) or head (`percentile=...` of SCAN).

        Returns:
            `list[dict]` for one image, one dictionary per explained class: `label` (`str`), `score` (`float`, the
            classifier's probability), `saliency` (`PIL.Image.Image` in mode L) and `saliency_map` (`numpy.ndarray` of
            `float32`, shape `(height, width)` of the original image, in [0, 1] or, if `signed`, in [-1, 1], 0 where
            the classifier's crop did not reach), `method` (`str`, the method, or the head's `model_type`) and its
            `method_options` (`dict`). A list of such lists for several images, an iterator over them for generators
            and datasets. In a notebook the dictionaries of one image show themselves as a picture
            ([`~hf_explain.io.explanations.Explanations`], whose `picture()` makes it).

        Raises:
            ValueError: If a target, method or option does not exist, or an image cannot be read.
            FileNotFoundError: If a path does not exist.
        """
        if isinstance(inputs, (str, os.PathLike)) and os.path.isdir(inputs):
            inputs = pictures_below(inputs)
        if isinstance(inputs, (str, bytes, bytearray, dict, Image.Image, os.PathLike)):
            return super().__call__(inputs, target=target, **kwargs)
        if isinstance(inputs, (np.ndarray, torch.Tensor)):
            if inputs.ndim != 4:
                return super().__call__(inputs, target=target, **kwargs)
            inputs = list(inputs)
        lazy = isinstance(inputs, Dataset) or _is_datasets_dataset(inputs)
        if _is_datasets_dataset(inputs):
            inputs = _image_column(inputs)
        if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
            per_image = is_several(target)
            if per_image and len(target) != len(inputs):
                raise ValueError(
                    f"`target` has {len(target)} entries for {len(inputs)} images; give one class for all of them or "
                    "one entry per image (a list, for several classes)."
                )
            items = _Items(inputs, target if per_image else None)
            results = super().__call__(items, target=None if per_image else target, **kwargs)
            return results if lazy else list(results)
        if hasattr(inputs, "__iter__"):
            # a generator's length is unknown: a list of targets means several classes of each image
            return super().__call__((item for item in inputs), target=target, **kwargs)
        raise TypeError(f"`inputs` must be an image or many images, got {type(inputs).__name__}.")

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """
        Save the head or the classifier, and the image processor; `pipeline("saliency", model=save_directory)` loads
        them again.

        Args:
            save_directory (`str` or `os.PathLike`): Directory; created where missing.
            kwargs: As for the model's own `save_pretrained`.

        Raises:
            NotADirectoryError: If it is a file.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"`save_directory` {os.fspath(save_directory)!r} is a file; give a directory.")
        # not as the base class, which names this pipeline in the model's configuration: loading it would then ask for
        # trust_remote_code, and for a class of Transformers that does not exist
        self.model.save_pretrained(save_directory, **kwargs)
        processor: Any = self.image_processor
        processor.save_pretrained(save_directory, **kwargs)
        if self.head is None and self.classifier.takes_texts:
            self.classifier.tokenizer.save_pretrained(save_directory, **kwargs)

    # ------------------------------------------------------------------ one image in

    def preprocess(  # type: ignore[override]  # names its own parameters
        self, inputs, target=None, timeout=None, on_error="raise", candidate_labels=None, hypothesis_template=None
    ) -> dict[str, Any]:
        if isinstance(inputs, dict) and not is_image_cell(inputs):
            if "image" not in inputs:
                raise ValueError(f"An input dictionary needs the key 'image', got the keys {sorted(inputs)}.")
            target = inputs.get("target", target)
            inputs = inputs["image"]
        error, source = "", inputs
        try:
            image = load_rgb(inputs, timeout=timeout)
            if isinstance(inputs, str) and "://" in inputs:
                source = image  # not to be fetched again when it is shown
        except (ValueError, TypeError, OSError) as problem:
            if on_error == "raise":
                raise
            error, image = str(problem), Image.new("RGB", (32, 32))
        pixel_values = to_pixel_values(self.image_processor, [image]).to(self.dtype)
        known = CropGeometry.from_processor(self.image_processor, (image.height, image.width)).crop_size
        if tuple(pixel_values.shape[-2:]) != known:
            raise ValueError(
                f"{type(self.image_processor).__name__} makes {tuple(pixel_values.shape[-2:])} pixels (height, width) "
                f"of an image of {(image.height, image.width)} and its settings say {known}, so where the image lies "
                "in it is not known; pass an image_processor= that resizes, crops or pads as it says."
            )
        texts, classes = self._resolve_targets(target, candidate_labels, hypothesis_template)
        return {
            "pixel_values": pixel_values,
            "texts": texts,
            "target": classes,
            "original_size": torch.tensor([[image.height, image.width]]),
            "error": error,
            "source": _Source(source),
        }

    def _resolve_targets(
        self, target, candidate_labels: tuple[str, ...] | None, hypothesis_template: str | None
    ) -> tuple[_Texts | None, tuple[int, ...] | None]:
        """
        The texts that are the classes of one image, `None` for the classifier's own classes; and those of the classes
        that are asked for, `None` for its top ones. Tuples: batches of them are lists.
        """
        count = len(target) if is_several(target) else 1
        if count == 0:
            raise ValueError("`target` is an empty list; leave it out for the classifier's own top classes.")
        given = candidate_labels is not None or hypothesis_template is not None
        if given and not self.classifier.takes_texts:
            self.classifier.for_texts(candidate_labels, hypothesis_template)  # says why not
        if given and self.head is not None:
            raise ValueError(
                "`candidate_labels` and `hypothesis_template` cannot be changed for a trained head, which explains "
                f"the {self.classifier.num_labels} texts it was trained for; leave them out, or give the model of "
                f"images and texts itself, {self.classifier.name_or_path!r}."
            )
        texts: _Texts | None = None
        if candidate_labels is not None:
            texts = candidate_labels, hypothesis_template or DEFAULT_TEMPLATE
        elif self.classifier.takes_texts and self.classifier.texts is None and target is not None:
            asked = list(target) if is_several(target) else [target]
            if not all(isinstance(one, str) and one.strip() for one in asked):
                raise ValueError(
                    "`target` must be a text, or a list of texts, where there are no `candidate_labels`, got "
                    f"{target!r}."
                )
            labels = tuple(dict.fromkeys(asked))
            return (labels, hypothesis_template or "{}"), tuple(labels.index(one) for one in asked)
        if target is None:
            if texts is None:
                self.classifier.check_texts()
            return texts, None
        names = self.classifier.id2label if texts is None else dict(enumerate(texts[0]))
        return texts, tuple(resolve_target(target, count, names, torch.device("cpu")).tolist())

    # ------------------------------------------------------------------ a batch through

    def _forward(  # type: ignore[override]  # names its own parameters
        self,
        model_inputs: dict[str, Any],
        method: str | None = None,
        top_k: int = 1,
        dtype: str = "float32",
        signed: bool = False,
        against: int | str | None = None,
        **options,
    ) -> dict[str, Any]:
        if dtype != self.precision.asked:
            self.precision = Precision(dtype)
        asked, texts = (
            values if isinstance(values, list) else [values]  # an image by itself comes without a list
            for values in (model_inputs["target"], model_inputs["texts"])
        )
        result: dict[str, list[Any]] = {}
        # images with the same texts have the same classifier and go through it together
        for each in dict.fromkeys(texts):
            rows = [row for row, own in enumerate(texts) if own == each]
            pixel_values = model_inputs["pixel_values"]
            pixel_values = pixel_values if len(rows) == len(texts) else pixel_values[rows]
            classifier = self.classifier if each is None else self.classifier.for_texts(*each)
            self.precision.choose(classifier, functools.partial(list, [pixel_values]))
            with self.precision.passes(classifier, self.allows_bfloat16(method)), checks_together():
                own = [asked[row] for row in rows]
                found = self._explain(classifier, pixel_values, own, method, top_k, options, signed, against)
            for field, values in found.items():
                places = result.setdefault(field, [None] * len(texts))
                for row, value in zip(rows, values, strict=True):
                    places[row] = value
        return {**result, **{name: model_inputs[name] for name in ("original_size", "error", "source")}}

    def stated_precision(self, method: str | None = None) -> dict[str, Any]:
        """`precision` of the last call's maps, made by the head or a method, as a protocol states it."""
        return self.precision.protocol(self.classifier, self.allows_bfloat16(method))

    def allows_bfloat16(self, method: str | None = None) -> bool:
        """Whether the maps of a method, or of the head where none is named, may be made in bfloat16."""
        if self.head is not None and method is None:
            return self.head.allows_bfloat16
        return method is not None and method_allows_bfloat16(method)  # the defaults take gradients

    def _explain(
        self,
        classifier: FrozenClassifier,
        pixel_values: torch.Tensor,
        asked: list[tuple[int, ...] | None],
        method: str | None,
        top_k: int,
        options: dict[str, Any],
        signed: bool,
        against: int | str | None,
    ) -> dict[str, Sequence[Any]]:
        """What is found of images that one classifier sees, a value for each."""
        head = self.head if method is None else None
        explain: Any  # each with options of its own
        if head is not None:
            used, explain = head.config.model_type, head.forward_head
        else:
            used, preset = default_method(classifier) if method is None else (method, {})
            explain, options = resolve_method(used), {**preset, **options}
        check_method_options(used if head is None else type(head).__name__, options, explain)
        if signed or against is not None:
            _check_sign(used, "signed" if against is None else "against")

        def explain_images(images: torch.Tensor, targets: torch.Tensor | None) -> SaliencyOutput:
            output = explain(classifier, images, targets, **options)
            if against is not None:
                other = classifier.resolve_target(against, len(images), output.logits)
                same = f"`against` {against!r} is the class that is explained; give another one."
                refuse((other == output.target).any(), lambda: ValueError(same))
                output.contributions = (
                    output.contributions - explain(classifier, images, other, **options).contributions
                )
                output.saliency = min_max(positive_part(output.contributions))
            return output

        own = [targets is None for targets in asked]
        features = None if head is None else head.forward_features(pixel_values)
        classes: list[Any] = list(asked)
        if top_k == 1 and all(own):
            # the own pass finds the top classes
            if features is None:
                outputs: list[SaliencyOutput] = [explain_images(pixel_values, None)]
            else:
                outputs = [check_output(explain(features, None, **options))]
            classes, rounds = outputs[0].target[:, None].tolist(), [list(range(len(asked)))]
        else:
            if any(own):
                logits = classifier(pixel_values) if features is None else features.logits
                top = logits.topk(min(top_k, classifier.num_labels), dim=1).indices.tolist()
                classes = [best if targets is None else targets for targets, best in zip(asked, top, strict=True)]
            # every image's first class in one batch, then the second classes of those that have one, and so on
            most = max(map(len, classes))
            rounds = [[row for row, each in enumerate(classes) if place < len(each)] for place in range(most)]
            outputs = []
            for place, rows in enumerate(rounds):
                targets = torch.tensor([classes[row][place] for row in rows], device=pixel_values.device)
                everyone = len(rows) == len(classes)
                if head is not None and features is not None:
                    seen = features if everyone else head.select_features(features, rows)
                    outputs.append(check_output(explain(seen, targets, **options)))
                else:
                    images = pixel_values if everyone else pixel_values[rows]
                    outputs.append(explain_images(images, targets))

        if signed:
            for output in outputs:
                assert output.contributions is not None  # checked above
                output.saliency = signed_maps(output.contributions)
        # from round by round to image by image
        places = [row for rows in rounds for row in rows]
        order = sorted(range(len(places)), key=places.__getitem__)
        counts, names = [len(each) for each in classes], classifier.id2label
        result: dict[str, Sequence[Any]] = {
            "label": [tuple(names[index] for index in each) for each in classes],
            "target": [torch.tensor(each) for each in classes],
            "logits": list(outputs[0].logits.cpu()),
            "method": [(used, options, signed)] * len(asked),
        }
        for field in ("saliency", "reconstruction", "explanation", "explanation_score"):
            if getattr(outputs[0], field) is not None:
                # to the CPU as a whole: the pipeline would bring image by image, and wait for each
                whole = torch.cat([getattr(output, field) for output in outputs]).cpu()
                result[field] = list(whole[order].split(counts))
        return result

    # ------------------------------------------------------------------ one image out

    def postprocess(  # type: ignore[override]  # takes no parameters
        self, model_outputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        if model_outputs["error"]:
            return [{"error": model_outputs["error"]}]
        geometry = CropGeometry.from_processor(self.image_processor, tuple(model_outputs["original_size"][0].tolist()))
        scores = self.scores(model_outputs["logits"][0])
        targets, labels = model_outputs["target"][0].tolist(), model_outputs["label"]
        labels = labels[0] if isinstance(labels, list) else labels  # an image of a batch comes without a list
        used = model_outputs["method"]
        method, options, signed = used[0] if isinstance(used, list) else used
        maps = uncrop(model_outputs["saliency"][0].float(), geometry).clamp_(-1 if signed else 0, 1)
        pictures = ((maps + 1 if signed else 2 * maps) * 127.5).round().to(torch.uint8).numpy()
        seen: tuple[int, int, int, int] | None = geometry.seen
        if seen == (0, 0, geometry.original_size[1], geometry.original_size[0]):
            seen = None
        results = Explanations()
        for place, index in enumerate(targets):
            result: dict[str, Any] = {
                "label": labels[place],
                "score": float(scores[index]),
                "saliency": Image.fromarray(pictures[place]),
                "saliency_map": maps[place].numpy(),
                "method": method,
                "method_options": dict(options),
            }
            if "reconstruction" in model_outputs:
                # SCAN's decoder gives pixels in [-1, 1]
                half = (0.5, 0.5, 0.5)
                result["reconstruction"] = to_picture(model_outputs["reconstruction"][0][place], half, half)
            if "explanation" in model_outputs:
                mean, std = self.classifier.image_mean, self.classifier.image_std
                result["explanation"] = to_picture(model_outputs["explanation"][0][place], mean, std)
                result["explanation_score"] = float(model_outputs["explanation_score"][0][place])
            results.append(Explanation(result, model_outputs["source"].value, seen, signed))
        return results

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """
        The scores that results give for one image's logits, of shape `(num_labels,)`: probabilities, or the outputs of
        a regression as they are, by the rules of Transformers' `pipeline("image-classification")`, and of
        `pipeline("zero-shot-image-classification")` where the classes are texts.
        """
        problem = getattr(self.classifier.config, "problem_type", None)
        if self.classifier.takes_texts and problem == "single_label_classification":
            return logits.float().softmax(-1)
        if problem == "regression":
            return logits.float()
        return logits.float().sigmoid() if problem == "multi_label_classification" else class_probabilities(logits)


def load_pipeline(
    model: str | os.PathLike[str] | ExplainerPreTrainedModel,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> SaliencyPipeline:
    """
    `pipeline("saliency")` as the commands load it: nobody is asked whether code of a repository may run.

    Args:
        model (`str`, `os.PathLike` or [`ExplainerPreTrainedModel`]): Directory or Hub id of a head or a classifier, or
            a head.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code of the repository may run.
        kwargs: device, pipeline_class, candidate_labels, hypothesis_template.

    Returns:
        [`SaliencyPipeline`], or an instance of `pipeline_class`.

    Raises:
        FileNotFoundError: If there is no such directory, or no such model on the Hub.
        OSError: If the Hub cannot be reached.
        ValueError: If its files cannot be used, or its own code would have to run.
    """
    if isinstance(model, ExplainerPreTrainedModel):
        return pipeline("saliency", model=model, **kwargs)  # type: ignore[call-overload]  # for Transformers' own tasks
    name = os.fspath(model)
    with whole_downloads(name, revision) as commit:
        return pipeline(  # type: ignore[call-overload]  # for Transformers' own tasks
            "saliency", model=name, revision=commit, trust_remote_code=trust_remote_code, **kwargs
        )


class HeadOrClassifier(_BaseAutoModelClass):
    """
    What Transformers' `pipeline()` loads a model with. It would try one class after another, take what lacks weights,
    and put the traceback of each into one message; so an error is kept until the pipeline itself can raise it.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        try:
            model = load_model(pretrained_model_name_or_path, **kwargs)
        except Exception as error:
            return _NotLoaded(error)
        return model.source_model if isinstance(model, FrozenClassifier) else model


@dataclass(frozen=True)
class _NotLoaded:
    """Stands for a model until the pipeline is made, which raises the error."""

    error: Exception
    device: torch.device = torch.device("cpu")  # `pipeline()` asks


@dataclass(frozen=True)
class _Source:
    """What an image was given as, which batching leaves alone."""

    value: Any


class _Items(Dataset):
    """Images with their own targets, fetched one by one, so that a column of 50,000 is never in memory at once."""

    def __init__(self, images, targets=None):
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = self.images[index]
        if self.targets is None:
            return image
        image = image["image"] if isinstance(image, dict) else image
        return {"image": image, "target": self.targets[index]}


def pictures_below(directory: str | os.PathLike[str]) -> list[str]:
    """The paths of all pictures in a directory and in those below it, sorted; a ValueError where there is none."""
    known = Image.registered_extensions()
    found = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(directory)
        for name in names
        if os.path.splitext(name)[1].lower() in known
    )
    if not found:
        raise ValueError(f"The directory {os.fspath(directory)!r} has no picture below it, by the names of its files.")
    return found


def _is_datasets_dataset(inputs) -> bool:
    return type(inputs).__module__.startswith("datasets.") and hasattr(inputs, "column_names")


def _image_column(dataset) -> Dataset | Iterator:
    """The one image column of a `datasets` dataset, lazily."""
    from datasets import Image as ImageFeature

    names = [name for name, feature in (dataset.features or {}).items() if isinstance(feature, ImageFeature)]
    if len(names) != 1:
        raise ValueError(
            f"`inputs` is a dataset with the image columns {names} among {list(dataset.features or {})}; pass the "
            "column itself, as dataset['image']."
        )
    dataset = leave_encoded(dataset, names)
    return dataset[names[0]] if hasattr(dataset, "__len__") else (row[names[0]] for row in dataset)


def _check_sign(method: str, argument: str) -> None:
    """A ValueError where a method, or a head by its `model_type`, cannot give what `signed` or `against` asks for."""
    able = [
        name for name, entry in METHOD_ENTRIES.items() if (entry.linear if argument == "against" else entry.signed)
    ]
    if argument == "signed":
        able += [name for name, head in HEADS.items() if head.model.signed]
    if method not in able:
        what = "are not linear in the class's score" if argument == "against" else "do not say what speaks against it"
        raise ValueError(f"`{argument}` cannot be had of {method!r}, whose maps {what}; what can: {', '.join(able)}.")


# `pipeline()` loads configurations and models before this package hears of them, and where nobody gave it
# `trust_remote_code`, it asks on the terminal whether code of the repository may run. With no time for an answer it
# refuses instead, and says what to pass.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

if "saliency" not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(
        "saliency",
        SaliencyPipeline,
        pt_model=(HeadOrClassifier,),
        default={"model": (None, None)},  # no classifier is everybody's: the pipeline itself asks for one
        type="image",
    )
