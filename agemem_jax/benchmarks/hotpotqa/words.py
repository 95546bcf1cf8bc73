"""The words that generated questions are made of."""

FIRST_NAMES = """Ada Ben Cora Dario Elsa Felix Greta Hugo Ines Jonas Karin Leon Marta Nils Olga Pavel Quinn Rosa Stefan
Tilda Ulrich Vera Walter Xenia Yusuf Zora Amir Bianca Cyril Dalia Edgar Freya Gideon Hanna Igor Judith Kaspar Lydia Milo
Nadia Oscar Petra Rafael Selma Tobias Ursula Viktor Wanda Yara Zeno Alma Bruno Clara Dmitri Emil Fiona""".split()
LAST_NAMES = """Abbott Barlow Castell Dunmore Eklund Farrow Galloway Hartmann Iverson Jansen Keller Lindqvist
Marchetti Novak Okafor Pereira Quigley Renard Sorensen Takeda Underhill Vasquez Whitlock Yamada Zeller Ashby Brandt
Corvin Delgado Ellery Fischer Grimaldi Holloway Ishida Jovanovic Kowalski Larsen Moreau Nakamura Ortega Petrov
Rasmussen Sandoval Thorne Ulloa Varga Winslow Yilmaz Zimmer Archer Bellamy Calder Drummond Esposito Fontaine
Gallagher""".split()
WORK_FIRST = """Silver Crimson Golden Hidden Broken Silent Distant Frozen Burning Hollow Scarlet Velvet Wandering
Endless Forgotten Bitter Gentle Savage Sacred Shattered Midnight Winter Summer Autumn Amber Ivory Copper Emerald
Marble Paper Glass Iron Stone Crystal Thunder Shadow Painted Restless Secret Ancient Lonely Radiant Sunken Twisted
Vanishing Whispering Weeping Electric""".split()
WORK_SECOND = """River Garden Mirror Tower Bridge Lantern Forest Empire Journey Letter Mountain Ocean Orchard Palace
Road Sparrow Storm Tide Valley Voyage Window Wolf Crown Desert Dream Echo Feather Flame Fortress Horizon Island Key
Labyrinth Meadow Moon Needle Oath Prophet Quarry Raven Shore Temple Throne Umbrella Violin Wheel Compass
Anchor""".split()
PLACE_WORDS = """Halden Brindle Corvale Dunford Elmsworth Farholt Glenmoor Harrowby Inverley Jarnsund Kestwick Lorvik
Marnby Northam Oakmere Pellworth Quarndon Rothwick Selbourne Tarnholm Ulverby Vellmar Westmark Yarlow Zandrick
Ashcombe Belmere Crannock Drayholm Eastvale Fenwater Garrick Hythe Ilmere Jutholm Kelbrook""".split()
PLACE_PREFIXES = "New Port Old Upper Lake Saint".split()
PLACES = PLACE_WORDS + [f"{PLACE_PREFIXES[i % len(PLACE_PREFIXES)]} {word}" for i, word in enumerate(PLACE_WORDS[:24])]
YEARS = [str(year) for year in range(1900, 2000)]
NUMBERS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty""".split()

CHATTER = (
    ("we", "they", "you", "my friend", "the kids", "our neighbor"),
    ("enjoyed", "wanted", "missed", "liked", "remembered"),
    ("warm soup", "fresh bread", "loud music", "long walks", "funny films", "good coffee", "nice weather"),
    ("today", "yesterday", "last night", "this morning", "again"),
)
