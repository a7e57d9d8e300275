"""Searches without gradients of single decisions: evolution and the static mixture."""
