"""Everything that talks to the Hub. Run a second time with the huggingface_hub that Colab ships
(see Makefile).
"""
