"""EXL3: exllamav3's converter and its environment, and what is looked at on what it makes."""
