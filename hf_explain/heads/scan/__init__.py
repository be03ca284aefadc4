from hf_explain.heads.scan.configuration_scan import ScanConfig
from hf_explain.heads.scan.modeling_scan import ScanForSaliency


__all__ = ["ScanConfig", "ScanForSaliency"]
