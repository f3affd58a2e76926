"""The sockets of a node: control and bulk, how a client finds its server and notices that it is gone."""
