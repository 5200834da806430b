"""Bridges: programs that have analytics of their own send them through the outbox, one module per program."""
