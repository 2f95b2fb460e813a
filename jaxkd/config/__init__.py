"""Fields of a training config, their checks, and the recipes that configs/ is written with; imports no JAX."""
