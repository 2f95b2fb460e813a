"""Batches from sources: sampling order, worker processes, prefetching, training and evaluation pipelines."""
