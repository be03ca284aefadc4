"""One command from nothing to a trained explainer, its pictures and its numbers."""
