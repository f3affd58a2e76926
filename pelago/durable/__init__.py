"""What a durable server writes down, and how its state is recovered from that: images, records, replay. Pure."""
