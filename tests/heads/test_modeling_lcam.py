from testing_common import ExplainerTesterMixin

from hf_explain.heads.lcam import LCamForSaliency


class TestLCam(ExplainerTesterMixin):
    head_class = LCamForSaliency
    variants = {"img": {"variant": "img"}, "fm": {"variant": "fm"}}
