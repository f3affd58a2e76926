"""What nodes say to one another: the messages and their encoding. Pure."""
