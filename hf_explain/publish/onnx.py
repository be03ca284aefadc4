"""A classifier and its head as one ONNX graph, and a web page that runs it: a map without PyTorch, on any device."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import nn

from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.io.files import write_atomically
from hf_explain.registry import HEADS
from hf_explain.tensors.maps import CropGeometry


OPSET = 18
TOLERANCE = 1e-4
PREDICTED = -1
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxExport:
    """
    A graph that was written and checked.

    Args:
        path (`Path`): The file.
        num_bytes (`int`): Its size.
        saliency_error (`float`): Largest difference from PyTorch's maps, which lie in [0, 1].
        logits_error (`float`): Largest difference from PyTorch's logits, as a part of the largest logit.
    """

    path: Path
    num_bytes: int
    saliency_error: float
    logits_error: float


class SaliencyGraph(nn.Module):
    """
    `pixel_values, target` to `saliency, logits`: what the ONNX graph computes.

    Args:
        head ([`~hf_explain.heads.modeling_explainer.ExplainerPreTrainedModel`]): With its classifier attached.
    """

    def __init__(self, head: ExplainerPreTrainedModel):
        super().__init__()
        self.head = head

    def forward(self, pixel_values: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Explain a batch of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
            target (`torch.LongTensor` of shape `(batch_size,)`): The class to explain in each image; -1, or any
                other negative number, is the classifier's own top class.

        Returns:
            `tuple`: the maps in [0, 1] at the head's resolution, `(batch_size, map_height, map_width)`, and the
            classifier's logits, `(batch_size, num_labels)`.
        """
        features = self.head.forward_features(pixel_values)
        classes = torch.where(target < 0, features.logits.argmax(-1), target)
        return self.head.forward_head(features, classes).saliency, features.logits


def export_onnx(head: ExplainerPreTrainedModel, path: str | os.PathLike[str]) -> OnnxExport:
    """
    Write a head and its classifier as one ONNX graph, and check it.

    The graph takes `pixel_values`, float32, `(batch_size, num_channels, height, width)`, with any number of images of
    the size that the image processor makes, and `target`, int64, `(batch_size,)`, where -1 is the predicted class. It
    gives `saliency`, `(batch_size, map_height, map_width)` in [0, 1], and `logits`. What a program needs beside it is
    in its metadata: see [`onnx_metadata`].

    Before the file gets its name, ONNX Runtime runs it on several images and classes beside PyTorch.

    Args:
        head ([`~hf_explain.heads.modeling_explainer.ExplainerPreTrainedModel`]): In float32, with its classifier.
        path (`str` or `os.PathLike`): File to write; an existing one is replaced.

    Returns:
        [`OnnxExport`].

    Raises:
        ImportError: If the packages of the extra `onnx` are not installed.
        ValueError: If the head is not in float32, cannot be traced (SCAN takes a gradient at every call), or the
            graph's answers are not PyTorch's.
    """
    onnx, _, runtime = _packages()
    path = Path(path)
    if not head.one_graph:
        raise ValueError(
            f"`head` is a {type(head).__name__}, whose map takes a gradient of the classifier at every call, which is "
            "not exported to ONNX; an L-CAM or T-TAME head is."
        )
    if head.dtype != torch.float32 or head.attached.dtype != torch.float32:
        raise ValueError(
            f"`head` is in {head.dtype} and its classifier in {head.attached.dtype}; an ONNX graph is made of "
            "float32: load both with dtype=torch.float32."
        )
    graph = SaliencyGraph(head).eval()
    pixel_values, target = _example(head, 3), torch.tensor([0, PREDICTED, head.attached.num_labels - 1])
    dynamic = {0: torch.export.Dim("batch_size")}
    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, "head.onnx")
        with _quietly(), torch.no_grad():
            try:
                torch.onnx.export(
                    graph,
                    (pixel_values, target.to(pixel_values.device)),
                    file,
                    dynamo=True,
                    input_names=["pixel_values", "target"],
                    output_names=["saliency", "logits"],
                    dynamic_shapes=(dynamic, dynamic),
                    opset_version=OPSET,
                    external_data=False,
                    verbose=False,
                )
            except torch.onnx.OnnxExporterError as error:
                raise ValueError(
                    f"{type(head).__name__} on {type(head.attached.model).__name__} does not become an ONNX graph: "
                    f"{_first_sentence(error)}"
                ) from error
        model = onnx.load(file)
        onnx.helper.set_model_props(model, onnx_metadata(head))
        onnx.checker.check_model(model)
        content = model.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    saliency_error, logits_error = _differences(session, graph, head)
    if not max(saliency_error, logits_error) <= TOLERANCE:
        raise ValueError(
            f"The ONNX graph of {type(head).__name__} on {type(head.attached.model).__name__} gives other answers "
            f"than PyTorch (maps differ by {saliency_error:.1e}, logits by {logits_error:.1e} of the largest), so it "
            "was not kept."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return OnnxExport(path, len(content), saliency_error, logits_error)


def onnx_metadata(head: ExplainerPreTrainedModel) -> dict[str, str]:
    """
    What a program must know to run the graph, as the text it is stored as in the graph's metadata.

    Args:
        head ([`~hf_explain.heads.modeling_explainer.ExplainerPreTrainedModel`]): With its classifier attached.

    Returns:
        `dict[str, str]`: `head` (its `model_type`), `classifier` (where it has a public name), `labels` (JSON list),
        `image_size` (JSON, height and width in pixels), `image_mean` and `image_std` (JSON, per channel, of pixels in
        [0, 1]), `target` (a sentence) and `producer` (this package's version).
    """
    classifier = head.attached
    values: dict[str, Any] = {
        "head": head.config.model_type,
        "classifier": head.config.backbone if not os.path.isabs(head.config.backbone or "") else None,
        "labels": [classifier.id2label[index] for index in range(classifier.num_labels)],
        "image_size": list(classifier.picture_size),
        "image_mean": list(classifier.image_mean),
        "image_std": list(classifier.image_std),
        "target": f"The class to explain in each image; {PREDICTED} is the classifier's own top class.",
        "producer": f"hf-explain {version('hf-explain')}",
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items() if value}


def write_page(
    head: ExplainerPreTrainedModel, directory: str | os.PathLike[str], runtime: str
) -> tuple[OnnxExport, Path]:
    """
    Write the graph and a web page that runs it in the browser: a picture is chosen, and nothing leaves the device.

    The browser resizes the picture itself, so its pixels, and with them map and scores, differ a little from those of
    the image processor.

    Args:
        head ([`~hf_explain.heads.modeling_explainer.ExplainerPreTrainedModel`]): As for [`export_onnx`].
        directory (`str` or `os.PathLike`): Gets `head.onnx` and `index.html`, to be served by any web server.
        runtime (`str`): Where the page finds ONNX Runtime Web: the `dist` folder of the npm package
            `onnxruntime-web`, by an address or by a path relative to the page.

    Returns:
        `tuple`: [`OnnxExport`] and the page's path.

    Raises:
        ValueError: As [`export_onnx`], or if the images have other than three channels.
    """
    classifier, size = head.attached, head.attached.picture_size
    if len(classifier.image_mean) != 3:
        raise ValueError(
            f"The classifier's images have {len(classifier.image_mean)} channels; the page reads pictures of three."
        )
    # what the processor makes of a wide and of a tall picture tells how it resizes
    geometries = [
        CropGeometry.from_processor(classifier.image_processor, shape) for shape in ((900, 1800), (1800, 900))
    ]
    warps = geometries[0].resized_size == geometries[1].resized_size
    settings = {
        "title": f"{HEADS[head.config.model_type].title(head.config.to_dict()).partition(' (')[0]} on "
        f"{os.path.basename(head.config.backbone or '') or classifier.model_class}",
        "labels": [classifier.id2label[index] for index in range(classifier.num_labels)],
        "size": list(size),
        "mean": list(classifier.image_mean),
        "std": list(classifier.image_std),
        # of the resized picture, before the centre is cut out
        "resized": list(geometries[0].resized_size) if warps else None,
        "shortest_edge": None if warps else min(geometries[0].resized_size),
        "runtime": runtime.rstrip("/") + "/",
        "predicted": PREDICTED,
    }
    directory = Path(directory)
    export = export_onnx(head, directory / "head.onnx")
    page = directory / "index.html"
    template = Template(Path(__file__).with_name("onnx_page.html").read_text(encoding="utf-8"))
    # a label may hold anything, also the end of a script
    text = template.substitute(settings=json.dumps(settings).replace("<", "\\u003c"))
    write_atomically(page, text.encode())
    return export, page


def _packages() -> list[Any]:
    try:
        return [import_module(name) for name in _EXTRA]
    except ImportError as error:
        raise ImportError(
            f"Writing an ONNX graph needs {', '.join(_EXTRA)} ({error}); pip install 'hf-explain[onnx]'."
        ) from error


def _example(head: ExplainerPreTrainedModel, batch_size: int) -> torch.Tensor:
    """Images of coarse and fine noise."""
    generator, channels = torch.Generator().manual_seed(batch_size), len(head.attached.image_mean)
    coarse = torch.randn(batch_size, channels, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=head.attached.picture_size, mode="bilinear")
    return (smooth + 0.3 * torch.randn(smooth.shape, generator=generator)).to(head.device)


def _differences(session: Any, graph: SaliencyGraph, head: ExplainerPreTrainedModel) -> tuple[float, float]:
    """Of maps and logits, on a batch of another size than the graph was traced with and on one image."""
    worst = [0.0, 0.0]
    last = head.attached.num_labels - 1
    for classes in ([PREDICTED, last, 0, last // 2], [PREDICTED]):
        pixel_values, target = _example(head, len(classes)), torch.tensor(classes)
        with torch.no_grad():
            expected = graph(pixel_values, target.to(pixel_values.device))
        found = session.run(None, {"pixel_values": pixel_values.cpu().numpy(), "target": target.numpy()})
        scales = (1.0, max(1.0, float(expected[1].abs().max())))
        for place, (ours, theirs, scale) in enumerate(zip(found, expected, scales, strict=True)):
            difference = float((torch.from_numpy(ours) - theirs.cpu()).abs().max()) / scale
            worst[place] = max(worst[place], difference) if difference == difference else difference
    return worst[0], worst[1]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter's remarks on its own workings are for its developers; what it cannot do, it raises."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_sentence(error: BaseException) -> str:
    """The cause's own first line: around it the exporter writes pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0] or type(error).__name__
