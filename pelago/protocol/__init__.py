"""The conversations between nodes, as pure parts of machines: joining, uploading an update, moving a payload."""
