"""A stand-in for Colab's own package: put tests/fakes on the path and set COLAB_RELEASE_TAG. No
google/__init__.py: google is a namespace.
"""
