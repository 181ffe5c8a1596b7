"""The event streams and the JavaScript client in a real browser."""
