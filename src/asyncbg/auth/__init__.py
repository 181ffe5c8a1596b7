"""Authentication and authorization: API keys, sessions, stream tickets, ownership and the audit log."""
