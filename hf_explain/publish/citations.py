"""The published methods behind the heads: names, papers, citations. Facts only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """What is fixed about a published method: its name, paper and citation."""

    name: str
    summary: str
    paper: str
    url: str
    bibtex: str
    variants: Mapping[str, str] = field(default_factory=dict)


PAPERS: dict[str, Method] = {
    "lcam": Method(
        name="L-CAM",
        variants={"img": "L-CAM-Img", "fm": "L-CAM-Fm"},
        summary="One 1×1 convolution on one layer of the frozen classifier, one row of weights per class, trained by "
        "masking with the map what the classifier sees.",
        paper="Learning Visual Explanations for DCNN-Based Image Classifiers Using an Attention Mechanism",
        url="https://arxiv.org/abs/2209.11189",
        bibtex="""@inproceedings{gkartzonika2022lcam,
  title     = {Learning Visual Explanations for {DCNN}-Based Image Classifiers Using an Attention Mechanism},
  author    = {Gkartzonika, Ioanna and Gkalelis, Nikolaos and Mezaris, Vasileios},
  booktitle = {ECCV 2022 Workshops},
  pages     = {396--411},
  year      = {2022},
  doi       = {10.1007/978-3-031-25085-9_23}
}""",
    ),
    "ttame": Method(
        name="T-TAME",
        summary="A small branch on each of several layers of the frozen classifier, fused into one map per class, "
        "trained by masking with the map what the classifier sees.",
        paper="T-TAME: Trainable Attention Mechanism for Explaining Convolutional Networks and Vision Transformers",
        url="https://arxiv.org/abs/2403.04523",
        bibtex="""@article{ntrougkas2024ttame,
  title   = {{T-TAME}: Trainable Attention Mechanism for Explaining Convolutional Networks and Vision Transformers},
  author  = {Ntrougkas, Mariano V. and Gkalelis, Nikolaos and Mezaris, Vasileios},
  journal = {IEEE Access},
  year    = {2024},
  doi     = {10.1109/ACCESS.2024.3405788}
}""",
    ),
    "scan": Method(
        name="SCAN",
        summary="A decoder that reconstructs the image from gradient-masked features of the frozen classifier and "
        "says with a confidence channel where it could; the confidence is the map.",
        paper="SCAN: Visual Explanations with Self-Confidence and Analysis Networks",
        url="https://arxiv.org/abs/2603.06523",
        bibtex="""@misc{lee2026scan,
  title         = {{SCAN}: Visual Explanations with Self-Confidence and Analysis Networks},
  author        = {Lee, Gwanghee and Jeong, Sungyoon and Jhang, Kyoungson},
  year          = {2026},
  eprint        = {2603.06523},
  archivePrefix = {arXiv}
}""",
    ),
}
