#!lua flags=allow-oom
-- Records progress if the claim holds.
-- ARGV: policy, job, worker, attempt, done, planned, new tokens as JSON or ''
-- Returns whether it does

local _, id, worker, attempt, done, planned, tokens = unpack(ARGV)
if not holds(id, worker, attempt) then return false end
set(id, 'done', done, 'planned', planned)
if tokens ~= '' then set(id, 'batches', redis.call('RPUSH', 'lensd:tokens:' .. id, tokens)) end
announce(id)
return true
