"""The settings of an engine against each other on a frozen suite, and results run again to the last bit."""
