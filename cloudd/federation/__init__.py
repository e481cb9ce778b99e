"""Federated jobs at cloudd: it forms cohorts, carries their messages, publishes sums and applies them as devices do.

definition  the TOML that starts a job
preparing   the registered model becomes a train step whose files devices fetch
heading     or the files of a head of one round; continuing: a head that goes on with the totals of another
store       jobs, rounds, sums, journal: rows
journal     what a cohort has accepted, so that a killed cloudd goes on inside the round
vectors     uploaded vectors: files of a cohort
cohort      one sum: masked (secure) or plain (plain); messages in, deadlines, the words out
selection   who is invited; needs: what a job asks of a device
pool        the devices that stand ready, and whether they are enough
progress    the state that every device holds too
publishing  what came of a round
job         one running job: gather, rounds, end
files       the files of a job
sites       the definition of a site's job (two tiers), and the upper job in it
led         one running job of a site: rounds when its leader asks, sums of the upper job
brought     sums of the upper job that the leader brings: files
leading     what the leader asks and brings: handlers
service     all jobs of this cloudd
packing     the last state becomes a model package, in a process of its own (merging; lineage: its record)
routes      device API
admin       admin API
views       what people see, as data
page        dashboard
"""
