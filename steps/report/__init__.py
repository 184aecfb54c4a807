"""What people read of a result: `pages` writes the report and the card, `index` lists all experiments.

`history` remembers; `plots` draws PNG files, `charts` the drawings of the pages, `tables` writes CSV. All is
made from `comparison.json`, and for the report from a `sheet` with what is too bulky for it. Names of classes
and whatever else came with the data are hostile: HTML, SVG and Markdown are escaped, plots take them as plain
text, and pages run no scripts.
"""
