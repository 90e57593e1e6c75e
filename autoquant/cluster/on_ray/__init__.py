"""A batch on a Ray cluster: each job a task on whichever node has room for it.

Ray schedules, retries and carries messages; here is only what a job needs, what a node must have,
and what is said of both.
"""
