"""The coordinator's service: answers silos' anonymous questions from one signed bundle over gRPC.

It learns which silo asks, by its certificate, and nothing about who is behind a question. It keeps nothing, and logs nothing
about a request. What a silo puts into a question is the silo's side (:mod:`client.private_history`).
"""
