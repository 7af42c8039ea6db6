"""The colours of figures and pages: calm, and told apart by colour-blind readers (after Okabe and Ito)."""

INK, SOFT, FAINT, PAPER = "#1f2933", "#64707d", "#e3e7eb", "#ffffff"
COLOURS = {
    "none": "#7b8794",
    "on": "#0072b2",
    "off": "#e69f00",
    "random": "#cc79a7",
}  # one a mode of retrieval
BETTER, WORSE = "#0072b2", "#d55e00"
SOURCES = ["#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#7b8794"]
