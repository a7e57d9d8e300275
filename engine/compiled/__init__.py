"""How functions are compiled, and where the compiled ones are kept."""
