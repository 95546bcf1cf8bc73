"""PDDL as AgentBoard plays it: gripper, blockworld, barman, tyreworld, and any other STRIPS domain.

What is seen is AgentBoard's wording (wording.py). Gripper and blockworld tell the whole state after an action; barman
and tyreworld what has become true by it, which may be nothing. An action is read leniently: in lower case, the first
word that is the name of an action which can be taken now, then the first words that name objects. It may be unknown,
without effect, or done. A text that says "check" lists the valid actions, one that says "look around" the whole state;
both count as actions, of which an episode has 30. Progress is the largest share of the goal's conditions that held
after an action; success is that all hold.

As a task of three stages (telling.py) a problem's goal is told in stage 1 alone, and so is which cocktail consists of
what: play does not tell these facts. With task.official the goal is in the query, and all is told in play.

Differences: lists that AgentBoard gives in the order of a Python set are sorted. It cuts words with nltk, we as
envs/text.py: nltk keeps a dot, comma or colon within "b1.b2" or "1,2", and parts "b1's" and "a--b"; of one token we
read no more than text.WORDS_OF_TOKEN words. An action that names an object twice is never done; AgentBoard does not
list it either, and in its four domains none changes anything. Conditions that hold at the start are no progress
before an action has had an effect, in either.
"""
