"""BabyAI: gridworlds in English. minigrid makes the levels on the host; they are played on the device.

levels.py reads levels, environment.py is minigrid's engine (primitive actions, verifier, view), macros.py AgentBoard's
text layer on top of it (search.py finds its paths, wording.py holds its texts), expert.py plays to win. tasks.py makes
tasks of levels: walks.py walks through them before anything is asked, telling.py words what is told.
"""
