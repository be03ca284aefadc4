"""The names in a label."""

import pytest

from hf_explain.io.labels import short_label, synonyms


@pytest.mark.parametrize(
    ("label", "names", "short"),
    [
        ("tench, Tinca tinca", ["tench", "Tinca tinca"], "tench"),
        (" cat ,dog", ["cat", "dog"], "cat"),
        ("cat", ["cat"], "cat"),
        (", dog", ["", "dog"], ", dog"),
        ("", [""], ""),
    ],
)
def test_names_in_a_label(label, names, short):
    assert synonyms(label) == names
    assert short_label(label) == short
