"""Streams under attack, in short: cut clients, a killed server, a stop; the long forms are in docs/streams.md."""
