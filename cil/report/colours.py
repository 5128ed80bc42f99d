"""Colours of plots and pages."""

from __future__ import annotations

# Okabe and Ito's colours without yellow, then darker ones: told apart by most readers with a colour deficiency;
# for more than ten rows a deeper shade of each
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c510a", "#35978f", "#7f7f7f"),
    *("#003a5c", "#7d3700", "#00573f", "#8a3f68", "#8a6000", "#2a7fb5", "#3a2158", "#4c2c05", "#1c5650", "#454545"),
)
INK, FAINT, BOUND = "#1f2933", "#d9dee4", "#52606d"
ON_DARK, ON_LIGHT = "#fefefe", "#1e2832"  # text on the coloured cells of a heat map, whatever the page's colours are
