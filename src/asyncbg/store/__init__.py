"""Stores of jobs and events: one protocol, one conformance suite."""
