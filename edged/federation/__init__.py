"""The device's part in federated learning: its own rules, a child process that trains and masks, and a signed record.

settings     the `[federation]` table: what the plant allows, whatever cloudd proposes
rosters      the plant's offline tool: which devices may form cohorts
book         what was done once and for all, seats, spent budgets, floors of rosters, jobs: SQLite
chain        the append-only file of signed audit records
notes        what is kept and shown about jobs

front        what the supervisor holds: nothing, while there is no `[federation]` table
desk         which jobs there are, which one this device takes part in, what comes of it
around       what the desk needs of the supervisor
alarms       what people must know; consent, leaving: what people say; watching: asks cloudd for jobs
child, order the child process as the supervisor starts it
bodies, routes, views   the local API

work         what the child does: one job (`participant`), or the candidate at its end
participant  a device in a job: train, take a seat, apply what is published, begin again
opening      the job, its files, its rosters
sitting      a seat in one round, over restarts
updates      what is contributed: trained once, charged to the privacy budget, hidden
shared       what all hold: rules and state
local        the training on the device's own pictures
head_source  its sums of features, for a head of one round; sums: what it has in the totals; descent: who may join again
machine      power, battery, heat and health, for jobs that ask for them
lead         a site's leader (two tiers): a participant of the upper job; site: its source, and what it hands down
upward       the leader's own certificate at the upper cloudd
cloud        cloudd's routes; files: what is kept of a job, sealed

Only the child (`python -m edged.federation`) imports numpy and onnxruntime.
"""
