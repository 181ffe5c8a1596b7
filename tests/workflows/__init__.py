"""Every workflow end to end: a real server, a real mail server, a real HTTP peer."""
