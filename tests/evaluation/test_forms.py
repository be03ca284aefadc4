"""Maps in another form: values by hand, and rows of a comparison that cost what their originals cost."""

import json

import pytest
import torch
from testing_common import save_classifier
from testing_training import picture_dataset

from hf_explain import FrozenClassifier, LCamForSaliency
from hf_explain.evaluation.comparison import compare, parse_explainers
from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.evaluation.forms import resolve_form
from hf_explain.evaluation.results import Comparison
from hf_explain.publish.card_facts import find_own_result


def test_forms_by_hand():
    maps = torch.tensor([[[0.0, 0.2, 0.4, 1.0], [0.0, 0.2, 0.4, 1.0]]])
    # the means are 0.1 and 0.7, and scaled as all maps are
    assert resolve_form("1x2")(maps, (2, 4)).tolist() == [[[0.0, 1.0]]]
    torch.testing.assert_close(resolve_form("1x4")(maps, (2, 4)), maps[:, :1])
    assert resolve_form("cells")(maps[:, :1, ::3], (2, 4)).tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]]
    torch.testing.assert_close(resolve_form("inverse")(maps, (2, 4)), 1 - maps)
    with pytest.raises(ValueError, match="3x4 cells are more than the 2 × 4 pixels"):
        resolve_form("3x4")(maps, (2, 4))
    with pytest.raises(ValueError, match="its maps have a value for every pixel, and no cells"):
        resolve_form("cells")(maps, (2, 4))


def test_names():
    names = parse_explainers("a@b=DIR,a@b@cells,gradcam@8x8,gradcam++@inverse")
    assert names == {"a@b": "DIR", "a@b@cells": None, "gradcam@8x8": None, "gradcam++@inverse": None}
    for text, message in (
        ("gradcam@soft", "explainer 'gradcam@soft' cannot be measured: there is no form 'soft' of maps; .* 8x8"),
        ("gradcam@0x4", "there is no form '0x4'"),
        ("lcam@cells", "explainer 'lcam' is not a training-free method"),
        ("lcam@cells=", "is not NAME=DIRECTORY"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_explainers(text)


def test_a_copy_keeps_its_form(tmp_path):
    classifier = FrozenClassifier.from_pretrained(save_classifier("resnet", tmp_path))
    explainer = resolve_explainer(classifier, "gradcam").with_form("4x4")
    copied, pixel_values = explainer.copy(), torch.randn(1, 3, 64, 64)
    assert copied.classifier is copied.original.classifier is not classifier
    maps = [one.explain(pixel_values, None, torch.arange(1)).saliency for one in (explainer, copied)]
    assert torch.equal(*maps) and maps[0].shape == (1, 4, 4)


def test_forms_are_rows_beside_their_originals(tmp_path):
    classifier = FrozenClassifier.from_pretrained(save_classifier("vit", tmp_path / "classifier"))
    torch.manual_seed(0)
    head = LCamForSaliency.from_classifier(classifier, variant="img")
    explained, explain = [], LCamForSaliency.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LCamForSaliency, "forward", lambda self, *args: explained.append(1) or explain(self, *args))
        result = compare(
            classifier, picture_dataset(5), {"lcam": head, "lcam@cells": None, "rise@4x4": None, "random@cells": None},
            "auc_d", output_dir=tmp_path / "out", slow_examples=2, method_options={"rise": {"num_masks": 4}},
            pictures=1, progress=False, batch_size=3, report=lambda line: None, metric_options={"auc_d": {"steps": 4}},
        )  # fmt: skip
    found = result["explainers"]
    assert len(explained) == 2 + 2  # two batches for both rows, and the pictures' two images
    assert list(found) == ["lcam", "lcam@cells", "rise@4x4", "random@cells", "random", "centre"]
    assert found["random@cells"]["error"].startswith("its maps have a value for every pixel")
    assert found["rise@4x4"]["num_images"] == 2 and found["rise@4x4"]["forward_passes_per_image"] == 5
    assert found["lcam@cells"]["forward_passes_per_image"] == found["lcam"]["forward_passes_per_image"] == 1
    assert found["lcam@cells"]["explainer"] == {**found["lcam"]["explainer"], "form": "cells"}
    assert found["lcam@cells"]["seconds_per_image"] == pytest.approx(found["lcam"]["seconds_per_image"])
    assert found["lcam@cells"]["auc_d"]["auc_d"] != found["lcam"]["auc_d"]["auc_d"]
    comparison = Comparison.from_json(json.loads((tmp_path / "out/results.json").read_text()))
    own = find_own_result(comparison, None, "lcam", dict(head.state_dict()))
    assert own.name == "lcam"  # the weights are those of both
    assert "| lcam@cells | 5 | " in (tmp_path / "out/table.md").read_text()
