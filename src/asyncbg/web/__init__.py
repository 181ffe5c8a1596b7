"""The library's HTTP routes: jobs, event streams, health, metrics and the dashboard."""
