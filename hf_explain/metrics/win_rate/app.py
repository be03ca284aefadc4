"""Serve `win_rate` as a web page: `python app.py`."""

from pathlib import Path

from hf_explain.metrics.module import launch_demo


def main() -> None:
    """Start the page."""
    launch_demo(str(Path(__file__).resolve().parent))


if __name__ == "__main__":
    main()
