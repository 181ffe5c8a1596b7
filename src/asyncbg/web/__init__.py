"""The library's HTTP routes, their schemas and problem documents, and the JavaScript client."""
