"""The threads in which a node's tensors are changed, staged, read and trained on."""
