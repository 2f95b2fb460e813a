"""jaxkd: distil, analyse and compress vision models in JAX. `import jaxkd` imports no framework; submodules do."""

__version__ = "0.1.0"
