"""Processes, their environments, and where their time goes."""
