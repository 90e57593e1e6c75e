"""More than one run: batches of models and methods, here, on a Ray cluster, or as Hugging Face
Jobs.
"""
