"""Files of people: read with one line for whatever is wrong, written whole or not at all."""
