"""Policies on the same arrivals: cells, comparisons with intervals, capacity, a look at single decisions."""
