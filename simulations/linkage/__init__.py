"""How anonymous is a question to the coordinator's service? Two days of recorded questions are matched by an adversary who has
everything but the names: :mod:`.visits` says who asks when, :mod:`.recorded` what is seen, :mod:`.matching` how it is matched,
:mod:`.repeats` what many questions of one person tell, :mod:`.choice` what protection costs and which is the default.
"""
