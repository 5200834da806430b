"""The durable store of one application: a log of messages, a cursor per destination, and a gate before both."""
