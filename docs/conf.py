"""Sphinx: `pip install -e '.[docs]'`, then `sphinx-build docs build/site`. The pages read well without it."""

project = "pqc"
author = "the pqc authors"
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["generate.py"]
myst_heading_anchors = 3
