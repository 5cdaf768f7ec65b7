"""Facts stated in the prompt: who has what, of which colour, and where things are.

The answer is one word of the prompt, found by its relation and not by its position. The problem is the set of facts and
what is asked; names and things are drawn anew each time, so there is nothing to remember and everything to look up.
"""

from random import Random

from puna.exercises.exercise import Check, Exercise, Level
from puna.exercises.words import ANIMALS, COLOURS, PEOPLE, PLACES, THINGS


def fact_colour(rng: Random, level: Level) -> Exercise:
    """`Anna has a red ball. Ben has a blue cup. What colour is Ben's cup?`."""
    people, things = rng.sample(PEOPLE, level), rng.sample(THINGS, level)
    colours = rng.sample(COLOURS, level)
    told = _told(rng, [f"{p} has {_a(c)} {t}" for p, c, t in zip(people, colours, things, strict=True)])
    n = rng.randrange(level)
    person, colour, thing = people[n], colours[n], things[n]
    asked = rng.choice(
        (
            f"What colour is {person}'s {thing}?",
            f"Tell me the colour of {person}'s {thing}.",
            f"What colour is the {thing}?",
        )
    )
    statements = (f"{told} {person}'s {thing} is {colour}.", f"{told} The {thing} is {colour}.")
    return _fact("fact_colour", told, asked, colour, level, (f"{person}'s {thing} is {colour}",), statements)


def fact_owner(rng: Random, level: Level) -> Exercise:
    """`Leo has a cat. Mary has a dog. Who has the dog?`, and what somebody has."""
    people, animals = rng.sample(PEOPLE, level), rng.sample(ANIMALS, level)
    verb = rng.choice(("has", "owns"))
    told = _told(rng, [f"{p} {verb} {_a(x)}" for p, x in zip(people, animals, strict=True)])
    n = rng.randrange(level)
    person, animal = people[n], animals[n]
    if rng.random() < 0.5:
        asked = rng.choice((f"Who has the {animal}?", f"Who owns the {animal}?", f"Whose is the {animal}?"))
        answer, accept = person, (f"{person} has the {animal}", f"{person} {verb} the {animal}")
    else:
        asked = rng.choice((f"What does {person} have?", f"Which animal does {person} have?"))
        answer, accept = animal, (_a(animal), f"the {animal}", f"{person} has {_a(animal)}")
    statements = (f"{told} So the {animal} is {person}'s.", f"{told} It is {person} who {verb} {_a(animal)}.")
    return _fact("fact_owner", told, asked, answer, level, accept, statements)


def fact_place(rng: Random, level: Level) -> Exercise:
    """`Tom is in the park. Rosa is in the shop. Where is Rosa?`, and who is somewhere."""
    people, places = rng.sample(PEOPLE, level), rng.sample(PLACES, level)
    told = _told(rng, [f"{p} is in the {x}" for p, x in zip(people, places, strict=True)])
    n = rng.randrange(level)
    person, place = people[n], places[n]
    if rng.random() < 0.5:
        asked = rng.choice((f"Where is {person}?", f"In which place is {person}?"))
        answer, accept = place, (f"the {place}", f"in the {place}", f"{person} is in the {place}")
    else:
        asked = rng.choice((f"Who is in the {place}?", f"Name the one in the {place}."))
        answer, accept = person, (f"{person} is in the {place}",)
    statements = (f"{told} So in the {place} you find {person}.", f"{told} You meet {person} in the {place}.")
    return _fact("fact_place", told, asked, answer, level, accept, statements)


def _fact(
    kind: str, told: str, asked: str, answer: str, level: Level, accept: tuple[str, ...], statements: tuple[str, ...]
) -> Exercise:
    facts = "|".join(sorted(told.replace(" and ", ". ").rstrip(".").split(". ")))
    key = f"{kind}:{facts}:{answer}"
    check = Check("text", accept=accept)
    return Exercise(f"{told} {asked}", answer, key, kind, level=level, check=check, statements=statements)


def _told(rng: Random, facts: list[str]) -> str:
    if len(facts) == 2 and rng.random() < 0.4:
        return f"{facts[0]} and {facts[1]}."
    return " ".join(f"{fact}." for fact in facts)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
