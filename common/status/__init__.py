"""Seeing what a deployment does: the files that its processes keep up to date, and how they look to people and to machines.

A run's folder holds ``events.jsonl``, all that the federation told, and ``status.json``, what it comes to; a silo's home holds a
``status.json`` of its own. Everything here is read from these files, so it can be seen from any process, and after a crash. They
say nothing of users: rounds, silos, codes, seconds, and of budgets what each silo chooses to show.
"""
