"""The signed bundle: what a federation ships to its silos and what is served, and nothing that can run code.

A bundle holds the student model, the item vectors, the public catalogue and a card that says how it came about.
"""
