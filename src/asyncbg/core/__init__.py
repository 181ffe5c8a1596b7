"""The words of the field as frozen values: jobs, events, retry policy, ids and time."""
