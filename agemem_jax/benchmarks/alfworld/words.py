"""The words of ALFWorld's texts, for a vocabulary (benchmarks/vocabulary.py)."""

from agemem_jax.benchmarks.alfworld.environment import FACING, HELP, IN_ROOM, NEXT_TO_IT, PIECES, WELCOME
from agemem_jax.data.words import cut

# Kinds of objects and receptacles of all published games, as they are named in play.
KINDS = """alarmclock apple armchair baseballbat basketball bathtub bathtubbasin bed blinds book boots bowl box bread
butterknife cabinet candle cart cd cellphone chair cloth coffeemachine coffeetable countertop creditcard cup curtains
desk desklamp diningtable dishsponge drawer dresser egg floorlamp footstool fork fridge garbagecan glassbottle handtowel
handtowelholder houseplant kettle keychain knife ladle laptop laundryhamper laundryhamperlid lettuce lightswitch
microwave mirror mug newspaper ottoman painting paintinghanger pan papertowel papertowelroll pen pencil peppershaker
pillow plate plunger poster pot potato rack remotecontrol safe saltshaker scrubbrush shelf showerdoor showerglass
sidetable sink sinkbasin soapbar soapbottle sofa spatula spoon spraybottle statue stoveburner stoveknob teddybear
television tennisracket tissuebox toaster toilet toiletpaper toiletpaperhanger toiletpaperroll tomato towel towelholder
tvstand vase watch wateringcan window winebottle""".split()
ARRIVAL = " loc"  # where one arrives in the older wording
TASKS = (
    "Your task is to: put a clean some hot cool sliced in it and put them on two find look at examine the under with",
)
# What is one piece though it is of several words: it is told in no other way.
PHRASES = (WELCOME, IN_ROOM, FACING, NEXT_TO_IT, "Nothing happens.", "You are not carrying anything.",
           *HELP.splitlines(keepends=True))  # fmt: skip


def vocabulary() -> list[str]:
    """The pieces that the texts are made of."""
    kinds = [f" {kind}" for kind in KINDS]
    return list(dict.fromkeys([*PHRASES, *cut([*PIECES, *TASKS, ARRIVAL]), *kinds]))
