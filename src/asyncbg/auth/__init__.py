"""Who calls and what they may do: API keys, sessions, tickets, ownership and the audit log."""
