"""How ViT, DeiT, ConvNeXt and ResNet are built: the only place in the package that knows."""

from __future__ import annotations

from dataclasses import dataclass, replace


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """How one `model_type` runs in stages: `embeddings`, then `layers` one by one, then the tail."""

    body: str
    embeddings: str
    layers: str
    layer_name: str
    pool: str  # "tokens": each classifier reads its own prefix token; "mean": mean, then norm; "module": a pooler
    classifiers: tuple[str, ...] = ("classifier",)
    # names of modules, empty where an architecture has no such module
    norm: str = ""
    pooler: str = ""
    pre_attention_norm: str = ""
    stage_norm: str = ""  # of a stage: the list whose first module normalises what the stage before put out
    attention: str = ""
    num_prefix_tokens: int = 0
    # of the architecture's own image processor, for a classifier that comes without one
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD


_VIT = Architecture(
    body="vit",
    embeddings="embeddings",
    layers="layers",
    layer_name="layer",
    pool="tokens",
    norm="layernorm",
    num_prefix_tokens=1,
    pre_attention_norm="layernorm_before",
    attention="attention",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
ARCHITECTURES: dict[str, Architecture] = {
    "ViTForImageClassification": _VIT,
    "DeiTForImageClassification": replace(
        _VIT, body="deit", num_prefix_tokens=2, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    ),
    "DeiTForImageClassificationWithTeacher": replace(
        _VIT,
        body="deit",
        num_prefix_tokens=2,
        classifiers=("cls_classifier", "distillation_classifier"),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ),
    "ConvNextForImageClassification": Architecture(
        body="convnext",
        embeddings="embeddings",
        layers="encoder.stages",
        layer_name="stage",
        pool="mean",
        norm="layernorm",
        stage_norm="downsampling_layer",
    ),
    "ResNetForImageClassification": Architecture(
        body="resnet",
        embeddings="embedder",
        layers="encoder.stages",
        layer_name="stage",
        pool="module",
        pooler="pooler",
    ),
}
# Classifiers, these or others, whose convolutions take less time with the channels innermost, forward and backward.
# ConvNeXt's layers turn them that way by themselves, and a transformer has none but its patch embedding.
CHANNELS_LAST = frozenset({"ResNetForImageClassification", "EfficientNetForImageClassification"})
