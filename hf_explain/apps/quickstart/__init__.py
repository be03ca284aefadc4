"""One command from nothing to a trained explainer, its pictures and its numbers."""

from hf_explain.apps.quickstart.run import run_quickstart


__all__ = ["run_quickstart"]
