"""Surgery: apply a plan to modules, buffers and optimizer state, wholly or not at all."""
