"""Tier A: the silo's own gateway. It ranks on the silo's machine, for the silo's web server and for people, over HTTP.

No question leaves the silo, and nothing of a question is kept: no identifier is accepted, no request is logged, and the metrics
count requests and nothing else.
"""
