"""Sources of images with label maps, and the batches that are drawn from them."""
