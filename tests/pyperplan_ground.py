"""What pyperplan grounds of DOMAIN and PROBLEM, as JSON. Run by test_pddl.py in a process of its own (GPL)."""

import json
import sys

from pyperplan.grounding import ground
from pyperplan.pddl.parser import Parser

out = []
for domain, problem in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    parser = Parser(domain, problem)
    task = ground(parser.parse_problem(parser.parse_domain()), remove_irrelevant_operators=False)
    operators = [
        [op.name, sorted(op.preconditions), sorted(op.add_effects), sorted(op.del_effects)] for op in task.operators
    ]
    out.append({"init": sorted(task.initial_state), "goal": sorted(task.goals), "operators": operators})
json.dump(out, sys.stdout)
