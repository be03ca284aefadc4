"""Transformers' `Trainer` trains a head as it trains any model: nothing but a data set with pixels and classes."""

import numpy as np
import pytest
import torch
from testing_common import LABELS, assert_unchanged, random_pixels, save_classifier, snapshot
from transformers import Trainer, TrainingArguments

from hf_explain.heads.lcam import LCamForSaliency
from hf_explain.heads.scan import ScanForSaliency
from hf_explain.heads.ttame import TTameForSaliency


PIXELS = random_pixels("resnet", 8)


def rows(name="labels"):
    return [{"pixel_values": pixels, name: index % len(LABELS)} for index, pixels in enumerate(PIXELS)]


def make_trainer(directory, head, train=None, **options):
    options = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "max_steps": 4, "report_to": "none",
               "disable_tqdm": True, "use_cpu": True, "learning_rate": 0.05, "save_steps": 2, **options}  # fmt: skip
    settings = {name: options.pop(name) for name in ("compute_metrics", "data_collator") if name in options}
    args = TrainingArguments(str(directory), **options)
    return Trainer(head, args, train_dataset=train or rows(), eval_dataset=rows()[:5], **settings)


def make_head(classifier, head_class=LCamForSaliency, **fields):
    torch.manual_seed(0)
    return head_class.from_classifier(classifier, **fields)


def own_weights(head):
    return torch.cat([tensor.flatten().float() for tensor in head.state_dict().values()])


def test_train_evaluate_predict_save_resume(tmp_path):
    classifier = save_classifier("resnet", tmp_path / "classifier")
    head = make_head(classifier)
    frozen, first = snapshot(head.backbone), own_weights(head)
    trainer = make_trainer(
        tmp_path / "run", head, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        compute_metrics=lambda found: {"right": float((found.predictions[1].argmax(-1) == found.label_ids).mean())},
    )  # fmt: skip
    assert trainer.train().global_step == 4
    assert_unchanged(head.backbone, frozen)
    assert not torch.equal(own_weights(head), first)
    measured = trainer.evaluate()
    with torch.no_grad():
        losses = [head(PIXELS[start:stop], labels=range(start, stop)).loss.item() for start, stop in ((0, 3), (3, 5))]
    assert measured["eval_loss"] == pytest.approx((3 * losses[0] + 2 * losses[1]) / 5, rel=1e-5)
    found = trainer.predict(rows()[:5])
    saliency, logits, target = found.predictions
    np.testing.assert_allclose(saliency, head(PIXELS[:5], target=found.label_ids).saliency, atol=1e-5)
    assert logits.shape == (5, len(LABELS)) and target.tolist() == found.label_ids.tolist() == [0, 1, 2, 3, 4]
    assert found.metrics["test_right"] == measured["eval_right"]

    trainer.save_model(tmp_path / "saved")
    loaded = LCamForSaliency.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(PIXELS).saliency, head(PIXELS).saliency)
    assert not any(name.startswith("backbone") for name in LCamForSaliency.from_pretrained(
        tmp_path / "run/checkpoint-2").state_dict())  # fmt: skip

    whole, again = (make_head(classifier) for _ in range(2))
    make_trainer(tmp_path / "whole", whole).train()
    make_trainer(tmp_path / "again", again).train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    torch.testing.assert_close(own_weights(again), own_weights(whole))


@pytest.mark.parametrize(
    ("head_class", "fields", "bf16"),
    [
        (LCamForSaliency, {"variant": "fm"}, True),
        (TTameForSaliency, {"preset": "ranking"}, False),
        (ScanForSaliency, {"decoder_width": 2, "levels": 1}, False),
    ],
)
def test_every_head_by_target_or_labels(tmp_path, head_class, fields, bf16):
    classifier = save_classifier("resnet", tmp_path / "classifier")
    trained = []
    for name in ("labels", "target"):
        head = make_head(classifier, head_class, **fields)
        first = own_weights(head)
        trainer = make_trainer(tmp_path / name, head, rows(name), bf16=bf16, max_steps=2, save_strategy="no")
        trainer.train()
        assert own_weights(head).isfinite().all() and not torch.equal(own_weights(head), first)
        assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
        trained.append(own_weights(head))
    assert torch.equal(*trained)
    assert np.isfinite(trainer.evaluate()["eval_loss"])
