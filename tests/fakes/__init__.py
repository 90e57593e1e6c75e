"""Stand-ins for what cannot exist on a test machine: the Hub's servers, Colab's page, a GPU (for
AutoGPTQ and for exllamav2).
"""
