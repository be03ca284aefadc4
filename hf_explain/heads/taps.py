"""Which layers of a classifier a head taps where nobody names any."""

from __future__ import annotations

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
