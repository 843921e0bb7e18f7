"""The doctor: looks at an installation, a silo's home or a coordinator's home, says what is wrong and what to do about it.

It changes nothing but a small file that it writes and removes to see whether the disk takes writes, and sends nothing but two
questions that anybody may ask: what the coordinator says of itself, and the signed roster.
"""
