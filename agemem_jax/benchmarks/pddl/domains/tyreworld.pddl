; Flat tyres on hubs are changed for spare ones, with tools from the boot.
(define (domain tyreworld)
  (:requirements :typing)
  (:types wheel nut tool - obj obj hub container)
  (:constants jack pump wrench - tool)
  (:predicates
    (have ?thing - obj) (in ?thing - obj ?box - container)
    (isopen ?box - container) (closed ?box - container) (unlocked ?box - container)
    (on ?tyre - wheel ?axle - hub) (free ?axle - hub) (fastened ?axle - hub) (unfastened ?axle - hub)
    (on-ground ?axle - hub) (not-on-ground ?axle - hub) (tight ?bolt - nut ?axle - hub) (loose ?bolt - nut ?axle - hub)
    (inflated ?tyre - wheel) (not-inflated ?tyre - wheel) (intact ?tyre - wheel))

  ; the boot
  (:action open
    :parameters (?box - container)
    :precondition (and (closed ?box) (unlocked ?box))
    :effect (and (not (closed ?box)) (isopen ?box)))
  (:action close
    :parameters (?box - container)
    :precondition (isopen ?box)
    :effect (and (not (isopen ?box)) (closed ?box)))
  (:action fetch
    :parameters (?thing - obj ?box - container)
    :precondition (and (isopen ?box) (in ?thing ?box))
    :effect (and (not (in ?thing ?box)) (have ?thing)))
  (:action put-away
    :parameters (?thing - obj ?box - container)
    :precondition (and (isopen ?box) (have ?thing))
    :effect (and (not (have ?thing)) (in ?thing ?box)))

  ; the car
  (:action jack-up
    :parameters (?axle - hub)
    :precondition (and (have jack) (on-ground ?axle))
    :effect (and (not (have jack)) (not (on-ground ?axle)) (not-on-ground ?axle)))
  (:action jack-down
    :parameters (?axle - hub)
    :precondition (not-on-ground ?axle)
    :effect (and (not (not-on-ground ?axle)) (on-ground ?axle) (have jack)))

  ; nuts
  (:action loosen
    :parameters (?bolt - nut ?axle - hub)
    :precondition (and (on-ground ?axle) (have wrench) (tight ?bolt ?axle))
    :effect (and (not (tight ?bolt ?axle)) (loose ?bolt ?axle)))
  (:action tighten
    :parameters (?bolt - nut ?axle - hub)
    :precondition (and (on-ground ?axle) (have wrench) (loose ?bolt ?axle))
    :effect (and (not (loose ?bolt ?axle)) (tight ?bolt ?axle)))
  (:action undo
    :parameters (?bolt - nut ?axle - hub)
    :precondition (and (not-on-ground ?axle) (have wrench) (loose ?bolt ?axle) (fastened ?axle))
    :effect (and (not (loose ?bolt ?axle)) (not (fastened ?axle)) (unfastened ?axle) (have ?bolt)))
  (:action do-up
    :parameters (?bolt - nut ?axle - hub)
    :precondition (and (not-on-ground ?axle) (have wrench) (have ?bolt) (unfastened ?axle))
    :effect (and (not (have ?bolt)) (not (unfastened ?axle)) (fastened ?axle) (loose ?bolt ?axle)))

  ; wheels
  (:action remove-wheel
    :parameters (?tyre - wheel ?axle - hub)
    :precondition (and (not-on-ground ?axle) (unfastened ?axle) (on ?tyre ?axle))
    :effect (and (not (on ?tyre ?axle)) (free ?axle) (have ?tyre)))
  (:action put-on-wheel
    :parameters (?tyre - wheel ?axle - hub)
    :precondition (and (not-on-ground ?axle) (unfastened ?axle) (free ?axle) (have ?tyre))
    :effect (and (not (have ?tyre)) (not (free ?axle)) (on ?tyre ?axle)))
  (:action inflate
    :parameters (?tyre - wheel)
    :precondition (and (have pump) (intact ?tyre) (not-inflated ?tyre))
    :effect (and (not (not-inflated ?tyre)) (inflated ?tyre))))
