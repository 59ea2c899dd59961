"""The emoji world: scenes, label maps and captions of pictographs, and a CLIP that learns words from them."""
