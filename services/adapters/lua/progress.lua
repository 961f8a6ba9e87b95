#!lua flags=allow-oom
-- Records progress if the claim holds.
-- ARGV: policy, job, worker, attempt, done, planned
-- Returns whether it does

local _, id, worker, attempt, done, planned = unpack(ARGV)
if not holds(id, worker, attempt) then return false end
set(id, 'done', done, 'planned', planned)
announce(id)
return true
