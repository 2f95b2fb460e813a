"""Records of data sets: image folders, shards, TFDS, image pairs, embedded data."""
