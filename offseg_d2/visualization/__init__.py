"""Pictures: overlays, offsets, datasets, learning curves."""
