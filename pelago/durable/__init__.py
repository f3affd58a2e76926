"""What a durable server saves, and how its state is recovered from it: images, records, replay. Pure."""
