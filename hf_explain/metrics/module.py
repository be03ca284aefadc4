"""What the `evaluate` modules of the package share: presets, measuring, columns, and the protocol in every result."""

from __future__ import annotations

import inspect
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import evaluate
import torch

from hf_explain.metrics.engine import Classes, Predict
from hf_explain.metrics.number import Number, unknown_number
from hf_explain.metrics.photographs import Photographs
from hf_explain.metrics.statistics import CONFIDENCE, RESAMPLES, bootstrap_interval
from hf_explain.tensors.scalars import check_seed


# How a measurement runs, not what it measures: no part of its protocol
_EXECUTION = ("max_batch", "max_bytes")


class ColumnMetric(evaluate.Metric, ABC):
    """
    An `evaluate` metric that can also measure its own columns.

    `measure` gives columns, one entry per image; `add_batch` collects them, from any number of batches and processes;
    `compute` summarises them. The `config_name` given to `evaluate.load` is the name of a preset.

    A subclass names its columns in `_info` and defines `measure` and `_summarize`.

    Attributes:
        metric_name (`str`): Name of the module.
        numbers (`tuple[Number, ...]`): What the numbers of the result are called and which way they are better, in the
            order of a table; the first one stands for the result.
        main_result (`str`): Key of that one.
        higher_is_better (`bool`): Whether a larger one is a better map.
        presets (`dict`): Settings by name.
        allows_bfloat16 (`bool`): Whether its numbers were measured to stay as they are where the classifier's passes
            run in bfloat16.
    """

    metric_name: ClassVar[str]
    numbers: ClassVar[tuple[Number, ...]]
    main_result: ClassVar[str]
    higher_is_better: ClassVar[bool | None]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    allows_bfloat16: ClassVar[bool] = False

    data: Any  # of `evaluate.Metric`: the columns collected

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "numbers" in vars(cls):
            cls.main_result, cls.higher_is_better = cls.numbers[0].key, cls.numbers[0].higher_is_better
        elif "main_result" in vars(cls):  # a module of one's own may say no more than that
            cls.numbers = (unknown_number(cls.main_result, cls.higher_is_better),)

    def __init__(self, config_name: str | None = None, **kwargs: Any):
        preset = config_name or "default"
        if preset not in self.presets:
            raise ValueError(
                f"`config_name` {preset!r} is not a preset of {self.metric_name}; it has: {', '.join(self.presets)}."
            )
        self._measured: list[dict[str, Any]] = []
        super().__init__(config_name=preset, **kwargs)

    # --------------------------------------------------------------------------------------------------- measuring

    @abstractmethod
    def measure(self, *args: Any, **kwargs: Any) -> dict[str, list]:
        """Columns of one batch: one list per column (see `features`), one entry per image."""

    def _remember(self, measured: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        """Keep the protocol of a batch for the result it will be part of."""
        preset = plain(self.presets[self.config_name])
        changed = {name: value for name, value in plain(overrides).items() if value != preset.get(name)}
        protocol = {**self._stated(), **plain(measured), "overrides": changed}
        if protocol not in self._measured:
            self._measured.append(protocol)

    @property
    def protocol(self) -> dict[str, Any]:
        """
        How the columns since the last result were measured; while there are none, what the preset says.

        Pass it to `compute(protocol=...)` of an instance that only has the columns.

        Raises:
            ValueError: If they were measured in several ways.
        """
        if len(self._measured) > 1:
            first, other = self._measured[:2]
            name = next(name for name in {**first, **other} if first.get(name) != other.get(name))
            raise ValueError(
                f"{self.metric_name} was measured with {name}={first.get(name)!r} and with {name}={other.get(name)!r} "
                "since the last result: one result needs one protocol. Compute them apart, or say what holds with "
                "`compute(protocol=...)`."
            )
        return dict(self._measured[0]) if self._measured else self._stated()

    def _stated(self) -> dict[str, Any]:
        """The metric's name, the preset's name and its settings."""
        return {"metric": self.metric_name, "preset": self.config_name, **plain(self.presets[self.config_name])}

    # ----------------------------------------------------------------------------------------- columns to a result

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """
        Collect one image.

        Args:
            **columns: One entry of every column.
        """
        self.add_batch(
            **{"predictions": None if prediction is None else [prediction]},
            **{"references": None if reference is None else [reference]},
            **{name: [entry] for name, entry in columns.items()},
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> None:
        """
        Collect the columns of some images.

        Args:
            **columns: One list, array or tensor per column, one entry per image.
        """
        names = self._feature_names()
        if predictions is not None or references is not None:
            raise ValueError(
                f"{self.metric_name} has no `predictions` and `references`; its columns, which `measure` gives, are "
                f"{', '.join(names)}."
            )
        missing = [name for name in names if columns.get(name) is None]
        if missing:
            raise ValueError(
                f"{self.metric_name} misses the columns {', '.join(missing)}; `measure` gives all of them."
            )
        columns = {name: plain(column) for name, column in columns.items()}
        lengths = {name: len(columns[name]) for name in names}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.metric_name} needs one entry per image in every column, got {lengths}.")
        super().add_batch(**columns)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """
        The result over all images collected since the last one.

        Columns of other metrics are ignored, so that `evaluate.combine` can hand all columns to all of them.

        Args:
            protocol (`dict`, *optional*): What is known about how the columns were measured, where they were not
                measured by this instance; it goes over what the instance knows.
            confidence (`float`, *optional*, defaults to 0.95): Of the bootstrap intervals.
            resamples (`int`, *optional*, defaults to 1000): Data sets drawn for them.
            bootstrap_seed (`int`, *optional*, defaults to 0): Their seed.
            **kwargs: Columns, instead of (or after) `add_batch`.

        Returns:
            `dict`, or `None` on a process other than the first.
        """
        names = self._feature_names()
        # A list cannot be a misspelt option, so it is somebody else's column; anything else must be an option of ours
        known = {
            name: value
            for name, value in kwargs.items()
            if name in names or isinstance(value, (Mapping, str)) or not isinstance(value, Iterable)
        }
        options = {name: value for name, value in known.items() if name not in names}
        accepted = [name for name in inspect.signature(self._compute).parameters if name != "columns"]
        unknown = sorted(set(options) - set(accepted))
        if unknown:
            raise TypeError(
                f"`compute` of {self.metric_name} has no option `{unknown[0]}`; it has: {', '.join(accepted)}."
            )
        columns = {name: known[name] for name in names if known.get(name) is not None}
        if predictions is not None or references is not None or columns:
            self.add_batch(predictions=predictions, references=references, **columns)
        if self.writer is None:
            raise ValueError(
                f"{self.metric_name} has no images to compute from: call `add_batch(**metric.measure(...))` first, or "
                f"pass the columns {', '.join(names)}."
            )
        if options.get("protocol") is None:
            options["protocol"] = self.protocol
        else:
            known_here = self._measured[0] if len(self._measured) == 1 else self._stated()
            options["protocol"] = {**known_here, **plain(options["protocol"])}
        try:
            return super().compute(**options)
        finally:
            self._measured = []
            self._clear()

    def _clear(self) -> None:
        """After a `compute` that failed: forget the collected columns and remove their files."""
        if self.data is None:
            return
        self.data = self.buf_writer = None
        for lock, path in reversed(list(zip(self.filelocks or (), self.file_paths or ()))):
            if os.path.exists(path):
                os.remove(path)
            lock.release()

    def _compute(
        self,
        *,
        protocol: dict[str, Any],
        confidence: float = CONFIDENCE,
        resamples: int = RESAMPLES,
        bootstrap_seed: int = 0,
        **columns: list,
    ) -> dict[str, Any]:
        check_seed(bootstrap_seed, "bootstrap_seed")
        numbers = {name: self._numbers(name, column) for name, column in columns.items()}
        scalars, curves, stated = self._summarize(numbers, protocol)
        further = self.derived(columns, protocol)
        scalars = {**scalars, **{name: self._numbers(name, values) for name, values in further.items()}}
        table = torch.stack(list(scalars.values()), dim=1)
        low, high = bootstrap_interval(table, confidence, resamples, bootstrap_seed)
        result: dict[str, Any] = {}
        for place, (name, mean) in enumerate(zip(scalars, table.mean(0).tolist())):
            result[name] = mean
            result[f"{name}_interval"] = [low[place].item(), high[place].item()]
        result.update({name: curve.mean(0).tolist() for name, curve in curves.items()})
        result["num_images"] = len(table)
        interval = {"confidence": confidence, "resamples": resamples, "seed": bootstrap_seed}
        result["protocol"] = {**protocol, **plain(stated), "interval": interval}
        return result

    @abstractmethod
    def _summarize(
        self, columns: dict[str, torch.Tensor], protocol: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
        """
        Per-image scalars and per-image curves, whose means are the result, and what else belongs in the protocol.

        Args:
            columns (`dict[str, torch.Tensor]`): Float64, of shape `(num_images,)` or `(num_images, num_steps)`.
            protocol (`dict`): What is known about how they were measured.
        """

    def derived(self, columns: Mapping[str, list], protocol: Mapping[str, Any]) -> dict[str, list[float]]:
        """
        Further numbers of every image, made of the columns: `compute` has their means, and explainers are compared by
        them.

        Args:
            columns (`dict[str, list]`): As `measure` gave them, one entry per image.
            protocol (`dict`): What is known about how they were measured.

        Returns:
            `dict[str, list[float]]`: By the key of the number; nothing where the columns are all there is.
        """
        return {}

    def _numbers(self, name: str, column: list) -> torch.Tensor:
        if not column:
            raise ValueError(f"{self.metric_name} has no images to compute from: its columns are empty.")
        if isinstance(column[0], list):
            lengths = sorted({len(entry) for entry in column})
            if len(lengths) > 1 or lengths[0] == 0:
                raise ValueError(
                    f"`{name}` of {self.metric_name} needs equally many numbers for every image, at least one, got "
                    f"{lengths}."
                )
        numbers = torch.tensor(column, dtype=torch.float64)
        finite = torch.isfinite(numbers).flatten(1 if numbers.ndim > 1 else 0)
        finite = finite.all(1) if finite.ndim > 1 else finite
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            raise ValueError(f"`{name}` of {self.metric_name} holds NaN or infinity for image {bad}.")
        return numbers

    def _check_steps(self, columns: dict[str, torch.Tensor], names: Iterable[str], steps: list, what: str) -> None:
        """Columns that hold one number per step must fit the steps of the protocol."""
        for name in names:
            if columns[name].shape[1:] != (len(steps),):
                raise ValueError(
                    f"`{name}` of {self.metric_name} holds {columns[name].shape[1]} numbers per image, but the "
                    f"protocol names {len(steps)} {what}; pass `compute(protocol=...)` what "
                    "the instance that measured them has as `protocol`."
                )


class SaliencyMetric(ColumnMetric):
    """
    A metric of saliency maps: `measure` takes images and maps.

    A subclass defines `_measure`; one of its columns is called `main_result`.

    Attributes:
        inputs (`tuple[str, ...]`): Inputs of `measure` the metric uses; it ignores the others.
        options (`tuple[str, ...]`): What `measure` lets the caller override.
        needs_labels (`bool`): Whether the data set must have labels, whatever the settings.
    """

    inputs: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    needs_labels: ClassVar[bool] = False

    def measure(
        self,
        predict: Predict | None = None,
        pixel_values: torch.Tensor | None = None,
        saliency: torch.Tensor | None = None,
        *,
        target: Classes | None = None,
        labels: Classes | None = None,
        logits: torch.Tensor | None = None,
        image_ids: torch.Tensor | Sequence[int] | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        masks: torch.Tensor | None = None,
        boxes: Sequence[torch.Tensor] | None = None,
        photos: Photographs | None = None,
        explain: Callable[..., Any] | None = None,
        **overrides: Any,
    ) -> dict[str, list]:
        """
        Measure one batch. Every metric takes these inputs and ignores those it has no use for.

        Args:
            predict (`Callable`): `pixel_values` to logits; a [`FrozenClassifier`] is one.
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
            saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Non-negative maps.
            target (`torch.LongTensor` of shape `(batch_size,)` or `int`, *optional*): The explained class; the top-1
                by default.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): True classes.
            logits (`torch.Tensor` of shape `(batch_size, num_labels)`, *optional*): Of the images, if at hand.
            image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): See
                [`~hf_explain.tensors.randomness.image_keys`].
            image_mean, image_std (sequence of `float`, *optional*): The image processor's.
            masks (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*): Non-zero on the object.
            boxes (sequence of tensors of shape `(num_boxes, 4)`, *optional*): Boxes around the object.
            photos ([`Photographs`], *optional*): Other photographs of the data set.
            explain (`Callable`, *optional*): `pixel_values`, `target` and `image_ids` to maps, for metrics that make
                pictures of their own.
            **overrides: Settings that replace the preset's, and `max_batch`, `max_bytes`.

        Returns:
            `dict[str, list]`: one list per column (see `features`), one entry per image; a curve is a list of numbers.

        Raises:
            TypeError: If the metric has no option of an override's name.
            ValueError: If an input is missing, or of the wrong shape or range.
        """
        unknown = sorted(set(overrides) - {*self.options, *_EXECUTION})
        if unknown:
            raise TypeError(
                f"{self.metric_name} has no option `{unknown[0]}`; it has: {', '.join((*self.options, *_EXECUTION))}."
            )
        if "logits" in self.inputs and not callable(predict):
            raise TypeError(
                f"`predict` must be a callable from `pixel_values` to logits, such as a FrozenClassifier, got "
                f"{type(predict).__name__}."
            )
        given = {
            "target": target,
            "labels": labels,
            "logits": logits,
            "image_ids": image_ids,
            "image_mean": image_mean,
            "image_std": image_std,
            "masks": masks,
            "boxes": boxes,
            "photos": photos,
            "explain": explain,
        }
        inputs = {name: given[name] for name in self.inputs}
        columns, measured = self._measure(
            predict, pixel_values, saliency, **inputs, **{**self.presets[self.config_name], **overrides}
        )
        self._remember(measured, {name: value for name, value in overrides.items() if name not in _EXECUTION})
        return {name: column.tolist() for name, column in columns.items()}

    def photos_needed(self, overrides: Mapping[str, Any]) -> float | None:
        """
        `None` if it needs no `photos` with these settings instead of the preset's; else the softmax above which the
        classifier must be right about them, 0 if it may take them for anything.
        """
        settings = {**self.presets[self.config_name], **overrides}.values()
        return (
            0 if any(one == "photo" or isinstance(one, (list, tuple)) and "photo" in one for one in settings) else None
        )

    @abstractmethod
    def _measure(
        self, predict: Any, pixel_values: Any, saliency: Any, **options: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """
        The columns of a batch, as tensors, and the protocol they were measured by. What `measure` was given is passed
        on as it is: the function of the metric checks it.
        """


def plain(value: Any) -> Any:
    """Tensors, arrays, tuples and mappings as the lists, numbers and dictionaries JSON knows."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def listed(value: Any) -> Any:
    """One number as a list of one; anything else as it is."""
    return (value,) if isinstance(value, Real) else value


def launch_demo(module: str | os.PathLike[str]) -> None:
    """
    Serve a metric as a web page: its columns in, its result out, its card below.

    The widget of `evaluate` needs Gradio 3, which cannot be installed beside this package's NumPy and Pillow.

    Args:
        module (`str` or `os.PathLike`): The metric's `NAME.py`, its `README.md` beside it. A Space keeps both in a
            folder called `app`, so the folder does not tell the name.

    Raises:
        ImportError: If Gradio is not installed.
    """
    build_demo(module).launch()


def build_demo(module: str | os.PathLike[str]) -> Any:
    """
    The page of [`launch_demo`], not yet served.

    Args and Raises: As there.

    Returns:
        `gradio.Interface`.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            "The page of a metric needs Gradio, which is not installed: pip install 'hf-explain[demo]'."
        ) from error
    path = Path(module)
    metric = evaluate.load(os.fspath(path))

    def compute(columns: str) -> dict[str, Any]:
        try:
            values = json.loads(columns)
            if not isinstance(values, dict):
                raise ValueError("the columns must be a JSON object, one list per column.")
            # a new instance for each visitor: an instance collects columns
            return evaluate.load(os.fspath(path)).compute(**values)
        except (ValueError, TypeError) as error:
            raise gradio.Error(str(error)) from error

    empty = json.dumps({name: [] for name in metric.features}, indent=2)
    return gradio.Interface(
        compute,
        gradio.Code(empty, language="json", label="Columns: one entry per image, from `measure`"),
        gradio.JSON(label="Result"),
        title=f"Metric: {metric.name}",
        article=path.with_name("README.md").read_text(encoding="utf-8").split("---\n", 2)[-1],
        flagging_mode="never",
        analytics_enabled=False,
        api_name="compute",
    )
