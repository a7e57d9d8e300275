"""Which settings of vLLM fit somebody's traffic, what they carry, and how many GPUs a day takes."""
