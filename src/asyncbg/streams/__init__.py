"""Event streams over HTTP (Server-Sent Events): replay from the event log, live events from the bus, and shutdown."""
