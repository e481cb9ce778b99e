"""The supervisor's side of learning: when a service's model learns and what becomes of the candidate, durably.

settings   from `[learning]` to the state machines of `edgekit.learning`
place      everything durable about one service's learning
book       where that lies: one small database
ledger     all places: stored before they count, and what follows for the plan
facts      what the worker and the sample store say, as evidence
course     what one look decides: pure
looking    one look: what is seen, what is done about it
workshop   where jobs are done: dataset version, order, process, package
process    `edged.train` in a process of its own
desk       the loop, and what people ask
door       the way to the desk, which is made when it is needed
parts      what all of this needs of the rest of the supervisor
views      where a service's learning stands, for people
bodies     what the local API says
routes     of the local API
"""
