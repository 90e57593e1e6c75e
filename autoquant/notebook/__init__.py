"""What notebooks need: forms, Colab, and the lesson's helpers."""
