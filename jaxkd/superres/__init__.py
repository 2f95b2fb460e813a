"""Super-resolution of whole pictures: tiling, image files, scores and the before/after page."""
