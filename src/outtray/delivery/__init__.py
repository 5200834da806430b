"""Getting messages from the outbox to their destination."""
