"""The base of every head: configuration, where the classifier is looked for, and what a save may touch."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import safetensors
import torch
from testing_common import (
    LABELS,
    assert_frozen,
    assert_unchanged,
    files_below,
    random_pixels,
    save_classifier,
    snapshot,
    tiny_classifier,
    tiny_model,
)

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.heads.lcam import LCamConfig, LCamForSaliency
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.heads.scan import ScanConfig, ScanForSaliency
from hf_explain.heads.ttame import TTameConfig, TTameForSaliency


def saved_head(directory, family="resnet", **options):
    classifier = save_classifier(family, directory / "classifier")
    head = LCamForSaliency.from_classifier(classifier)
    head.save_pretrained(directory / "head", **options)
    return head


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ------------------------------------------------------------------ configuration


def test_nested_config_becomes_a_config_with_its_labels():
    config = LCamConfig(backbone_config=tiny_model("vit").config.to_dict())
    assert type(config.backbone_config).__name__ == "ViTConfig"
    assert config.num_labels == 5 and config.id2label == dict(enumerate(LABELS))
    assert config.label2id == {name: index for index, name in enumerate(LABELS)}
    again = LCamConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()


def test_config_is_a_copy_of_the_classifiers():
    """Sharing the live one resets the classifier's attention implementation."""
    model = tiny_model("vit")
    model.set_attn_implementation("eager")
    head = LCamForSaliency.from_classifier(model)
    assert head.config.backbone_config is not model.config
    assert model.config._attn_implementation == "eager"
    head.config.id2label[0] = "changed"
    assert model.config.id2label[0] == LABELS[0]


def test_unknown_classifier_type_is_named():
    with pytest.raises(ValueError, match="`backbone_config` has model_type 'nonsense', which transformers does not"):
        LCamConfig(backbone_config={"model_type": "nonsense"})


def test_pipeline_entry_does_not_ask_for_remote_code(tmp_path):
    saved_head(tmp_path)
    edit_config(tmp_path / "head", custom_pipelines={"saliency": {"impl": "evil.Pipeline", "pt": []}})
    head = LCamForSaliency.from_pretrained(tmp_path / "head")
    assert not hasattr(head.config, "custom_pipelines")


def test_a_base_class_explains_nothing():
    config = ExplainerConfig(feature_layers=["stage4"], feature_channels=[24])
    head = ExplainerPreTrainedModel(config)
    for method, arguments in (("saliency_logits", 2), ("compute_loss", 3)):
        with pytest.raises(TypeError, match=f"ExplainerPreTrainedModel does not define `{method}`"):
            getattr(head, method)(*[None] * arguments)
    with pytest.raises(ValueError, match="has no classifier; build it with from_classifier or from_pretrained"):
        head(random_pixels("resnet"))


def test_a_field_under_its_name_of_before():
    classifier = tiny_classifier("resnet")
    head = ScanForSaliency.from_classifier(classifier, decoder="transformer", decoder_width=2, levels=1)
    saved = head.config.to_dict()
    assert saved["decoder_type"] == "transformer" and "decoder" not in saved
    assert head.config.get_text_config() is head.config  # which takes `decoder` for a configuration inside
    before = {"decoder" if name == "decoder_type" else name: value for name, value in saved.items()}
    assert ScanConfig.from_dict(before).to_dict() == saved
    with pytest.raises(ValueError, match="`decoder_type` must be one of cnn, transformer"):
        ScanConfig(decoder="rnn")


@pytest.mark.parametrize("self_contained", [False, True])
def test_a_head_in_memory(tmp_path, self_contained):
    head = LCamForSaliency.from_classifier(save_classifier("vit", tmp_path), self_contained=self_contained)
    made = LCamForSaliency.from_pretrained(None, config=head.config, state_dict=head.state_dict())
    pixel_values = random_pixels("vit")
    assert torch.equal(made(pixel_values).saliency, head(pixel_values).saliency)
    lost = {name: value for name, value in head.state_dict().items() if not name.startswith("attention")}
    with pytest.raises(ValueError, match="The weights of the head 'LCamForSaliency' lack 2 tensors"):
        LCamForSaliency.from_pretrained(None, config=head.config, state_dict=lost)


def test_attention_without_a_classifier_and_by_part():
    config = LCamForSaliency.from_classifier(tiny_classifier("vit")).config
    head = LCamForSaliency(config)
    for name in ("eager", "sdpa"):
        head.set_attn_implementation(name)
        assert head.config._attn_implementation == head.config.backbone_config._attn_implementation == name
    head.attach(tiny_classifier("vit"))
    head.set_attn_implementation({"backbone_config": "eager"})
    assert head.backbone.model.config._attn_implementation == "eager"
    assert head.config.backbone_config._attn_implementation == "eager" and head.config._attn_implementation == "sdpa"
    head.set_attn_implementation({"": "eager"})
    head.set_attn_implementation({"": "sdpa"})
    assert head.backbone.model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="does not support an attention implementation through torch"):
        LCamForSaliency.from_classifier(tiny_classifier("resnet")).set_attn_implementation("sdpa")


def test_the_meta_device(tmp_path):
    head = saved_head(tmp_path, self_contained=True)
    config = LCamForSaliency.config_class.from_pretrained(tmp_path / "head")
    with torch.device("meta"):
        made = LCamForSaliency(config)
        with pytest.raises(RuntimeError, match="You are using `from_pretrained` with a meta device context manager"):
            LCamForSaliency.from_pretrained(tmp_path / "head")
    assert {tensor.device.type for tensor in snapshot(made).values()} == {"meta"}
    made.to_empty(device="cpu").load_state_dict(head.state_dict() | dict(head.backbone.state_dict(prefix="backbone.")))
    assert_frozen(made.backbone)


# ------------------------------------------------------------------ the classifier


def test_classifier_by_directory_instance_or_frozen(tmp_path):
    directory = save_classifier("resnet", tmp_path)
    pixel_values = random_pixels("resnet")
    outputs = []
    for classifier in (directory, tmp_path, tiny_model("resnet"), tiny_classifier("resnet")):
        torch.manual_seed(0)
        head = LCamForSaliency.from_classifier(classifier)
        assert_frozen(head.backbone)
        assert not head.training
        outputs.append(head(pixel_values, target=2).saliency)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize(
    ("options", "option"),
    [({"dtype": torch.bfloat16}, "dtype"), ({"attn_implementation": "eager"}, "attn_"), ({"revision": "v1"}, "revis")],
)
def test_loading_options_for_a_classifier_that_is_loaded(options, option):
    for classifier in (tiny_model("resnet"), tiny_classifier("resnet")):
        with pytest.raises(TypeError, match=f"`{option}.* is loaded already .a .*; leave it out, or give a directory"):
            LCamForSaliency.from_classifier(classifier, **options)
    LCamForSaliency.from_classifier(tiny_model("resnet"), dtype=None, revision=None)


@pytest.mark.parametrize(
    "revision", ["../..", "../../x", "a/../b", "/etc", "main/", "/", "a//b", ".", "..", "a\nb", "a\x00", "C:\\x", "~"]
)
def test_a_revision_that_leads_out_of_a_cache(revision):
    with pytest.raises(ValueError, match="`backbone_revision` must be a commit of 40 digits or the name of a branch"):
        LCamConfig(backbone_revision=revision)


def test_revisions_that_are_names():
    for revision in (None, "0123456789" * 4, "main", "v1.0", "refs/pr/12", "feature/a-b_c"):
        assert LCamConfig(backbone_revision=revision).backbone_revision == revision


def test_a_head_without_a_fingerprint_says_so(tmp_path, caplog):
    saved_head(tmp_path)
    LCamForSaliency.from_pretrained(tmp_path / "head")
    assert not caplog.messages
    edit_config(tmp_path / "head", backbone_fingerprint=None)
    LCamForSaliency.from_pretrained(tmp_path / "head")
    (message,) = caplog.messages
    assert "has no fingerprint of its classifier" in message and "\n" not in message
    LCamForSaliency.from_pretrained(tmp_path / "head", verify_fingerprint=False)  # knows
    assert len(caplog.messages) == 1


def test_attach_to_another_of_its_kind():
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"))
    other = tiny_classifier("resnet", seed=9)
    with pytest.raises(ValueError, match="another fingerprint"):
        head.attach(other)
    assert head.backbone is not other
    assert head.attach(other, verify_fingerprint=False).backbone is other
    with pytest.raises(ValueError, match=r"taps \['stage4'\] with \[24\] channels, the classifier has"):
        wide = tiny_model("resnet").config
        wide.hidden_sizes = [8, 12, 16, 32]
        head.attach(FrozenClassifier(type(tiny_model("resnet"))(wide)))
    with pytest.raises(ValueError, match="`layer` 'stage4' does not exist"):
        head.attach(tiny_classifier("vit"))


def test_classifier_given_when_loading(tmp_path):
    head = saved_head(tmp_path)
    shutil.move(tmp_path / "classifier", tmp_path / "renamed")
    pixel_values = random_pixels("resnet")
    moved = tmp_path / "renamed"
    for classifier in (str(moved), moved, tiny_model("resnet"), tiny_classifier("resnet")):
        loaded = LCamForSaliency.from_pretrained(tmp_path / "head", classifier=classifier)
        assert torch.equal(loaded(pixel_values).saliency, head(pixel_values).saliency)
        assert_frozen(loaded.backbone)
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        LCamForSaliency.from_pretrained(tmp_path / "head", classifier=str(tmp_path / "nowhere"))


def test_loading_never_writes_to_the_classifier(tmp_path):
    saved_head(tmp_path)
    before = files_below(tmp_path)
    model = tiny_model("resnet")
    weights = snapshot(model)
    LCamForSaliency.from_pretrained(tmp_path / "head", classifier=model)
    assert_unchanged(model, weights)
    assert files_below(tmp_path) == before


def test_classifier_inside_the_heads_directory(tmp_path):
    head = saved_head(tmp_path)
    shutil.move(tmp_path / "classifier", tmp_path / "head" / "classifier")
    loaded = LCamForSaliency.from_pretrained(tmp_path / "head")
    assert torch.equal(loaded(random_pixels("resnet")).saliency, head(random_pixels("resnet")).saliency)


def test_relative_directories_load_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("classifier")
    save_classifier("resnet", "classifier")
    LCamForSaliency.from_classifier("classifier").save_pretrained("head")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert LCamForSaliency.from_pretrained("../head").backbone.num_labels == 5


def test_head_from_the_hub_may_not_name_a_local_path(hub, tmp_path):
    import huggingface_hub

    saved_head(tmp_path)
    huggingface_hub.create_repo("user/head")
    huggingface_hub.upload_folder(repo_id="user/head", folder_path=tmp_path / "head")
    with pytest.raises(ValueError, match="from the Hub names a local path, .* as its classifier, which is refused"):
        LCamForSaliency.from_pretrained("user/head")
    loaded = LCamForSaliency.from_pretrained("user/head", classifier=tmp_path / "classifier")
    assert loaded.backbone.num_labels == 5


def test_pickled_weights_are_not_opened(tmp_path):
    saved_head(tmp_path)
    (tmp_path / "head" / "model.safetensors").unlink()
    torch.save({"attention.weight": torch.zeros(5, 24, 1, 1)}, tmp_path / "head" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"weights as a pickle only \(pytorch_model.bin\)"):
        LCamForSaliency.from_pretrained(tmp_path / "head")


# ------------------------------------------------------------------ saving


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path):
    head = saved_head(tmp_path)
    first = files_below(tmp_path / "head")
    (tmp_path / "head" / "notes.txt").write_text("mine")
    with torch.no_grad():
        head.attention.bias.add_(1)
    head.save_pretrained(tmp_path / "head")
    second = files_below(tmp_path / "head")
    assert second.keys() == {*first, "notes.txt"} and second["notes.txt"] == b"mine"
    assert second["model.safetensors"] != first["model.safetensors"]
    assert second["config.json"] == first["config.json"]
    assert sorted(os.listdir(tmp_path)) == ["classifier", "head"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_saved_files_follow_the_umask(tmp_path, umask):
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"))
    before = os.umask(umask)
    try:
        for _ in range(2):  # new, and over what is there
            head.save_pretrained(tmp_path / "head")
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "head").iterdir()}
            assert modes["model.safetensors"] == 0o666 & ~umask and len(set(modes.values())) == 1
    finally:
        os.umask(before)


def test_existing_directory_needs_no_writable_parent(tmp_path, monkeypatch):
    """A mounted volume: nothing can be made beside it, nor renamed into it."""
    import tempfile

    head = saved_head(tmp_path)
    (tmp_path / "volume").mkdir()
    real = tempfile.mkdtemp

    def only_inside(*args, dir=None, **kwargs):
        assert Path(dir) == tmp_path / "volume"
        return real(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, "mkdtemp", only_inside)
    head.save_pretrained(tmp_path / "volume")
    assert files_below(tmp_path / "volume").keys() == files_below(tmp_path / "head").keys()


def test_file_system_without_hard_links(tmp_path, monkeypatch):
    head = saved_head(tmp_path)
    before = files_below(tmp_path)

    def no_links(*args, **kwargs):
        raise OSError("links are not supported")

    real = os.replace

    def fail_at_config(source, destination):
        if destination.name == "config.json":
            raise OSError(28, os.strerror(28))
        return real(source, destination)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", fail_at_config)
    with torch.no_grad():
        head.attention.bias.add_(1)
    with pytest.raises(OSError, match="could not save to .*head': No space left on device"):
        head.save_pretrained(tmp_path / "head")
    monkeypatch.undo()
    assert files_below(tmp_path) == before


def test_safetensors_own_error_is_one_clear_sentence(tmp_path, monkeypatch):
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"))

    def full(*args, **kwargs):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="could not save to .*head': .*No space left on device"):
        head.save_pretrained(tmp_path / "head")
    assert not files_below(tmp_path)


def test_kernel_that_refuses_to_write(tmp_path):
    """Not simulated: a limit on the size of files, which fails as a full disk does."""
    head = saved_head(tmp_path)
    before = files_below(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for target in (tmp_path / "new" / "head", tmp_path / "head"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, limits[1]))
        try:
            with pytest.raises(OSError, match="could not save to .* Nothing half-written was left there") as error:
                head.save_pretrained(target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(target) in str(error.value)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (LCamConfig, {"feature_layers": "stage4"}, "`feature_layers` must be a list or None, got 'stage4'"),
        (LCamConfig, {"area_weight": "2"}, "`area_weight` must be a number, got '2'"),
        (LCamConfig, {"self_contained": "yes"}, "`self_contained` must be true or false, got 'yes'"),
        (TTameConfig, {"max_map_size": 7.5}, "`max_map_size` must be a whole number, got 7.5"),
        (TTameConfig, {"mask_space": 1}, "`mask_space` must be a string or None, got 1"),
        (TTameConfig, {"mask_fills": "blur"}, "`mask_fills` must be a list or None, got 'blur'"),
        (TTameConfig, {"skip": None}, "`skip` must be true or false, got None"),
        (ScanConfig, {"levels": True}, "`levels` must be a whole number or None, got True"),
        (ScanConfig, {"decoder_widths": "8"}, "`decoder_widths` must be a list or None, got '8'"),
    ],
)
def test_fields_of_another_type(config, fields, message):
    """What a command line or a config.json holds is judged before anything is computed with it."""
    with pytest.raises(TypeError, match=message):
        config(**fields)


@pytest.mark.parametrize("head_class", [LCamForSaliency, TTameForSaliency])
def test_a_head_trained_by_masking_needs_two_classes(head_class):
    with pytest.raises(ValueError, match=f"`classifier` has one class.*{head_class.__name__} .*needs two; use Scan"):
        head_class.from_classifier(tiny_classifier("resnet", num_labels=1))


def test_scan_explains_one_logit():
    head = ScanForSaliency.from_classifier(tiny_classifier("resnet", num_labels=1), levels=1, decoder_width=4)
    assert head(random_pixels("resnet"), return_loss=True).loss.isfinite()
