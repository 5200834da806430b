"""What outtray costs, each time beside a named peer and the floor: see `__main__` and `protocol`."""
