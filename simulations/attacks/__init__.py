"""Attacks on runs of this program: what an adversary learns from what leaves a silo, measured where the truth is known."""
