"""The result of an evaluation for readers: tables, plots, one self-contained HTML file."""
