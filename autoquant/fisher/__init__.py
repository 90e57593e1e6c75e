"""Bits where a model needs them: what each quantization type of each matrix would cost, predicted
by the Fisher information, and the choice of types for a size.

Sources: the second-order expansion of a loss with a diagonal Hessian (LeCun, Denker, Solla: Optimal
Brain Damage, 1989), which for a model's own predictions is the Fisher information (Amari: Natural
Gradient Works Efficiently in Learning, 1998, for KL divergence); that the damages of layers add up
was found useful by HIGGS (Malinovskii and others: Pushing the Limits of LLM Quantization via the
Linearity Theorem, 2024). llama.cpp's discussion of bits for a size is its pull request 15550.
"""
