#!lua
-- Stores an API key if there is none at all.
-- ARGV: id, key (JSON)
-- Returns whether it was stored

if redis.call('EXISTS', 'lensd:keys') == 1 then return false end
redis.call('HSET', 'lensd:keys', ARGV[1], ARGV[2])
return true
