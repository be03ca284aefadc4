from hf_explain.heads.ttame.configuration_ttame import TTameConfig
from hf_explain.heads.ttame.modeling_ttame import TTameForSaliency


__all__ = ["TTameConfig", "TTameForSaliency"]
