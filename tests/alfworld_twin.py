"""ALFWorld in plain Python, one game, as facts by name: slow and obvious, to compare the engine with.

It reads the game file by itself, and takes nothing from the package.
"""

import json
import re
from pathlib import Path

KINDS_OF_HEAT = {"clean": "sinktype sinkbasintype", "heat": "microwavetype", "cool": "fridgetype"}


def brackets(text: str) -> list:
    """Nested lists of the words of an s-expression."""
    text = re.sub(r";.*", "", text).lower()
    words = re.sub(r"([()])", r" \1 ", text).split()

    def read(i: int):
        out = []
        while words[i] != ")":
            part, i = read(i + 1) if words[i] == "(" else (words[i], i + 1)
            out.append(part)
        return out, i + 1

    return read(1)[0]


class Twin:
    """reset(), step(command), commands(), won()."""

    def __init__(self, path: str | Path):
        data = json.loads(Path(path).read_text())
        sections = {part[0]: part[1:] for part in brackets(data["pddl_problem"])[1:]}
        self.start = {tuple(fact) for fact in sections[":init"] if fact[0] != "="}
        self.goal = sections[":goal"][0]
        words = iter(sections[":objects"])
        self.type, group = {}, []
        for word in words:
            if word == "-":
                kind = next(words)
                self.type.update((name, kind) for name in group)
                group = []
            else:
                group.append(word)
        self.task = re.search(r'"task":\s*\[\s*\{\s*"rhs":\s*"(.*?)"\s*\}', data["grammar"], re.S).group(1)
        self.newer = '"move {o} to {r}"' in data["grammar"]
        self.help = re.search(r'"help.feedback":\s*\[\s*\{\s*"rhs":\s*(".*?")\s*\}', data["grammar"], re.S)
        self.cleaners = KINDS_OF_HEAT["clean"].split()
        clean = re.search(r":action CleanObject.*?:effect", data["pddl_domain"], re.S).group(0)
        if "SinkType" not in re.sub(r";.*", "", clean):
            self.cleaners = ["sinkbasintype"]
        ids = sorted({argument for fact in self.start for argument in fact[1:]})
        self.ids = ids
        groups: dict[str, list[str]] = {}
        for i in ids:
            if "_bar_" in i:
                groups.setdefault(i.split("_bar_")[0] + "basin" * ("basin" in i), []).append(i)
        self.name = {i: f"{i} " for i in ids}
        for kind, members in groups.items():
            for number, i in zip(range(len(members), 0, -1), members, strict=True):
                self.name[i] = f"{kind} {number}"

    # What is so.

    def has(self, *fact: str) -> bool:
        return fact[1:] in self.facts.get(fact[0], ())

    def all(self, name: str) -> list[tuple[str, ...]]:
        return sorted(self.facts.get(name, ()))

    def kinds(self, what: str, i: str) -> set[str]:
        return {fact[2] for fact in self.start if fact[0] == what and fact[1] == i}

    def location(self) -> str:
        return self.all("atlocation")[0][1]

    def here(self) -> list[str]:
        return [r for r, where in self.all("receptacleatlocation") if where == self.location()]

    def held(self) -> str | None:
        return next((o for _, o in self.all("holds")), None)

    def add(self, name: str, *of: str) -> None:
        self.facts.setdefault(name, set()).add(of)

    def drop(self, name: str, *of: str) -> None:
        self.facts.setdefault(name, set()).discard(of)

    def is_reachable(self, r: str) -> bool:
        return r in self.here() and (not self.has("openable", r) or self.has("opened", r))

    def won(self) -> bool:
        return self.holds(self.goal, {})

    def holds(self, formula, bound: dict[str, str]) -> bool:
        """Whether a formula is true, by trying everything that a variable can be."""
        head = formula[0]
        if head in ("and", "or"):
            return (all if head == "and" else any)(self.holds(part, bound) for part in formula[1:])
        if head == "not":
            return not self.holds(formula[1], bound)
        if head == "=":
            return bound.get(formula[1], formula[1]) == bound.get(formula[2], formula[2])
        if head != "exists":
            return self.has(head, *(bound.get(word, word) for word in formula[1:]))
        names = [word for word in formula[1] if word.startswith("?")]
        kinds = [formula[1][formula[1].index("-", formula[1].index(name)) + 1] for name in names]
        return self.some(names, kinds, formula[2], bound)

    def some(self, names: list[str], kinds: list[str], formula, bound: dict[str, str]) -> bool:
        if not names:
            return self.holds(formula, bound)
        simple = formula[1:] if formula[0] == "and" else []
        for i in self.ids:
            if self.type.get(i) == kinds[0]:
                now = bound | {names[0]: i}
                free = set(names[1:])
                known = [p for p in simple if p[0] not in ("exists", "not", "and", "or") and not free & set(p)]
                if all(self.holds(part, now) for part in known) and self.some(names[1:], kinds[1:], formula, now):
                    return True
        return False

    # What is said.

    def listed(self, names: list[str]) -> str:
        if len(names) < 2:
            return names[0] if names else "nothing"
        return ", ".join(names[:-1]) + ", and " + names[-1]

    def a(self, ids: list[str]) -> str:
        return self.listed([f"a {self.name[i]}" for i in ids])

    def look(self, is_start: bool = False) -> str:
        here = self.here()
        if not here:  # the command says which location it is for, and no receptacle is there
            places = [r for r, _ in self.all("receptacleatlocation")] if is_start else []
            return f"You are in the middle of a room. Looking quickly around you, you see {self.a(places)}."
        lying = sorted(o for o, where in self.all("objectatlocation") if where == self.location())
        near = [o for o in lying for r in here if self.has("not_inreceptacle", o, r)]
        return f"You are facing the {self.listed([self.name[r] for r in here])}. Next to it, you see {self.a(near)}."

    def sight(self, r: str) -> str:
        inside = self.a([o for o, where in self.all("inreceptacle") if where == r])
        if not self.has("openable", r):
            return f"On the {self.name[r]}, you see {inside}."
        return f"The {self.name[r]} is " + (f"open. In it, you see {inside}." if self.has("opened", r) else "closed.")

    def inspect(self, o: str) -> str:
        name = self.name[o]
        if self.has("isreceptacleobject", o):
            inner = [thing for thing, outer in self.all("inreceptacleobject") if outer == o]
            return f"This is a normal {name}. In it, you see {self.a(inner)}."
        hot, cool, clean, sliced = (self.has(fact, o) for fact in ("ishot", "iscool", "isclean", "issliced"))
        if sliced and (hot or cool or clean):
            how = " and ".join(w for w, on in (("hot", hot), ("cool", cool and not hot), ("clean", clean)) if on)
            return f"This is a {how} sliced {name}."
        if clean and (hot or cool):
            return f"This is a {'hot' if hot else 'cool'} and clean {name}."
        if hot or clean or cool:
            return f"This is a {'hot' if hot else 'clean' if clean else 'cold'} {name}."
        if self.has("toggleable", o) and self.has("istoggled", o):
            return f"This {name} is on."
        if self.has("sliceable", o) and sliced:
            return f"This is a sliced {name}."
        return f"There's nothing special about {name}."

    # What is done.

    def reset(self) -> str:
        self.facts: dict[str, set[tuple[str, ...]]] = {}
        for fact in self.start:
            self.add(*fact)
        return f"-= Welcome to TextWorld, ALFRED! =-\n\n{self.look(is_start=True)}\n\n{self.task}"

    def found(self) -> dict[str, tuple]:
        """The commands that are admissible, and what they are."""
        out, name, held, here = {"look": ("look",), "inventory": ("inventory",)}, self.name, self.held(), self.here()
        if self.newer:
            out["help"] = ("help",)
        for r, where in self.all("receptacleatlocation"):
            if where != self.location():
                out[f"go to {name[r]}"] = "go", r
        for r in here:
            out[f"examine {name[r]}"] = "examine", r
            if self.has("openable", r):
                verb = "close" if self.has("opened", r) else "open"
                out[f"{verb} {name[r]}"] = verb, r
        for o, r in self.all("inreceptacle"):
            if r in here and self.has("toggleable", o):
                out[f"use {name[o]}"] = "use", o
            if held is None and self.is_reachable(r) and self.has("pickupable", o):
                out[f"take {name[o]} from {name[r]}"] = "take", o, r
        if held is None:
            return out
        out[f"examine {name[held]}"] = "inspect", held
        kinds = self.kinds("objecttype", held)
        for r in here:
            where = self.kinds("receptacletype", r)
            if self.is_reachable(r) and any(self.has("cancontain", a, b) for a in where for b in kinds):
                put = f"move {name[held]} to {name[r]}" if self.newer else f"put {name[held]} in/on {name[r]}"
                out[put] = "put", held, r
            for verb, places in (KINDS_OF_HEAT | {"clean": " ".join(self.cleaners)}).items():
                if where & set(places.split()) and self.has(f"{verb}able", held):
                    out[f"{verb} {name[held]} with {name[r]}"] = verb, held, r
        if kinds & {"knifetype", "butterknifetype"}:
            for o, where in self.all("objectatlocation"):
                if where == self.location() and self.has("sliceable", o):
                    out[f"slice {name[o]} with {name[held]}"] = "slice", o, held
        return out

    def commands(self) -> list[str]:
        return sorted(self.found())

    def step(self, command: str) -> str:
        verb, *rest = self.found().get(command.strip(), ("nothing",))
        name = [self.name[i] for i in rest]
        add, drop = self.add, self.drop
        if verb == "nothing":
            return "Nothing happens."
        if verb == "go":
            where = next(place for r, place in self.all("receptacleatlocation") if r == rest[0])
            drop("atlocation", "agent1", self.location())
            add("atlocation", "agent1", where)
            return f"You arrive at {name[0] if self.newer else self.name[where]}. {self.sight(rest[0])}"
        if verb == "open":
            add("opened", rest[0])
            return f"You open the {name[0]}. {self.sight(rest[0])}"
        if verb == "close":
            drop("opened", rest[0])
            return f"You close the {name[0]}."
        if verb == "take":
            drop("inreceptacle", *rest)
            add("not_inreceptacle", *rest)
            add("holds", "agent1", rest[0])
            drop("objectatlocation", rest[0], self.location())
            return f"You pick up the {name[0]} from the {name[1]}."
        if verb == "put":
            add("inreceptacle", *rest)
            drop("not_inreceptacle", *rest)
            drop("holds", "agent1", rest[0])
            add("objectatlocation", rest[0], self.location())
            said = "You move the {} to the {}." if self.newer else "You put the {} in/on the {}."
            return said.format(*name)
        if verb in KINDS_OF_HEAT:
            add({"clean": "isclean", "heat": "ishot", "cool": "iscool"}[verb], rest[0])
            if verb != "clean":
                drop("iscool" if verb == "heat" else "ishot", rest[0])
            return f"You {verb} the {name[0]} using the {name[1]}."
        if verb == "slice":
            add("issliced", rest[0])
            return f"You sliced the {name[0]} with the {name[1]}."
        if verb == "use":
            add("istoggled", rest[0])
            return f"You turn on the {name[0]}."
        if verb == "inventory":
            return f"You are carrying: {self.a([self.held()])}." if self.held() else "You are not carrying anything."
        if verb == "help":
            return json.loads(self.help.group(1)).lstrip()
        return {"look": self.look, "examine": self.sight, "inspect": self.inspect}[verb](*rest)
