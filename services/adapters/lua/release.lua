#!lua flags=allow-oom
-- Hands a job back at no cost if the claim holds; the claim is over.
-- ARGV: policy, job, worker, attempt
-- Returns whether it did hold

local _, id, worker, attempt = unpack(ARGV)
if not holds(id, worker, attempt) then return false end
redis.call('HDEL', 'lensd:job:' .. id, 'worker')
hand_back(id)
return true
