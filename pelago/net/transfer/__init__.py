"""Payloads on their way in and out, over the sockets of a node."""
