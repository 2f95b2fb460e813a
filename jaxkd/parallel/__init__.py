"""Meshes, shardings and hosts: the only place that knows how many devices there are."""

from jaxkd.parallel.hosts import (
    any_host,
    initialize_distributed,
    is_main_host,
    is_peer_loss,
    main_host_decides,
    sum_over_hosts,
)
from jaxkd.parallel.mesh import (
    BATCH_AXES,
    FSDP_AXIS,
    MODEL_AXIS,
    batch_devices,
    batch_spec,
    check_batch,
    make_mesh,
    slices_of_group,
)
from jaxkd.parallel.sharding import (
    batch_sharding,
    gather_weights,
    on_each_device,
    path_of,
    put_batch,
    put_on_mesh,
    replicated,
    split_weights,
    splits_members,
    tree_shardings,
)
