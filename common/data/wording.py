"""Words for made-up items: themes whose vocabulary does not overlap, so that a title tells its category.

The first themes are English, because a pretrained text encoder should see what belongs together; further ones are made of
syllables. Nothing here depends on a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Theme:
    """A category: its name, and the adjectives and nouns of its titles."""

    name: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]


def _theme(name: str, adjectives: str, nouns: str) -> Theme:
    return Theme(name, tuple(adjectives.split()), tuple(nouns.split()))


_ENGLISH = (
    _theme(
        "Seafaring",
        "Stormy Salty Drifting Tidal Shipwrecked Seaworthy Briny Anchored",
        "Harbour Lighthouse Schooner Captain Reef Sailor Voyage Galleon",
    ),
    _theme(
        "Space",
        "Orbital Lunar Galactic Weightless Interstellar Martian Cosmic Starlit",
        "Rocket Nebula Astronaut Comet Station Planet Asteroid Eclipse",
    ),
    _theme(
        "Cooking",
        "Buttery Roasted Spicy Simmering Crusty Peppered Caramelised Savoury",
        "Kitchen Recipe Baker Soup Oven Dumpling Pastry Garlic",
    ),
    _theme(
        "Crime",
        "Murderous Stolen Crooked Poisoned Guilty Forged Unsolved Bloodstained",
        "Detective Alibi Heist Burglar Witness Ransom Verdict Informer",
    ),
    _theme(
        "Romance",
        "Tender Lovelorn Passionate Blushing Heartfelt Yearning Beloved Amorous",
        "Wedding Kiss Sweetheart Bouquet Proposal Valentine Bride Embrace",
    ),
    _theme(
        "Western",
        "Dusty Outlawed Galloping Gunslinging Prairie Saddled Lassoed Frontier",
        "Cowboy Saloon Sheriff Mustang Stagecoach Rodeo Ranch Canyon",
    ),
    _theme(
        "Horror",
        "Haunted Ghoulish Cursed Undead Shrieking Demonic Rotting Possessed",
        "Vampire Crypt Werewolf Coffin Zombie Seance Phantom Graveyard",
    ),
    _theme(
        "Music",
        "Melodic Syncopated Orchestral Acoustic Jazzy Harmonic Bluesy Choral",
        "Guitar Symphony Drummer Ballad Violin Concert Soprano Trumpet",
    ),
    _theme(
        "Sport",
        "Undefeated Sprinting Olympic Athletic Sweaty Competitive Offside Trained",
        "Striker Marathon Referee Stadium Goalkeeper Racket Championship Tackle",
    ),
    _theme(
        "Gardening",
        "Blooming Mossy Fragrant Pruned Leafy Composted Budding Evergreen",
        "Orchard Tulip Greenhouse Hedge Seedling Rosebush Meadow Wheelbarrow",
    ),
    _theme(
        "War",
        "Besieged Armoured Marching Entrenched Wounded Mutinous Camouflaged Retreating",
        "Battalion General Trench Bomber Soldier Armistice Regiment Fortress",
    ),
    _theme(
        "Magic",
        "Enchanted Spellbound Runic Bewitched Sorcerous Mystical Alchemical Winged",
        "Wizard Dragon Potion Cauldron Unicorn Amulet Witch Spellbook",
    ),
    _theme(
        "School",
        "Studious Graduating Homesick Tardy Scholarly Detained Chalky Literate",
        "Teacher Classroom Exam Homework Pupil Professor Blackboard Dormitory",
    ),
    _theme(
        "Animals",
        "Furry Growling Feathered Hibernating Whiskered Barking Hoofed Purring",
        "Otter Elephant Kitten Badger Sparrow Wolfhound Giraffe Hedgehog",
    ),
    _theme(
        "Finance",
        "Bankrupt Profitable Taxable Indebted Speculative Insured Wealthy Embezzled",
        "Banker Ledger Mortgage Broker Dividend Auditor Investor Stockmarket",
    ),
    _theme(
        "Medicine",
        "Surgical Feverish Contagious Bandaged Sterile Anaesthetised Chronic Healing",
        "Doctor Hospital Vaccine Scalpel Nurse Epidemic Patient Stethoscope",
    ),
)

TITLES = ("{adjective} {noun}", "The {adjective} {noun}", "{noun} and {second}", "The {noun} of the {second}")

REVIEWS = (
    "{title} is the best {category} I have come across.",
    "Exactly what I want from {category}: {title} kept me busy for days.",
    "I came back for more {category} after {title}.",
    "{title} is not bad, though I have seen better {category}.",
    "A friend who loves {category} told me of {title}, and was right.",
    "{title} starts slowly, but anybody who likes {category} will stay.",
    "Too long, yet {title} has all that {category} needs.",
    "If you try only one {category} this year, try {title}.",
)


def themes(n: int) -> tuple[Theme, ...]:
    """The first ``n`` themes; no word belongs to two of them."""
    return _ENGLISH[:n] + tuple(_invented(k) for k in range(n - len(_ENGLISH)))


def _invented(k: int) -> Theme:
    """Theme ``k`` of words that begin alike; 4,096 beginnings, after which they are numbered."""
    syllables = [onset + vowel for onset, vowel in product((*"bdfgklmnprstvz", "br", "kr"), "aeio")]
    lap, k = divmod(k, len(syllables) ** 2)
    stem = (syllables[k % len(syllables)] + syllables[(k // len(syllables) + k) % len(syllables)]).capitalize() + (
        str(lap) if lap else ""
    )
    endings = ("lar", "men", "dos", "rik", "vul", "tan", "pes", "gom")
    return Theme(stem + "ia", tuple(stem + e + "ish" for e in endings), tuple(stem + e for e in endings))
