"""From data of others to the table of measurements: one file for each source, which `sources` lists."""
