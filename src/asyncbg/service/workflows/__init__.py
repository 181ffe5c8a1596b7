"""The service's workflows, one vertical slice a file: what may be sent, the route, the tasks. None imports another.

What they share is how work is accepted: ``acceptance``.
"""
