"""Journal, snapshots, history and copies of a durable server, and how a new process goes on from them."""
