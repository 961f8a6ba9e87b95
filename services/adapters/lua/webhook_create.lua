#!lua
-- Stores an endpoint, if its owner has room.
-- ARGV: id, owner, most endpoints of an owner, creation (microseconds), then fields and their values
-- Returns whether it was stored

local id, owner, bound, created = unpack(ARGV)
local all = 'lensd:webhooks:' .. owner
if redis.call('ZSCORE', all, id) then return true end
if redis.call('ZCARD', all) >= tonumber(bound) then return false end
redis.call('ZADD', all, created, id)
redis.call('HSET', 'lensd:webhook:' .. id, 'owner', owner, 'created_at', created, unpack(ARGV, 5))
return true
