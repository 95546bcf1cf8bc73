; A robot with arms carries balls between rooms. Kinds of things are facts: there are no types.
(define (domain gripper-strips)
  (:predicates (at-robby ?where) (at ?thing ?where) (carry ?thing ?arm) (free ?arm) (ball ?x) (gripper ?x) (room ?x))
  (:action drop
    :parameters (?thing ?where ?arm)
    :precondition (and (at-robby ?where) (carry ?thing ?arm) (room ?where) (gripper ?arm) (ball ?thing))
    :effect (and (not (carry ?thing ?arm)) (free ?arm) (at ?thing ?where)))
  (:action pick
    :parameters (?thing ?where ?arm)
    :precondition (and (at-robby ?where) (at ?thing ?where) (free ?arm) (room ?where) (gripper ?arm) (ball ?thing))
    :effect (and (not (free ?arm)) (not (at ?thing ?where)) (carry ?thing ?arm)))
  (:action move
    :parameters (?here ?there)
    :precondition (and (at-robby ?here) (room ?here) (room ?there))
    :effect (and (not (at-robby ?here)) (at-robby ?there))))
