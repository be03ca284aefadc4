from hf_explain.heads.lcam.configuration_lcam import LCamConfig
from hf_explain.heads.lcam.modeling_lcam import LCamForSaliency


__all__ = ["LCamConfig", "LCamForSaliency"]
