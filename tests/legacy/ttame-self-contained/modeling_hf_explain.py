"""Loads this head's classes from the hf-explain package, which has to be installed."""

try:
    from hf_explain import TTameConfig, TTameForSaliency
except ImportError as error:
    raise ImportError(
        "This explainer head needs the hf-explain package: run `pip install hf-explain`, then load it again "
        "(trust_remote_code is not needed then)."
    ) from error

__all__ = ["TTameConfig", "TTameForSaliency"]
