"""Transformers' own tests of a model, over every head and family, with what does not apply to a head and why."""

import subprocess

import pytest
from transformers_common import fetch, run

from hf_explain.heads.lcam import LCamForSaliency
from hf_explain.heads.scan import ScanForSaliency
from hf_explain.heads.ttame import TTameForSaliency


pytestmark = pytest.mark.slow

_HIDDEN_STATES = "asks for hidden states, which are the classifier's: head.backbone.model gives them"
EXCEPTIONS = {
    "test_can_capture_specific_layers_hidden_states": _HIDDEN_STATES,
    "test_capture_outputs_decorator": _HIDDEN_STATES,
    "test_hidden_states_output": _HIDDEN_STATES,
    "test_retain_grad_hidden_states_attentions": _HIDDEN_STATES,
    "test_model_outputs_equivalence": _HIDDEN_STATES + "; tuples are in ExplainerTesterMixin",
    "test_model_get_set_embeddings": "wants the embeddings of tokens, and images have none",
    "test_model_weights_reload_no_missing_tied_weights": "loads a file without a single weight of the head, which is "
    "refused",
}
RESNET_EXCEPTIONS = {
    "test_load_contiguous_weights": "wants weights in the order of their dimensions; a ResNet's are in channels_last",
}
HEADS = {
    "lcam": (LCamForSaliency, {}),
    "ttame": (TTameForSaliency, {}),
    "scan": (ScanForSaliency, {"decoder_width": 2, "levels": 1}),
}


@pytest.fixture(scope="module")
def common(tmp_path_factory, pytestconfig):
    try:
        return fetch(tmp_path_factory.mktemp("transformers"), pytestconfig)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"The tests of the installed Transformers could not be fetched from the package index: {error}")


@pytest.mark.parametrize("family", ["vit", "deit", "convnext", "resnet"])
@pytest.mark.parametrize("head", HEADS)
def test_common_tests(common, head, family):
    head_class, fields = HEADS[head]
    found = run(*common, head_class, family, **fields)
    outcomes = list(found.values())
    failed = {name: said for name, said in found.items() if said not in ("passed", "skipped")}
    print(f"{head} on {family}: {outcomes.count('passed')} passed, {outcomes.count('skipped')} skipped, "
          f"{len(failed)} exceptions")  # fmt: skip
    exceptions = EXCEPTIONS | (RESNET_EXCEPTIONS if family == "resnet" else {})
    unexpected = {name: said for name, said in failed.items() if name not in exceptions}
    assert not unexpected, "\n".join(f"{name}: {said}" for name, said in unexpected.items())
    assert not [name for name in exceptions if found[name] == "passed"], "no longer exceptions"
