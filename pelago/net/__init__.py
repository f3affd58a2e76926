"""The real driver: asyncio, uvloop, ZeroMQ, threads and files."""
