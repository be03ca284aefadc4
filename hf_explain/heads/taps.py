"""Which layers of a classifier a head taps where nobody names any."""

from __future__ import annotations

import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier


def spread_blocks(classifier: FrozenClassifier) -> list[str]:
    """Four blocks of a vision transformer, from the first to the last but one; fewer where it has fewer."""
    last = len(classifier.layer_names) - 2
    places = (round(1 + place * (last - 1) / 3) for place in range(4))
    return [classifier.layer_names[layer] for layer in dict.fromkeys(places)]


def last_stages(classifier: FrozenClassifier) -> list[str]:
    """The last three stages of a convolutional network, finest first; its default layer where it has no stages."""
    names = classifier.layer_names[1:]
    return list(names[-3:]) if all(name.startswith("stage") for name in names) else [classifier.default_layer]


def pyramid(classifier: FrozenClassifier) -> list[str]:
    """
    The last layer of each resolution, finest first, from a quarter of the image's sides on: the stages of any
    convolutional network, found by running it once.
    """
    height, width = classifier.image_size
    image = torch.zeros(1, len(classifier.image_mean), height, width, device=classifier.device)
    with torch.no_grad():
        maps = {name: one.feature_map for name, one in classifier.features(image).items()}
    layers = {tuple(each.shape[-2:]): name for name, each in maps.items() if 4 * each.shape[-2] <= height}
    return list(layers.values()) or [classifier.default_layer]
