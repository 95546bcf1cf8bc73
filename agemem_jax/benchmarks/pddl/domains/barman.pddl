; Drinks are filled from dispensers into shots, poured into a shaker, shaken to cocktails and served in shots.
(define (domain barman)
  (:requirements :typing)
  (:types shot shaker - container cocktail ingredient - beverage hand dispenser level)
  (:predicates
    ; never changed
    (dispenses ?tap - dispenser ?drink - ingredient) (next ?low - level ?high - level)
    (shaker-empty-level ?mixer - shaker ?bottom - level)
    (cocktail-part1 ?mix - cocktail ?drink - ingredient) (cocktail-part2 ?mix - cocktail ?drink - ingredient)
    ; hands and what they hold
    (handempty ?grip - hand) (holding ?grip - hand ?vessel - container) (ontable ?vessel - container)
    ; what is in a vessel, and was
    (empty ?vessel - container) (clean ?vessel - container) (contains ?vessel - container ?fluid - beverage)
    (used ?vessel - container ?fluid - beverage)
    (shaker-level ?mixer - shaker ?now - level) (shaked ?mixer - shaker) (unshaked ?mixer - shaker))

  ; hands
  (:action leave
    :parameters (?grip - hand ?vessel - container)
    :precondition (holding ?grip ?vessel)
    :effect (and (ontable ?vessel) (handempty ?grip) (not (holding ?grip ?vessel))))
  (:action grasp
    :parameters (?grip - hand ?vessel - container)
    :precondition (and (handempty ?grip) (ontable ?vessel))
    :effect (and (holding ?grip ?vessel) (not (handempty ?grip)) (not (ontable ?vessel))))

  ; shots
  (:action refill-shot
    :parameters (?glass - shot ?drink - ingredient ?grip ?other - hand ?tap - dispenser)
    :precondition (and (dispenses ?tap ?drink) (used ?glass ?drink) (empty ?glass)
                       (holding ?grip ?glass) (handempty ?other))
    :effect (and (contains ?glass ?drink) (not (empty ?glass))))
  (:action fill-shot
    :parameters (?glass - shot ?drink - ingredient ?grip ?other - hand ?tap - dispenser)
    :precondition (and (dispenses ?tap ?drink) (clean ?glass) (empty ?glass)
                       (holding ?grip ?glass) (handempty ?other))
    :effect (and (contains ?glass ?drink) (used ?glass ?drink) (not (clean ?glass)) (not (empty ?glass))))
  (:action clean-shot
    :parameters (?glass - shot ?fluid - beverage ?grip ?other - hand)
    :precondition (and (used ?glass ?fluid) (empty ?glass) (holding ?grip ?glass) (handempty ?other))
    :effect (and (clean ?glass) (not (used ?glass ?fluid))))
  (:action empty-shot
    :parameters (?grip - hand ?glass - shot ?fluid - beverage)
    :precondition (and (contains ?glass ?fluid) (holding ?grip ?glass))
    :effect (and (empty ?glass) (not (contains ?glass ?fluid))))

  ; the shaker
  (:action pour-shot-to-clean-shaker
    :parameters (?glass - shot ?drink - ingredient ?mixer - shaker ?grip - hand ?now ?then - level)
    :precondition (and (next ?now ?then) (shaker-level ?mixer ?now) (clean ?mixer) (empty ?mixer)
                       (contains ?glass ?drink) (holding ?grip ?glass))
    :effect (and (contains ?mixer ?drink) (shaker-level ?mixer ?then) (unshaked ?mixer) (empty ?glass)
                 (not (shaker-level ?mixer ?now)) (not (clean ?mixer)) (not (empty ?mixer))
                 (not (contains ?glass ?drink))))
  (:action pour-shot-to-used-shaker
    :parameters (?glass - shot ?drink - ingredient ?mixer - shaker ?grip - hand ?now ?then - level)
    :precondition (and (next ?now ?then) (shaker-level ?mixer ?now) (unshaked ?mixer)
                       (contains ?glass ?drink) (holding ?grip ?glass))
    :effect (and (contains ?mixer ?drink) (shaker-level ?mixer ?then) (empty ?glass)
                 (not (shaker-level ?mixer ?now)) (not (contains ?glass ?drink))))
  (:action shake
    :parameters (?mix - cocktail ?one ?two - ingredient ?mixer - shaker ?grip ?other - hand)
    :precondition (and (cocktail-part1 ?mix ?one) (cocktail-part2 ?mix ?two) (contains ?mixer ?one)
                       (contains ?mixer ?two) (unshaked ?mixer) (holding ?grip ?mixer) (handempty ?other))
    :effect (and (contains ?mixer ?mix) (shaked ?mixer)
                 (not (unshaked ?mixer)) (not (contains ?mixer ?one)) (not (contains ?mixer ?two))))
  (:action pour-shaker-to-shot
    :parameters (?fluid - beverage ?glass - shot ?grip - hand ?mixer - shaker ?now ?then - level)
    :precondition (and (next ?then ?now) (shaker-level ?mixer ?now) (shaked ?mixer) (contains ?mixer ?fluid)
                       (clean ?glass) (empty ?glass) (holding ?grip ?mixer))
    :effect (and (contains ?glass ?fluid) (shaker-level ?mixer ?then)
                 (not (shaker-level ?mixer ?now)) (not (clean ?glass)) (not (empty ?glass))))
  (:action empty-shaker
    :parameters (?grip - hand ?mixer - shaker ?mix - cocktail ?now ?bottom - level)
    :precondition (and (shaker-empty-level ?mixer ?bottom) (shaker-level ?mixer ?now) (shaked ?mixer)
                       (contains ?mixer ?mix) (holding ?grip ?mixer))
    :effect (and (empty ?mixer) (shaker-level ?mixer ?bottom)
                 (not (shaker-level ?mixer ?now)) (not (shaked ?mixer)) (not (contains ?mixer ?mix))))
  (:action clean-shaker
    :parameters (?grip ?other - hand ?mixer - shaker)
    :precondition (and (empty ?mixer) (holding ?grip ?mixer) (handempty ?other))
    :effect (clean ?mixer)))
