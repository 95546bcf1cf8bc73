"""The words of ScienceWorld's texts, for a vocabulary (benchmarks/vocabulary.py).

The engine's words are open: these are those of training and some development variations, as goals, answers and its own
solutions say them. What else it says is spelled in letters; temperatures are numbers, of which those above 99 are
spelled in part.
"""

# Rooms as names, and what told facts say beside the engine's words (walks.py).
TOLD = """Art Bathroom Bedroom Earlier Foundry Greenhouse Hallway Kitchen Living Outside Room Studio Workshop house
landscape saw""".split()
WORDS = """A a above abstract acceptable acetate action actions activate activated adult After agent air Alexandra
almond almonds already also aluminum Ambiguous an and angle animal animals anode another ant appears apple applepollen
approximately apricot are around art Arthur artist as ash at Austen avocado avocadopollen axe B b baby banana
bananapollen bathroom bathtub battery be bear beaver bed bedroom bee being below Beowulf black blank blast block Blue
blue boat Bob boil boiling book bottom bowl box boxes Bpollen brass Bread bread brick broken bronze brown bulb burned
butter butterfly buzzer by C c caesium called can can't cancel cashew cashews caterpillar cathode cause celsius ceramic
chair chameleon change changes Charles chemistry cherry cherrypollen chicken chipmunk chloride chocolate circuit clip
close closed closet cloth color combusting common complete completely completing component compounds Conan conductive
connect connected container containers containing contents copper couch counter covered cow cream create created
crocodile crossing crosspollinated cup cupboard currently D d Darwin deactivate deactivated dead decide degrees
description desk determine Dick dig directly disconnect disconnecting dominant done door dove down Doyle drain drawer
drawing drop dunk dunking E e earliest eat egg electric electrical electrically elephant elliptical empty enter
environment ERROR examine experiment F f farm filled find FINDING finger fire First flower flush Focus focus foil FOR
For for fork found Foundations foundry fountain Frankenstein freeze freezer friction fridge frog from fruit furnace G g
gallium gas gaseous generator giant glass go Green green green-blue greenhouse greenpaint ground grow growing grown H h
hallway has hatchling hedgehog height help Here Herman hills hive hole Holmes ice If if In in inclined ingredients input
Inside instructions intended intermediate into inventory iron is it iterations its itself J jam Jane jar jay jug juice
juvenile K kitchen known L large latest lead leaf least leaves lemon life light lighter Lily linear liquid list listed
living located location longest look low lush M make marshmallow Mary matches material matter mattress meadow measure
measures melt melting Melville mercury metal might mix mixed Moby moon most motor mountain mouse move N n near nearby
need Next No non-living nonconductive nonrenewable nothing now nuclear number nuts object objects of off On on one only
open or orange organism Origin outside oven Owen paint painting panel Paper paper parrot part-way pea peach peanut
Peanuts peanuts peapollen people pick picture pillow pit place plane planes plant plants plastic platinum playing Please
poet point pollen possible pot potato pour pouring power powering powers Prejudice Pride produce pupa purple put rabbit
reaches read reading reads recessive recipe Red red red-orange REFERENT referents renewable reproducing reproduction
request require reset river rolling room round rubber salt sandpaper sandwich secondary see seed seedling Seeds self
several shallowest shape shapes shelf Shelley Sherlock short shortest shovel sink sittable size small soap soapy sodium
soil solar solid some something source span Species square stage stages starting state steam steel steepest stopwatch
stove studio substance surface switch T table tadpole take tall Task task teleport temperature terminal that The the
them Then then There thermometer thing This ticks time tin titanium titled To to toad toilet top tortoise trait tree Try
turn turned turtle two Type ultra UNIQUE Unknown unknown until up use using V violet wait wait1 water watering When
whether which white will wilting wind wintery wire wireits with without wolf Wollstonecraft wood workshop wrinkly X x
Yellow yellow yellow-green You you Your your zinc""".split()
# Those that a text or a line begins with, or that stand behind a bracket.
BEGINS = """A a activate adult agent air almond Ambiguous an anode apple applepollen art avocadopollen banana
bananapollen bedroom bee Beowulf Blue blue brass Bread bread bronze caesium cashew cathode ceramic cherrypollen
chocolate close cloth connect containing deactivate disconnect disconnecting door drop dunk eat ERROR examine flush
focus Frankenstein gaseous glass go Green green greenhouse greenpaint hallway help In in inventory iron kitchen lead
liquid living look marshmallow mix mixed Moby move No nothing objects on open or orange outside Paper paper peanut
Peanuts peapollen pick picture plastic pour Pride put read Red red reset salt secondary Sherlock soapy sodium soil solid
steel Task task teleport terminal that The the There This tin titanium To Unknown unknown use wait wait1 wood workshop
Yellow yellow You Your zinc""".split()
# What is one piece though it is of several words: it is told in no other way.
PHRASES = (
    "This room is called the", "This outside location is called the", " In it, you see:", " Here you see:",
    "You also see:", "A door to the", " (that is open)", " (that is closed)", " (containing nothing)",
    " (containing a substance called", "a substance called", " a substance called", ", which is turned off",
    ", which is turned on", " is: nothing.", " door is open.", " door is closed.", "You move the", "You focus on the",
    "No known action matches that input.", " measures a temperature of", " degrees celsius",
    "Ambiguous request: Please enter the number for the action you intended (or blank to cancel):",
)  # fmt: skip


def vocabulary() -> list[str]:
    """The pieces that the texts are made of."""
    return [*PHRASES, *(f" {word}" for word in dict.fromkeys([*WORDS, *TOLD])), *BEGINS]
