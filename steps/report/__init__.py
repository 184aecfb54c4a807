"""What people read of a result: `plots` draws, `pages` writes the report and the card, `index` lists all.

Everything is made from `comparison.json`. Names of classes and whatever else came with the data are
hostile: HTML and Markdown are escaped, plots take them as plain text, and pages run no scripts.
"""
