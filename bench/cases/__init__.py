"""Small models in the states in which people have them: see sources.py."""
