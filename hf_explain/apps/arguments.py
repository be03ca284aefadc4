"""What every command of `hf-explain` can be asked for, a dataclass each. Nothing here needs PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from hf_explain.evaluation.arguments import ComparisonArguments, ErrorStudyArguments, EvaluationArguments
from hf_explain.io.colors import COLORMAPS, OPACITY
from hf_explain.io.labels import TARGETS
from hf_explain.io.paths import public_name
from hf_explain.tensors.options import DTYPE_HELP, DTYPES, check_options, option
from hf_explain.training.arguments import ExplainerTrainingArguments


ON_ERROR = ("raise", "skip")
_MODEL = "trained head or plain classifier: directory or Hub id"
_METHOD = "training-free method; unless given, the head itself, or the default of a plain classifier's architecture"
_DEVICE = "torch device; the accelerator where there is one, or else the CPU"
_ATTENTION = "attention of the classifier; for a small ViT in bf16 on a CPU 'eager' is faster"


@dataclass(kw_only=True)
class DatasetArguments:
    """Which images: what [`~hf_explain.io.datasets.load_image_dataset`] loads."""

    options_title = "on what"

    dataset: str = option(help="Hub id, imagefolder, parquet file or directory, save_to_disk directory")
    dataset_config: str | None = option(None, "configuration of a Hub data set")
    dataset_revision: str | None = option(None, "branch, tag or commit of a Hub data set")
    split: str = option("validation", "split; slices such as validation[:100] too, unless streaming")
    streaming: bool = option(False, "read the data on the way instead of downloading it first")
    cache_dir: str | None = option(None, "cache directory of `datasets`")

    def load(self, dataset: str | None = None, split: str | None = None):
        """The data set; with `split` another one of it, or of another `dataset`."""
        from hf_explain.io.datasets import load_image_dataset

        own = (self.dataset_config, self.dataset_revision) if dataset is None else (None, None)
        return load_image_dataset(
            dataset or self.dataset, split or self.split, *own, streaming=self.streaming, cache_dir=self.cache_dir
        )

    def describe(self) -> dict[str, str | None]:
        """What a result says of it; it is published, so directories are named without their path."""
        return {
            "name": public_name(self.dataset),
            "split": self.split,
            "config": self.dataset_config,
            "revision": self.dataset_revision,
        }


@dataclass(kw_only=True)
class LoadingArguments:
    """How every model that a command is given is loaded, and its image processor."""

    options_title = "loading"

    trust_remote_code: bool = option(
        False, "run code that comes with a model or its image processor on this machine; read that code first"
    )


@dataclass(kw_only=True)
class ClassesArguments(LoadingArguments):
    """Classes of a model that has none of its own, such as CLIP."""

    candidate_labels: list[str] = option(
        [], "classes of a model that matches images with texts, such as CLIP", several=True, metavar="TEXT"
    )
    hypothesis_template: str | None = option(
        None, "what it reads of a class, with {} in its place; 'This is a photo of {}.' unless given"
    )

    @property
    def classes(self) -> dict[str, Any]:
        """What is given of them, by the names that loading takes."""
        given = {"candidate_labels": self.candidate_labels, "hypothesis_template": self.hypothesis_template}
        return {name: value for name, value in given.items() if value}


@dataclass(kw_only=True)
class QuickstartCommand:
    """`hf-explain quickstart`."""

    output_dir: str = option("quickstart", "folder to write", short="-o")
    seed: int = option(0, "seed of everything random", minimum=0)
    progress: bool = option(True, "progress bars")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(kw_only=True)
class TrainCommand(ClassesArguments, DatasetArguments, ExplainerTrainingArguments):
    """`hf-explain train`: a head and what it is trained on, beside the settings of the training itself."""

    options_title = "what to train"

    classifier: str = option(help="Hub id or directory of the image classifier to explain")
    classifier_revision: str | None = option(None, "branch, tag or commit of the classifier")
    attn_implementation: str | None = option(None, _ATTENTION)
    head: str = option("lcam", "kind of head: lcam, ttame, ptame, scan, shapley")
    preset: str | None = option(
        None, "fields of the head's config that go together: ttame has 'ranking', scan 'contribution'"
    )
    head_options: Mapping[str, Any] = option(
        {},
        "a field of the head's config, e.g. variant=img or area_weight=2.0; may be repeated",
        flag="head_option",
        form="NAME=VALUE",
        example="variant=img",
    )
    split: str = option("train", "split to train on")
    eval_split: str | None = option(None, "split for the validation loss; no validation unless given")
    eval_dataset: str | None = option(None, "data set of eval_split; the training one unless given")


@dataclass(kw_only=True)
class ExplainCommand(ClassesArguments):
    """`hf-explain explain`."""

    images: list[str] = option(
        help="path, http(s) URL, folder, or pattern such as 'photos/*.jpg'", positional=True, metavar="IMAGE"
    )
    model: str | None = option(None, f"{_MODEL}; that of the first NAME=DIR of --method unless given")
    output: str | None = option(
        None,
        "picture to write, a folder for several images; IMAGE-explained.png or the folder explained unless given",
        short="-o",
    )
    revision: str | None = option(None, "branch, tag or commit of the model")
    method: list[str] = option(
        [],
        "training-free method, or a trained head of the same classifier as NAME=DIR; repeat to see several side by "
        "side; unless given, the head itself, or the default of a plain classifier's architecture",
        metavar="NAME[=DIR]",
    )
    layer: str | None = option(None, "layer that the training-free methods explain, by name or index")
    method_options: Mapping[str, Mapping[str, Any]] = option(
        {},
        "an option of one of them, e.g. rise.num_masks=1000; may be repeated",
        flag="method_option",
        form="METHOD.OPTION=VALUE",
        example="rise.num_masks=1000",
    )
    target: list[str] = option([], "class index or label name; repeat for several")
    top_k: int = option(1, "classes to explain", minimum=1)
    signed: bool = option(False, "show what speaks against the class, too")
    against: str | None = option(None, "second class: what speaks for the one rather than for this one")
    colormap: str = option(COLORMAPS[0], "colours of the map", choices=COLORMAPS)
    opacity: float = option(OPACITY, "of the colours where the map is highest", interval="[0, 1]")
    legend: bool | None = option(None, "colour scale under every map; where the map is signed unless given")
    grayscale: bool = option(False, "show the image in grey, so that every colour is the map's")
    frame: bool = option(True, "frame around what the classifier saw, where that is not the whole image")
    width: int = option(1200, "least width of a picture in pixels", minimum=1)
    save_map: list[str] = option(
        [],
        "also write every map beside its picture: npy, float32; png, 16 bits, 65535 where the map is 1",
        choices=("npy", "png"),
        several=True,
    )
    json: bool = option(False, "print what was found as JSON")
    batch_size: int = option(1, "images per pass", minimum=1)
    on_error: str = option("raise", "what to do about an image that cannot be read", choices=ON_ERROR)
    device: str | None = option(None, _DEVICE)
    dtype: str = option(EvaluationArguments.dtype, DTYPE_HELP, choices=DTYPES)
    progress: bool = option(True, "progress bar, for several images")

    def __post_init__(self) -> None:
        check_options(self)
        self.legend = self.signed if self.legend is None else self.legend


@dataclass(kw_only=True)
class MethodsCommand(LoadingArguments):
    """`hf-explain methods`."""

    names: list[str] = option([], "methods to say more of, with their options", positional=True, metavar="METHOD")
    model: str | None = option(None, f"only what is defined for this classifier, and its default; {_MODEL}")
    revision: str | None = option(None, "branch, tag or commit of the model")
    json: bool = option(False, "print JSON")


@dataclass(kw_only=True)
class EvaluateCommand(ComparisonArguments, DatasetArguments, ClassesArguments):
    """`hf-explain evaluate`: what is compared and on what, beside the settings of the comparison itself."""

    options_title = "what to compare"

    classifier: str = option(help="Hub id or directory of the image classifier")
    classifier_revision: str | None = option(None, "branch, tag or commit of the classifier")
    attn_implementation: str | None = option(None, _ATTENTION)
    explainers: list[str] = option(
        help="trained heads as NAME=DIRECTORY and training-free methods by name; random and centre are always added. "
        "NAME@8x8 is the maps of one of them averaged over so many cells, NAME@cells without the smooth resize, "
        "NAME@inverse turned round",
        commas=True,
        metavar="NAME[=DIR][@FORM],...",
    )
    output_dir: Path = option(help="folder of the results; a killed run continues there", short="-o")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dataset_info = self.describe()


@dataclass(kw_only=True)
class ErrorsCommand(ErrorStudyArguments, DatasetArguments, ClassesArguments):
    """`hf-explain errors`: whose errors and on what, beside what counts as one of a kind."""

    options_title = "whose errors"

    model: str = option(help=_MODEL)
    revision: str | None = option(None, "branch, tag or commit of the model")
    method: str | None = option(None, _METHOD)
    method_options: Mapping[str, Mapping[str, Any]] = option(
        {},
        "an option of the method, e.g. rise.num_masks=1000; may be repeated",
        flag="method_option",
        form="METHOD.OPTION=VALUE",
        example="rise.num_masks=1000",
    )
    image_column: str | None = option(None, "column of the images; found by its type unless given")
    label_column: str | None = option(None, "column of the labels, likewise")
    mask_column: str | None = option(None, "column of the object's masks; without it the border is looked at")
    max_examples: int | None = option(None, "use only this many images, the first ones", minimum=1)
    seed: int = option(EvaluationArguments.seed, "seed of everything random", minimum=0)
    batch_size: int = option(EvaluationArguments.batch_size, "images per pass", minimum=1)
    shard_size: int = option(EvaluationArguments.shard_size, "images per partial result", minimum=1)
    device: str | None = option(None, _DEVICE)
    dtype: str = option(EvaluationArguments.dtype, DTYPE_HELP, choices=DTYPES)
    output_dir: str = option(
        help="folder of errors.json, errors.md and index.html; a killed run continues there", short="-o"
    )
    pictures: int = option(4, "images shown of each kind", minimum=0)
    progress: bool = option(True, "progress bars")


@dataclass(kw_only=True)
class ExportArguments(DatasetArguments, ClassesArguments):
    """
    What to explain and how, for [`~hf_explain.apps.export.export_saliency`].

    Raises:
        ValueError: If a value cannot work; the message names it.
    """

    options_title = "what to export"

    model: str = option(help=_MODEL)
    revision: str | None = option(None, "branch, tag or commit of the model")
    split: str = option("train", "split to explain")
    image_column: str | None = option(None, "column of the images; found by its type unless given")
    id_column: str | None = option(None, "column of whole numbers or text that becomes image_id; the row otherwise")
    label_column: str | None = option(None, "column of the labels, for target=label; found by its type unless given")
    method: str | None = option(None, _METHOD)
    target: str = option("prediction", "class to explain: the classifier's own or the label", choices=TARGETS)
    top_k: int = option(1, "classes to explain per image, one row each, for target=prediction", minimum=1)
    batch_size: int = option(EvaluationArguments.batch_size, "images per forward pass and process", minimum=1)
    shard_size: int = option(500, "images per parquet file; an interruption loses at most one per process", minimum=1)
    max_examples: int | None = option(None, "use only this many images, the first ones", minimum=1)
    on_error: str = option("raise", "what to do about an image that cannot be read", choices=ON_ERROR)
    num_workers: int = option(0, "processes that decode images, per process; not for streaming", minimum=0)
    device: str | None = option(None, "cpu, or the accelerator: that is taken where there is one")
    dtype: str = option(EvaluationArguments.dtype, DTYPE_HELP, choices=DTYPES)
    progress: bool = option(True, "progress bar")
    # earlier names of device="cpu" and progress=False
    use_cpu: InitVar[bool | None] = None
    disable_tqdm: InitVar[bool | None] = None

    def __post_init__(self, use_cpu: bool | None, disable_tqdm: bool | None) -> None:
        self.device = "cpu" if use_cpu else self.device
        self.progress = self.progress if disable_tqdm is None else not disable_tqdm
        check_options(self)
        if self.target == "label" and self.top_k > 1:
            raise ValueError(
                f"top_k {self.top_k} is for target 'prediction': with target 'label' every image has one class."
            )
        if self.streaming and self.num_workers:
            raise ValueError(
                f"num_workers {self.num_workers} needs streaming=False: a stream is read in order, by the process "
                "that explains it."
            )


@dataclass(kw_only=True)
class ExportCommand(ExportArguments):
    """`hf-explain export`."""

    options_title = "output"

    output_dir: str = option(help="directory to write", short="-o")


@dataclass(kw_only=True)
class CardFields:
    """What no record can know, or knows by a local name only; what is left out is named as unknown on the card."""

    options_title = "on the card; what is left out stays unknown there"

    license: str | None = option(None, "licence of the weights, such as apache-2.0")
    dataset: str | None = option(
        None, "name of the training data, where the record has only a local one; 'Name (user/id)' if it is on the Hub"
    )
    dataset_config: str | None = option(None, "configuration of that data on the Hub; the record's unless given")
    evaluation_dataset: str | None = option(None, "name of the evaluation's data, likewise")
    data_terms: str | None = option(None, "terms of the training data, in a sentence")
    limitations: str | None = option(None, "markdown added to the card's limitations")


@dataclass(kw_only=True)
class PushCardFields(CardFields):
    """The same, of a card that is written because the directory has no README.md."""

    options_title = "the card, where the directory has no README.md"

    evaluation: str | None = option(None, "results.json (default: evaluation.json in DIR)", metavar="FILE")
    explainer: str | None = option(None, "name of this head in there, where its weights do not tell")
    picture: str | None = option(None, "image file in DIR that the card shows")


@dataclass(kw_only=True)
class PushCommand(PushCardFields):
    """`hf-explain push`."""

    directory: str = option(help="what training or save_pretrained wrote", positional=True, metavar="DIR")
    repo: str = option(help="repository; created where missing", metavar="USER/NAME")
    revision: str | None = option(None, "branch to commit to; main unless given", metavar="BRANCH")
    create_pr: bool = option(False, "open a pull request on an existing repository")
    private: bool = option(False, "make a new repository private")
    code: str | None = option(
        None,
        "also upload code: a flat copy of the package's, for people with Transformers alone and "
        "trust_remote_code=True, or a file that says what to install",
        choices=("self-contained", "stub"),
    )
    dry_run: bool = option(False, "check and list, send nothing")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(kw_only=True)
class PushMetricCommand:
    """`hf-explain push-metric`."""

    metric: str = option(help="a metric of the package, such as auc_d", positional=True)
    repo: str = option(help="Space; ends in the metric's name", metavar="USER/METRIC")
    private: bool = option(False, "make a new repository private")
    dry_run: bool = option(False, "check and list, send nothing")


@dataclass(kw_only=True)
class CardCommand(CardFields):
    """`hf-explain card`."""

    directories: list[str] = option(help="what training or save_pretrained wrote", positional=True, metavar="DIR")
    output_dir: str = option(help="gets the cards", short="-o", metavar="FOLDER")
    evaluation: list[str] = option(
        [],
        "results.json of one or more evaluations; each head's is the one that measured its weights (default: "
        "evaluation.json in DIR)",
        several=True,
        metavar="FILE",
    )
    user: str | None = option(None, "whose repositories the snippets name")
    unreleased: bool = option(False, "say that the weights are not on the Hub yet, and the command that trains them")


@dataclass(kw_only=True)
class OnnxCommand(LoadingArguments):
    """`hf-explain onnx`."""

    directory: str = option(help="trained head: directory or Hub id", positional=True, metavar="DIR")
    output: str = option(help="file to write; with --page a folder", short="-o")
    revision: str | None = option(None, "branch, tag or commit of a Hub id")
    page: bool = option(False, "write a folder with head.onnx and a web page that runs it in the browser")
    runtime: str = option(
        "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/",
        "where the page loads the dist folder of onnxruntime-web from: an address, or a path relative to the page",
        metavar="URL",
    )


@dataclass(kw_only=True)
class DemoCommand(ClassesArguments):
    """`hf-explain demo`."""

    models: list[str] = option(
        [], "heads and classifiers to compare: directories or Hub ids", positional=True, metavar="MODEL"
    )
    model: list[str] = option([], "another MODEL, as the other commands name it")
    classifier: str | None = option(None, "used instead of the classifier that the heads name")
    examples: list[str] = option([], "example picture or folder; repeat for more", metavar="PATH")
    device: str | None = option(None, _DEVICE)
    dtype: str = option(EvaluationArguments.dtype, DTYPE_HELP, choices=DTYPES)
    port: int | None = option(None, "port of the server; the first free one from 7860 on unless given")
    share: bool = option(False, "also make a temporary public link, through Gradio")
    write_space: str | None = option(
        None, "write the files of a Hugging Face Space instead of starting", metavar="DIR"
    )

    def __post_init__(self) -> None:
        self.models = [*self.models, *self.model]
        if not self.models:
            raise ValueError(
                "MODEL is missing; name a head or a classifier, as in hf-explain demo microsoft/resnet-50."
            )
