"""Meshes, shardings and hosts: the only place that knows how many devices there are."""

from jaxkd.parallel.hosts import initialize_distributed, is_main_host
from jaxkd.parallel.mesh import check_batch, make_mesh
from jaxkd.parallel.sharding import batch_sharding, put_batch, put_replicated, replicated, tree_shardings

__all__ = [
    "batch_sharding",
    "check_batch",
    "initialize_distributed",
    "is_main_host",
    "make_mesh",
    "put_batch",
    "put_replicated",
    "replicated",
    "tree_shardings",
]
