#!lua flags=allow-oom
-- Forgets an endpoint.
-- ARGV: id
-- Returns whether there was one

local id = ARGV[1]
local owner = redis.call('HGET', 'lensd:webhook:' .. id, 'owner')
if not owner then return false end
redis.call('ZREM', 'lensd:webhooks:' .. owner, id)
redis.call('DEL', 'lensd:webhook:' .. id, 'lensd:outcomes:' .. id)
return true
