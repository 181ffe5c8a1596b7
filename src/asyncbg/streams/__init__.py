"""The event streams: one file opens one, replays from the log, follows the bus and ends it."""
