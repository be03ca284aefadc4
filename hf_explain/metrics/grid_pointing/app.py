"""Serve `grid_pointing` as a web page: `python app.py`."""

from pathlib import Path

from hf_explain.metrics.module import launch_demo


def main() -> None:
    """Start the page."""
    launch_demo(Path(__file__).resolve().with_name("grid_pointing.py"))


if __name__ == "__main__":
    main()
