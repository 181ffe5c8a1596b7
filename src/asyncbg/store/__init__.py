"""The stores that keep jobs and events: one protocol, one conformance suite."""
