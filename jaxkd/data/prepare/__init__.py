"""Data sets prepared once before training: shards and sub-images."""
