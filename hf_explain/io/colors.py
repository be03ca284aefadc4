"""The colours of every picture, safe for the colour-blind. Nothing here needs more than Python."""

from __future__ import annotations


COLORMAPS = ("viridis", "cividis", "inferno", "magma", "plasma")  # of maps; the first is the default
DIVERGING = "RdBu_r"  # of maps with a sign: blue below 0, red above
OPACITY = 0.8  # of an overlay where the map is 1

# Okabe and Ito's palette without its yellow, which is too faint for a line on white, and with black last
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# What a colour means wherever explainers stand side by side: blue for trained heads, warm for training-free methods,
# grey for controls, the later ones for several lines of a kind. All are dark enough for words on white.
KINDS: dict[str, tuple[str, ...]] = {
    "trained head": ("#0072B2", "#2E95D3", "#0B3C6B"),
    "training-free method": ("#D55E00", "#A36F00", "#B5508B", "#8C3B00"),
    "control": ("#6E6E6E", "#8C8C8C"),
}
INK, PAPER = "#202124", "#ffffff"
